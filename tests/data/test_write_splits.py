"""What preparing has in common, whatever is prepared."""

import errno
import json
import os
from pathlib import Path

import pytest

from perceivers.data import prepare
from perceivers.data.batch import TokenBatch
from perceivers.data.config import DataConfig
from perceivers.data.loader import TokenLoader
from perceivers.data.midi import MidiFile, read_midi
from perceivers.data.prepare import Choices, prepare_music, prepare_text, prepare_tokens
from perceivers.data.text import decode_bytes
from perceivers.data.tokens import TokenStore
from perceivers.data.write_splits import PrepareSummary

from .given_files import midi, place, texts


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, RecursionError, AttributeError, OverflowError, KeyError])
def test_whatever_a_decoder_raises_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    songs = place(tmp_path / "songs", a_mid=midi(60), b_mid=midi(62), c_mid=midi(64))

    def broken(source: bytes, *, name: str) -> MidiFile:
        if name == "b.mid":
            raise error("one\nand two")
        return read_midi(source, name=name)

    monkeypatch.setattr(prepare, "read_midi", broken)
    summary = prepare_music([songs], tmp_path / "store")
    ((name, reason),) = summary.skipped
    assert name == "b.mid"
    assert reason.startswith(f"cannot be read ({error.__name__}: ")
    assert "\n" not in reason
    assert {split.documents for split in summary.splits.values()} == {2}  # two that remain are cut


