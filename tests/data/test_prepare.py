import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from perceivers.data.prepare import prepare_copy, prepare_music, prepare_text, prepare_tokens
from perceivers.data.synthetic import mirrored_ids
from perceivers.data.text import decode_bytes
from perceivers.data.tokens import TokenStore
from perceivers.key_use import KeyUse

from .given_files import midi, place, texts

# Music


def test_music_of_a_directory(tmp_path: Path) -> None:
    songs = place(
        tmp_path / "songs",
        train__a_mid=midi(60, 62),
        train__b_midi=midi(64),
        validation__c_mid=midi(67),
        test__d_MID=midi(69),
    )
    summary = prepare_music([songs], tmp_path / "store", command="perceivers prepare music songs")
    store = TokenStore.open(tmp_path / "store")
    assert (store.header.tokenizer, store.header.vocab_size) == ("performance", 388)
    assert (store.header.source, store.header.command) == ("songs", "perceivers prepare music songs")
    assert store.split("train").names == ["train/a.mid", "train/b.midi"]
    velocity, half_a_second = 356 + 63 // 4, 256 + 49
    assert store.split("train")[0].tolist() == [velocity, 60, half_a_second, 128 + 60, 62, half_a_second, 128 + 62]
    assert {name: (split.documents, split.tokens, split.seconds) for name, split in summary.splits.items()} == {
        "train": (2, 11, 1.5),
        "validation": (1, 4, 0.5),
        "test": (1, 4, 0.5),
    }
    assert list(summary.splits) == ["train", "validation", "test"]
    assert summary.path == tmp_path / "store"
    assert summary.fingerprint == store.fingerprint
    assert (summary.skipped, summary.duplicates) == ([], [])
    assert summary.notes == [
        "splits as the folders say: test, train, validation",
        "few documents (train 2, validation 1, test 1): scores on fewer than 10 say little about others",
        f"in training, {store.header.keys}",
    ]
    assert store.header.keys == KeyUse(held_steps=(50,) * 5, down=(1,) * 5)
    assert summary.elapsed_s > 0


def test_music_of_an_archive_is_the_same(tmp_path: Path) -> None:
    songs = {"train/a.mid": midi(60), "validation/b.mid": midi(62), "test/c.mid": midi(64)}
    with zipfile.ZipFile(tmp_path / "songs.zip", "w") as archive:
        for name, content in songs.items():
            archive.writestr(name, content)
            place(tmp_path / "songs", **{name.replace("/", "__").replace(".", "_"): content})
    zipped = prepare_music([tmp_path / "songs.zip"], tmp_path / "zipped")
    plain = prepare_music([tmp_path / "songs"], tmp_path / "plain")
    assert zipped.fingerprint == plain.fingerprint


def test_maestro_keeps_its_splits(tmp_path: Path) -> None:
    place(tmp_path / "m", **{"2004__a_midi": midi(60), "2004__b_midi": midi(62), "2018__c_midi": midi(64)})
    (tmp_path / "m" / "maestro-v3.0.0.csv").write_text(
        "split,midi_filename\ntest,2004/a.midi\ntrain,2004/b.midi\nvalidation,2018/c.midi\n"
    )
    prepare_music([tmp_path / "m"], tmp_path / "store")
    store = TokenStore.open(tmp_path / "store")
    names = {split: store.split(split).names for split in store.splits}
    assert names == {"train": ["2004/b.midi"], "validation": ["2018/c.midi"], "test": ["2004/a.midi"]}


def test_broken_files_are_skipped_and_told(tmp_path: Path) -> None:
    songs = place(
        tmp_path / "songs",
        good1_mid=midi(60),
        good2_mid=midi(62),
        good3_mid=midi(64),
        noise_mid=b"noise",
        silent_mid=midi(),
        tempo_mid=b"MThd\0\0\0\6\0\0\0\1\0\x60MTrk\0\0\0\xd0\0\xff\x51\x81\x48" + bytes(203),
    )
    place(tmp_path / "songs", cut_mid=midi(60, 62)[:-9])
    summary = prepare_music([songs], tmp_path / "store")
    assert sorted(name for name, _ in summary.skipped) == ["cut.mid", "noise.mid", "silent.mid", "tempo.mid"]
    reasons = dict(summary.skipped)
    assert reasons["noise.mid"] == "not a MIDI file: the MThd header is missing"
    assert "cut off" in reasons["cut.mid"]
    assert reasons["silent.mid"] == "it has no tokens"
    assert sum(split.documents for split in summary.splits.values()) == 3
    text = "\n".join(summary.lines(examples=2))
    assert "4 files could not be used:\n" in text
    assert sum(name in text for name in reasons) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files_are_skipped(tmp_path: Path) -> None:
    songs = place(tmp_path / "songs", a_mid=midi(60), b_mid=midi(62))
    (songs / "a.mid").chmod(0)
    summary = prepare_music([songs], tmp_path / "store")
    assert [name for name, _ in summary.skipped] == ["a.mid"]


