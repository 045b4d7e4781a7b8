import csv
import json
import zipfile
from pathlib import Path

import pytest

from perceivers.data.sources import find_documents


def place(root: Path, *names: str) -> Path:
    """Files that hold their own names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def zipped(archive: Path, *names: str) -> Path:
    with zipfile.ZipFile(archive, "w") as stream:
        for name in names:
            stream.writestr(name, name)
    return archive


def splits_of(*sources: Path) -> dict[str, str | None]:
    return {document.name: document.split for document in find_documents(sources, (".mid", ".midi"))[0]}


def test_directories_are_searched_through(tmp_path: Path) -> None:
    place(tmp_path, "b.mid", "deep/er/a.MIDI", "notes.txt", ".hidden.mid", "__MACOSX/._b.mid", "deep/.git/x.mid")
    documents, notes = find_documents([tmp_path], (".mid", ".midi"))
    assert [document.name for document in documents] == ["b.mid", "deep/er/a.MIDI"]
    assert [document.read() for document in documents] == [b"b.mid", b"deep/er/a.MIDI"]
    assert notes == ["files of other kinds were left out: 1 .txt"]


def test_archives_are_searched_through(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "songs.zip", "x/b.mid", "x/notes.txt", "__MACOSX/x/._b.mid", "x/a.midi")
    documents, _ = find_documents([archive], (".mid", ".midi"))
    assert [document.name for document in documents] == ["x/a.midi", "x/b.mid"]
    assert [document.read() for document in documents] == [b"x/a.midi", b"x/b.mid"]


def test_an_archive_that_changed_is_read_anew(tmp_path: Path) -> None:
    assert list(splits_of(zipped(tmp_path / "songs.zip", "a.mid"))) == ["a.mid"]
    (tmp_path / "songs.zip").unlink()
    assert list(splits_of(zipped(tmp_path / "songs.zip", "other.mid", "b.mid"))) == ["b.mid", "other.mid"]


def test_single_files_are_taken(tmp_path: Path) -> None:
    place(tmp_path, "a.mid", "b.mid", "c.mid")
    assert list(splits_of(tmp_path / "b.mid", tmp_path / "a.mid")) == ["b.mid", "a.mid"]


def test_several_directories_keep_their_names_apart(tmp_path: Path) -> None:
    place(tmp_path, "x/a.mid", "y/a.mid")
    assert list(splits_of(tmp_path / "x", tmp_path / "y")) == ["x/a.mid", "y/a.mid"]


# Splits by folders


FOLDERS = ["train/Bach/a.mid", "train/b.mid", "validation/c.mid", "test/x/d.mid"]
SPLITS = ["train", "train", "validation", "test"]


@pytest.mark.parametrize("above", ["", "data/", "one/two/"])
def test_top_folders_name_the_splits(tmp_path: Path, above: str) -> None:
    names = [above + name for name in FOLDERS]
    expected = dict(zip(names, SPLITS, strict=True))
    assert splits_of(place(tmp_path / "d", *names)) == expected
    assert splits_of(zipped(tmp_path / "d.zip", *names)) == expected


def test_other_names_of_validation(tmp_path: Path) -> None:
    for folder in ("valid", "val", "dev"):
        assert splits_of(place(tmp_path / folder / "d", "train/a.mid", f"{folder}/b.mid")) == {
            "train/a.mid": "train",
            f"{folder}/b.mid": "validation",
        }


def test_one_split_alone(tmp_path: Path) -> None:
    assert splits_of(place(tmp_path, "test/a.mid", "test/b.mid")) == {"test/a.mid": "test", "test/b.mid": "test"}


def test_files_can_be_splits(tmp_path: Path) -> None:
    place(tmp_path, "train.mid", "valid.mid", "test.mid")
    assert splits_of(tmp_path) == {"test.mid": "test", "train.mid": "train", "valid.mid": "validation"}


@pytest.mark.parametrize("names", [["test.mid", "song.mid"], ["test.mid"], ["Bach/train/a.mid", "Liszt/train/b.mid"]])
def test_names_that_look_like_splits_by_chance(tmp_path: Path, names: list[str]) -> None:
    assert set(splits_of(place(tmp_path, *names)).values()) == {None}


def test_directories_given_can_be_splits(tmp_path: Path) -> None:
    place(tmp_path, "train/a.mid", "validation/b.mid")
    expected = {"train/a.mid": "train", "validation/b.mid": "validation"}
    assert splits_of(tmp_path / "train", tmp_path / "validation") == expected
    assert splits_of(tmp_path / "train") == {"a.mid": None}  # alone, it is only a name


@pytest.mark.parametrize("stray", ["a.mid", "extra/a.mid"])
def test_files_beside_the_splits_are_an_error(tmp_path: Path, stray: str) -> None:
    place(tmp_path, *FOLDERS, stray)
    with pytest.raises(ValueError, match=f"{stray} lies beside the folders test, train, validation; move it into one"):
        splits_of(tmp_path)


# MAESTRO's table


MAESTRO = {"2004/a.midi": "train", "2004/b.midi": "test", "2018/c.midi": "validation"}


def write_table(folder: Path, kind: str) -> None:
    columns = {"midi_filename": list(MAESTRO), "split": list(MAESTRO.values()), "year": [2004, 2004, 2018]}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if kind == "csv":
        with (folder / "maestro-v3.0.0.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(columns))
            writer.writeheader()
            writer.writerows(rows)
    else:
        by_column = {name: {str(i): value for i, value in enumerate(column)} for name, column in columns.items()}
        (folder / "maestro-v3.0.0.json").write_text(json.dumps(rows if kind == "rows" else by_column))


@pytest.mark.parametrize("kind", ["csv", "columns", "rows"])
@pytest.mark.parametrize("above", ["", "maestro-v3.0.0"])
def test_maestro_says_its_splits(tmp_path: Path, kind: str, above: str) -> None:
    folder = place(tmp_path / above, *MAESTRO)
    write_table(folder, kind)
    assert splits_of(tmp_path) == {str(Path(above) / name): split for name, split in MAESTRO.items()}


def test_a_part_of_maestro_is_noted(tmp_path: Path) -> None:
    write_table(place(tmp_path, *list(MAESTRO)[:2]), "csv")
    documents, notes = find_documents([tmp_path], (".midi",))
    assert [document.split for document in documents] == ["train", "test"]
    assert notes == [
        "splits as maestro-v3.0.0.csv says",
        "maestro-v3.0.0.csv lists 3 performances, 1 of them are not there",
    ]


def test_what_maestro_does_not_list_is_an_error(tmp_path: Path) -> None:
    write_table(place(tmp_path, *MAESTRO, "2018/mine.midi"), "csv")
    with pytest.raises(ValueError, match=r"2018/mine\.midi is not in maestro-v3\.0\.0\.csv, which gives the splits"):
        splits_of(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["{", '{"midi_filename": {"0": "a"}}', "[1]", "[" * 50_000, '[{"midi_filename": "a.midi", "split": "other"}]'],
)
def test_a_broken_table_is_an_error(tmp_path: Path, content: str) -> None:
    place(tmp_path, "a.midi")
    (tmp_path / "maestro.json").write_text(content)
    with pytest.raises(ValueError, match=r"maestro\.json: not MAESTRO's table of midi_filename and split"):
        splits_of(tmp_path)


# What cannot be used


def test_missing_sources(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or directory"):
        splits_of(tmp_path / "nowhere")


def test_nothing_found_says_what_was_looked_for_and_what_is_there(tmp_path: Path) -> None:
    place(tmp_path, "notes.txt")
    for source in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match=r": no file there ends in \.mid or \.midi; there are 1 \.txt$"):
            splits_of(source)


def test_damaged_archives(tmp_path: Path) -> None:
    (tmp_path / "songs.zip").write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match=r"songs\.zip: damaged, or not a zip archive"):
        splits_of(tmp_path / "songs.zip")
    good = zipped(tmp_path / "good.zip", "a.mid")
    documents, notes = find_documents([tmp_path / "songs.zip", good], (".mid",))
    assert [document.name for document in documents] == ["good/a.mid"]
    assert notes[0].startswith(f"left out: {tmp_path / 'songs.zip'}: damaged, or not a zip archive")
    with pytest.raises(ValueError, match=r"no file there ends in \.mid; left out: .*songs\.zip: damaged"):
        find_documents([tmp_path / "songs.zip"] * 2, (".mid",))


def test_damaged_members(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "songs.zip", "a.mid")
    archive.write_bytes(archive.read_bytes().replace(b"a.mida.mid", b"a.midb.mid"))  # the content, not the names
    document = find_documents([archive], (".mid",))[0][0]
    with pytest.raises(ValueError, match="cannot be unpacked: Bad CRC-32"):
        document.read()


def test_what_an_archive_of_bombs_unpacks_to_is_known_before(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.mid", bytes(3 * 2**20 + 1))
    (document,), _ = find_documents([tmp_path / "bomb.zip"], (".mid",), unpacked_mb=3)
    with pytest.raises(ValueError, match="it unpacks to 4 MB, more than 3; --unpacked-mb 4 reads it"):
        document.read()
    (document,), _ = find_documents([tmp_path / "bomb.zip"], (".mid",), unpacked_mb=4)
    assert len(document.read()) == 3 * 2**20 + 1


def test_a_broken_stream_is_the_members_fault(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "songs.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.mid", b"some words that deflate can pack " * 9)
        start = archive.getinfo("a.mid").header_offset + 35
    data = bytearray((tmp_path / "songs.zip").read_bytes())
    data[start : start + 9] = bytes([0xFF] * 9)
    (tmp_path / "songs.zip").write_bytes(data)
    with pytest.raises(ValueError, match=r"cannot be unpacked: "):
        find_documents([tmp_path / "songs.zip"], (".mid",))[0][0].read()


# Links


def test_folders_behind_links_are_read(tmp_path: Path) -> None:
    place(tmp_path / "elsewhere", "a/1.mid", "b/2.mid")
    place(tmp_path / "data", "c/3.mid")
    for name in "ab":
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "data" / "4.mid").symlink_to(tmp_path / "elsewhere" / "a" / "1.mid")
    assert list(splits_of(tmp_path / "data")) == ["4.mid", "a/1.mid", "b/2.mid", "c/3.mid"]


def test_links_in_circles_and_to_nowhere_are_told(tmp_path: Path) -> None:
    place(tmp_path / "data", "x/1.mid", "y/2.mid")
    (tmp_path / "data" / "x" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "y" / "self").symlink_to(tmp_path / "data" / "y")
    (tmp_path / "data" / "gone.mid").symlink_to(tmp_path / "nowhere.mid")
    documents, notes = find_documents([tmp_path / "data"], (".mid",))
    assert [document.name for document in documents] == ["x/1.mid", "y/2.mid"]
    assert sorted(notes) == [
        "the link gone.mid was left out, it leads nowhere",
        "the link x/up was left out, it leads back to a folder that is read already",
        "the link y/self was left out, it leads back to a folder that is read already",
    ]


def test_links_among_many_folders_make_no_endless_paths(tmp_path: Path) -> None:
    names = [f"{index:02}" for index in range(11)]
    place(tmp_path, *(f"{name}/{name}.mid" for name in names))
    for name in names:
        for other in names:
            (tmp_path / name / f"to{other}").symlink_to(tmp_path / other)
    assert len(splits_of(tmp_path)) < 11 * 11 * 11


# Archives of Windows, and splits of sources


def test_archives_with_backslashes(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "win.zip", "w") as archive:
        for name in ("data\\train\\1.mid", "data\\test\\2.mid"):
            info = zipfile.ZipInfo("x")
            info.filename = name
            archive.writestr(info, name)
    documents, _ = find_documents([tmp_path / "win.zip"], (".mid",))
    assert {document.name: document.split for document in documents} == {
        "data/train/1.mid": "train",
        "data/test/2.mid": "test",
    }
    assert documents[0].read() == b"data\\test\\2.mid"


def test_archives_and_files_given_can_be_splits(tmp_path: Path) -> None:
    archives = [zipped(tmp_path / f"{name}.zip", "a.mid") for name in ("Training", "testing")]
    assert splits_of(*archives) == {"Training/a.mid": "train", "testing/a.mid": "test"}
    place(tmp_path, "train.mid", "Test.mid", "other.mid")
    assert splits_of(tmp_path / "train.mid", tmp_path / "Test.mid") == {"train.mid": "train", "Test.mid": "test"}
    with pytest.raises(ValueError, match=r"other\.mid lies beside the files Test, train; .* --split-by hash"):
        splits_of(tmp_path / "train.mid", tmp_path / "Test.mid", tmp_path / "other.mid")


def test_splits_need_not_be_looked_for(tmp_path: Path) -> None:
    documents, notes = find_documents([place(tmp_path, *FOLDERS)], (".mid",), splits=False)
    assert {document.split for document in documents} == {None}
    assert notes == []