def test_one_file_of_ids_does_not_stop_the_others(tmp_path: Path) -> None:
    place(tmp_path / "d", a_txt="1 2 3", b_txt="4 5 6", c_txt="6 1", deep_jsonl='{"ids": ' + "[" * 100_000)
    place(tmp_path / "d", far_txt="1 9", damaged_npy=b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': (((((")
    summary = prepare_tokens([tmp_path / "d"], tmp_path / "store", vocab_size=7)
    assert sorted(name for name, _ in summary.skipped) == ["damaged.npy", "deep.jsonl", "far.txt"]
    assert {name: split.documents for name, split in summary.splits.items()} == {"train": 1, "validation": 1, "test": 1}


@pytest.mark.parametrize("broken", range(4))
def test_a_file_that_cannot_be_used_empties_no_split(tmp_path: Path, broken: int) -> None:
    names = [f"book{index}_txt" for index in range(4)]
    place(tmp_path / "d", **{name: "" if index == broken else f"text {index}" for index, name in enumerate(names)})
    summary = prepare_text([tmp_path / "d"], tmp_path / "store")
    assert {name: split.documents for name, split in summary.splits.items()} == {"train": 1, "validation": 1, "test": 1}
    assert [name for name, _ in summary.skipped] == [f"book{broken}.txt"]


def test_equal_documents_stay_in_one_split(tmp_path: Path) -> None:
    thrice = {f"{name}_txt": "x" * 40 for name in "abc"}
    summary = prepare_text([place(tmp_path / "d", **thrice)], tmp_path / "store")
    assert {name: split.documents for name, split in summary.splits.items()} == {"train": 3, "validation": 3, "test": 3}
    assert summary.duplicates == []

    place(tmp_path / "d", **{f"more{index}_txt": f"{index % 7} and more" for index in range(40)}, broken_txt="")
    summary = prepare_text([tmp_path / "d"], tmp_path / "many")
    store = TokenStore.open(tmp_path / "many")
    texts = [{decode_bytes(ids) for ids in store.split(split)} for split in store.splits]
    assert len(texts) == 3
    assert sum(map(len, texts)) == len(set.union(*texts)) == 8
    assert sum(split.documents for split in summary.splits.values()) == 43
    assert "35 documents are equal to others, and in one split with them" in summary.notes


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"test__a_txt": "a", "train__b_txt": ""}, "nothing is left for training: the splits as given are test, train"),
        ({"test__a_txt": "a", "train__b_txt": "a"}, "nothing is left for training: .* split anew with --split-by hash"),
    ],
)
def test_training_data_that_is_lost_is_missed(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_text([place(tmp_path / "d", **files)], tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_what_is_held_out_alone_makes_a_store_to_evaluate_on(tmp_path: Path) -> None:
    place(tmp_path / "d", test__a_txt="a", val__b_txt="b")
    assert list(prepare_text([tmp_path / "d"], tmp_path / "store").splits) == ["validation", "test"]
    place(tmp_path / "e", test__a_txt="", val__b_txt="")
    with pytest.raises(ValueError, match=r"none of 2 files could be used; the first, test/a\.txt: it has no tokens"):
        prepare_text([tmp_path / "e"], tmp_path / "none")


def test_pieces_stay_together(tmp_path: Path) -> None:
    takes = {f"piece{p}__take{t}_mid": midi(60 + p, 40 + t) for p in range(12) for t in range(3)}
    songs = place(tmp_path / "songs", **takes)
    prepare_music([songs], tmp_path / "store", choices=Choices(split_by="piece"))
    store = TokenStore.open(tmp_path / "store")
    pieces = [{name.split("/")[0] for name in store.split(split).names} for split in store.splits]
    assert len(pieces) == 3
    assert sum(map(len, pieces)) == len(set.union(*pieces)) == 12
    apart = prepare_music([songs], tmp_path / "apart")
    assert any(note.startswith("recordings of ") for note in apart.notes)


@pytest.mark.parametrize(
    ("content", "stored", "said"),
    [
        ("où".encode("latin-1") + b" est-il ?", "où est-il ?", "1 files read as Windows-1252, not UTF-8: a.txt"),
        ("\ufeffoù".encode("utf-16-le"), "où", "1 files read as UTF-16, not UTF-8: a.txt"),
        ("où est".encode()[2:], "\ufffd est", None),  # cut within a character
    ],
)
def test_text_of_other_encodings(tmp_path: Path, content: bytes, stored: str, said: str | None) -> None:
    place(tmp_path / "d", a_txt=content, b_txt="b", c_txt="c", noise_txt=bytes(range(128, 256)))
    summary = prepare_text([tmp_path / "d"], tmp_path / "store")
    store = TokenStore.open(tmp_path / "store")
    texts = {n: decode_bytes(ids) for s in map(store.split, store.splits) for n, ids in zip(s.names, s, strict=True)}
    assert texts["a.txt"] == stored
    assert (said in summary.notes) == (said is not None)
    ((name, reason),) = summary.skipped
    assert (name, reason) == (
        "noise.txt",
        "it is not UTF-8 (byte 0x80 at 0), and nothing tells what else; convert it to UTF-8",
    )


def test_the_target_is_checked_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    books = texts(tmp_path / "books", 3)
    prepare_text([books], tmp_path / "store")
    monkeypatch.setattr(prepare, "find_documents", lambda *_, **__: pytest.fail("looked for files first"))
    with pytest.raises(FileExistsError, match="a token store is there already; choose another place or --overwrite"):
        prepare_text([books], tmp_path / "store")


def test_overwriting_on_request(tmp_path: Path) -> None:
    first = prepare_text([texts(tmp_path / "books", 3)], tmp_path / "store")
    second = prepare_text([texts(tmp_path / "books", 5)], tmp_path / "store", overwrite=True)
    assert TokenStore.open(tmp_path / "store").fingerprint == second.fingerprint != first.fingerprint


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    songs = place(tmp_path / "songs", a_mid=midi(60), b_mid=midi(62), c_mid=midi(64))

    def interrupted(source: bytes, *, name: str) -> MidiFile:
        if name == "b.mid":
            raise interruption
        return read_midi(source, name=name)

    monkeypatch.setattr(prepare, "read_midi", interrupted)
    with pytest.raises(interruption):
        prepare_music([songs], tmp_path / "store")
    assert [entry.name for entry in tmp_path.iterdir()] == ["songs"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"the disk is full: .*store was not written"):
        prepare_text([texts(tmp_path / "books", 3)], tmp_path / "store")
    assert [entry.name for entry in tmp_path.iterdir()] == ["books"]


def test_progress_is_shown_on_a_terminal_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepare_text([texts(tmp_path / "books", 3)], tmp_path / "store", progress=True)
    assert capfd.readouterr() == ("", "")


def test_summaries_can_be_read(tmp_path: Path) -> None:
    summary = prepare_music(
        [place(tmp_path / "songs", train__a_mid=midi(60), test__b_mid=midi(62))], tmp_path / "store"
    )
    assert isinstance(summary, PrepareSummary)
    first, train, test, *_ = summary.lines()
    assert first.startswith(f"{tmp_path / 'store'}: token store {summary.fingerprint}, made in ")
    assert train.split() == ["train", "1", "documents", "4", "tokens", "0.00", "hours"]
    assert test.split()[0] == "test"


def test_files_to_batches(tmp_path: Path) -> None:
    songs = place(tmp_path / "songs", train__a_mid=midi(*range(50, 70)), train__b_mid=midi(60), test__c_mid=midi(62))
    prepare_music([songs], tmp_path / "store")
    store = TokenStore.open(tmp_path / "store")
    config = DataConfig(batch_size=5, crop="uniform", transpose=3, stretch=(0.95, 1.0, 1.05))
    loader = TokenLoader(store.split("train"), config, seq_len=17, num_targets=7, seed=1)
    batch = loader.batch(0)
    assert isinstance(batch, TokenBatch)
    assert batch.tokens.max() < store.header.vocab_size + 3
    assert json.loads((tmp_path / "store" / "header.json").read_text())["tokenizer"] == "performance"