def test_nothing_but_broken_files(tmp_path: Path) -> None:
    songs = place(tmp_path / "songs", a_mid=b"noise", b_mid=b"")
    with pytest.raises(ValueError, match=r"none of 2 files could be used; the first, a\.mid: not a MIDI file"):
        prepare_music([songs], tmp_path / "store")
    assert [entry.name for entry in tmp_path.iterdir()] == ["songs"]


def test_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "songs").mkdir()
    with pytest.raises(ValueError, match=r"songs: no file there ends in \.mid or \.midi"):
        prepare_music([tmp_path / "songs"], tmp_path / "store")


def test_what_is_held_out_is_left_out_of_training(tmp_path: Path) -> None:
    """By what is heard, not by bytes or names; twice in one split is nobody's concern."""
    other_bytes = midi(60).replace(b"\x00\x90", b"\x00\xff\x01\x00\x00\x90").replace(b"\0\0\0\x0c", b"\0\0\0\x10")
    songs = place(
        tmp_path,
        train__a_mid=midi(60),
        train__copy_mid=other_bytes,
        train__d_mid=midi(64),
        train__e_mid=midi(64),
        validation__f_mid=midi(62),
        test__b_mid=midi(60),
        test__c_mid=midi(62),
        test__g_mid=midi(62),
        validation__h_mid=midi(66),
    )
    summary = prepare_music([songs], tmp_path / "store")
    assert summary.duplicates == [
        ("test/c.mid (test)", "validation/f.mid (validation)"),
        ("test/b.mid (test)", "train/a.mid (train)"),
        ("test/b.mid (test)", "train/copy.mid (train)"),
    ]
    store = TokenStore.open(tmp_path / "store")
    assert {split: store.split(split).names for split in store.splits} == {
        "train": ["train/d.mid", "train/e.mid"],
        "validation": ["validation/h.mid"],
        "test": ["test/b.mid", "test/c.mid", "test/g.mid"],
    }
    assert "3 documents were left out, because the same are held out too:" in summary.lines()
    assert "  train/a.mid (train) = test/b.mid (test)" in summary.lines()


def test_tempos_that_do_not_count_are_told(tmp_path: Path) -> None:
    late = b"MTrk\0\0\0\x0b\0\xff\x51\x03\x01\x02\x03\0\xff\x2f\0"
    content = midi(60).replace(b"\0\0\0\1\0\x60", b"\0\1\0\2\0\x60") + late
    summary = prepare_music([place(tmp_path / "d", a_mid=content, b_rmi=midi(62))], tmp_path / "store")
    assert "1 files set a tempo on a track after the first, where it does not count: a.mid" in summary.notes
    assert summary.skipped == []


# Text


def test_text_comes_back(tmp_path: Path) -> None:
    content = "Où est-il ?\r\n\tHere.\n"
    books = place(tmp_path / "books", train__a_txt=content, validation__b_txt="b", test__c_txt="\0é")
    summary = prepare_text([books], tmp_path / "store")
    store = TokenStore.open(tmp_path / "store")
    assert (store.header.tokenizer, store.header.vocab_size) == ("bytes", 256)
    assert decode_bytes(store.split("train")[0]) == content
    assert store.split("test")[0].tobytes() == b"\0\0\xc3\0\xa9\0"  # two bytes an id
    assert summary.splits["train"].tokens == len(content.encode())
    assert summary.splits["train"].seconds is None
    assert "hours" not in "\n".join(summary.lines())


def test_files_without_splits_are_split_by_name(tmp_path: Path) -> None:
    first = prepare_text([texts(tmp_path / "books", 40)], tmp_path / "first")
    second = prepare_text([tmp_path / "books"], tmp_path / "second")
    assert list(first.splits) == ["train", "validation", "test"]
    assert sum(split.documents for split in first.splits.values()) == 40
    assert first.fingerprint == second.fingerprint


def test_names_need_not_be_utf8(tmp_path: Path) -> None:
    for index in range(3):
        place(tmp_path / "books", **{f"{os.fsdecode(b'caf' + bytes([0xE9]))}{index}_txt": f"book {index}"})
    prepare_text([tmp_path / "books"], tmp_path / "store")
    store = TokenStore.open(tmp_path / "store")
    assert {os.fsencode(store.split(split).names[0])[:4] for split in store.splits} == {b"caf\xe9"}


def test_three_files_fill_three_splits(tmp_path: Path) -> None:
    summary = prepare_text([texts(tmp_path / "books", 3)], tmp_path / "store")
    assert {name: split.documents for name, split in summary.splits.items()} == {"train": 1, "validation": 1, "test": 1}


def test_one_file_is_cut(tmp_path: Path) -> None:
    content = bytes(index % 100 + 20 for index in range(200))
    summary = prepare_text([place(tmp_path / "books", a_txt=content)], tmp_path / "store")
    store = TokenStore.open(tmp_path / "store")
    parts = {split: bytes(store.split(split)[0].astype(np.uint8)) for split in store.splits}
    assert parts == {"train": content[:180], "validation": content[180:190], "test": content[190:]}
    cut = "fewer than 3 documents, so each was cut: 90 % for training, 5 % validation, 5 % test"
    assert summary.notes == [cut]
    assert cut in summary.lines()
    assert summary.duplicates == []


def test_a_short_file_is_not_cut(tmp_path: Path) -> None:
    summary = prepare_text([place(tmp_path / "books", a_txt="short", b_txt="x" * 20)], tmp_path / "store")
    assert {name: split.tokens for name, split in summary.splits.items()} == {"train": 23, "validation": 1, "test": 1}


def test_empty_texts_are_skipped(tmp_path: Path) -> None:
    summary = prepare_text(
        [place(tmp_path / "books", a_txt="", b_txt="long enough to be cut in parts")], tmp_path / "s"
    )
    assert summary.skipped == [("a.txt", "it has no tokens")]


# The user's own ids


def test_ids_of_every_kind_of_file(tmp_path: Path) -> None:
    place(tmp_path / "d", train__b_txt="7 8\n 9\t11", train__c_jsonl='{"ids": [1, 2]}\n\n{"ids": [3], "name": "x"}\n')
    np.save(tmp_path / "d" / "train" / "a.npy", np.array([5, 999], dtype=np.uint16))
    np.save(tmp_path / "d" / "train" / "two.npy", np.array([[1, 2], [3, 4]]))
    (tmp_path / "d" / "train" / "silent.txt").write_text("")
    summary = prepare_tokens([tmp_path / "d"], tmp_path / "store", vocab_size=1000)
    store = TokenStore.open(tmp_path / "store")
    assert (store.header.tokenizer, store.header.vocab_size) == ("ids", 1000)
    train = store.split("train")
    assert {name: train[index].tolist() for index, name in enumerate(train.names)} == {
        "train/a.npy": [5, 999],
        "train/b.txt": [7, 8, 9, 11],
        "train/c.jsonl#0": [1, 2],
        "train/c.jsonl#1": [3],
        "train/two.npy#0": [1, 2],
        "train/two.npy#1": [3, 4],
    }
    assert summary.skipped == [("train/silent.txt", "it has no tokens")]


def test_ids_of_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ids.zip", "w") as archive:
        archive.writestr("train.txt", "1 2 3")
        archive.writestr("test.txt", "4")
    prepare_tokens([tmp_path / "ids.zip"], tmp_path / "store", vocab_size=5)
    assert TokenStore.open(tmp_path / "store").split("test")[0].tolist() == [4]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "1 2 x", r"a\.txt: needs integers with white space between"),
        ("a.txt", "1 2.5", r"a\.txt: needs integers with white space between"),
        ("a.txt", str(2**70), r"a\.txt: needs integers with white space between"),
        ("a.txt", "1 -2", r"a\.txt: id -2 at place 1 is outside the vocabulary of 7"),
        ("a.txt", "1 7", r"a\.txt: id 7 at place 1 is outside the vocabulary of 7"),
        ("a.jsonl", '{"ids": [1]}\n{"ids": [1, 2.5]}', r'a\.jsonl: line 2: needs {"ids": \[\.\.\.\]} with integers'),
        ("a.jsonl", '{"ids": [[1]]}', r"a\.jsonl: line 1: needs"),
        ("a.jsonl", '{"tokens": [1]}', r"a\.jsonl: line 1: needs .*KeyError"),
        ("a.jsonl", "1 2 3", r"a\.jsonl: line 1: needs .*JSONDecodeError"),
        ("a.jsonl", "\n", r"a\.jsonl: no line holds a document"),
        ("a.npy", "no array", r"a\.npy: not a \.npy file of integers"),
    ],
)
def test_ids_that_are_none(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        prepare_tokens([tmp_path / "d"], tmp_path / "store", vocab_size=7)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("array", [np.array([0.5]), np.zeros((2, 2, 2), dtype=int), np.array(3)])
def test_arrays_that_are_no_ids(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=r"a\.npy: .* of shape .*, needs integers: one axis for a document, two for"):
        prepare_tokens([tmp_path / "a.npy"], tmp_path / "store", vocab_size=7)


def test_arrays_of_python_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"a\.npy: not a \.npy file of integers .*allow_pickle"):
        prepare_tokens([tmp_path / "a.npy"], tmp_path / "store", vocab_size=7)


# The copy task


def test_copy_sequences(tmp_path: Path) -> None:
    summary = prepare_copy(tmp_path / "store", length=14, count=40, seed=3)
    store = TokenStore.open(tmp_path / "store")
    assert (store.header.tokenizer, store.header.vocab_size) == ("copy", 256)
    assert store.header.source == "copy task, length 14, seed 3"
    assert {name: split.documents for name, split in summary.splits.items()} == {
        "train": 36,
        "validation": 2,
        "test": 2,
    }
    for split in store.splits:
        for index, ids in enumerate(store.split(split)):
            assert ids.tolist() == mirrored_ids(14, seed=3, split=split, index=index).tolist()


@pytest.mark.parametrize(
    ("length", "count", "message"),
    [(7, 5, "length=7 must be even"), (8, 2, "count=2 must be at least 3, one sequence for each split")],
)
def test_copy_sequences_that_cannot_be(tmp_path: Path, length: int, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_copy(tmp_path / "store", length=length, count=count)
    assert list(tmp_path.iterdir()) == []
