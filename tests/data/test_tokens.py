import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perceivers.data import tokens
from perceivers.data.picture_store import PictureStore
from perceivers.data.tokens import StoreWriter, TokenStore

DOCUMENTS = {
    "train": {"a": [0, 5, 7], "b": [387], "c/d": [11, 2, 3, 5, 7]},
    "validation": {"é\n": [13, 17]},
}


def write(path: Path, *, overwrite: bool = False, vocab_size: int = 388, documents: dict = DOCUMENTS) -> Path:
    with StoreWriter(path, tokenizer="performance", vocab_size=vocab_size, overwrite=overwrite) as writer:
        for split, named in documents.items():
            for name, ids in named.items():
                writer.append(split, np.array(ids), name=name)
    return path


def hidden(path: Path) -> list[str]:
    """What is in the directory of a store, the store aside."""
    return [entry.name for entry in path.parent.iterdir() if entry != path]


def test_documents_come_back(tmp_path: Path) -> None:
    store = TokenStore.open(write(tmp_path / "store"))
    assert store.splits == ("train", "validation")
    for name, named in DOCUMENTS.items():
        split = store.split(name)
        assert split.name == name
        assert split.names == list(named)
        assert len(split) == len(named)
        assert [ids.tolist() for ids in split] == list(named.values())
    train = store.split("train")
    assert isinstance(train.tokens, np.memmap)
    assert train.offsets.tolist() == [0, 3, 4, 9]
    assert train.lengths.tolist() == [3, 1, 5]
    assert train.num_tokens == 9
    with pytest.raises(IndexError, match="split 'train' has 3 documents, there is no document 3"):
        train[3]


def test_header_says_what_is_inside(tmp_path: Path) -> None:
    with StoreWriter(
        tmp_path / "store", tokenizer="bytes", vocab_size=256, source="books.zip", command="perceivers prepare"
    ) as writer:
        writer.append("train", np.array([1, 2, 3], dtype=np.uint8), name="a")
    header = TokenStore.open(tmp_path / "store").header
    assert (header.tokenizer, header.vocab_size, header.dtype) == ("bytes", 256, "uint16")
    assert (header.source, header.command) == ("books.zip", "perceivers prepare")
    assert (header.splits["train"].documents, header.splits["train"].tokens) == (1, 3)
    assert header.splits["train"].files["train.tokens"].num_bytes == 6
    assert sorted(header.splits["train"].files) == ["train.names", "train.offsets", "train.tokens"]
    assert hidden(tmp_path / "store") == []


def test_a_large_vocabulary_takes_four_bytes_an_id(tmp_path: Path) -> None:
    assert TokenStore.open(write(tmp_path / "small", vocab_size=65536)).header.dtype == "uint16"
    with StoreWriter(tmp_path / "large", tokenizer="ids", vocab_size=65537) as writer:
        writer.append("train", np.array([65536, 3]), name="a")
    store = TokenStore.open(tmp_path / "large")
    assert store.header.dtype == "uint32"
    assert store.split("train")[0].tolist() == [65536, 3]
    assert (tmp_path / "large" / "train.tokens").read_bytes() == b"\x00\x00\x01\x00\x03\x00\x00\x00"


def test_fingerprint_changes_with_the_data_alone(tmp_path: Path) -> None:
    first = TokenStore.open(write(tmp_path / "first")).fingerprint
    assert len(first) == 16
    with StoreWriter(tmp_path / "same", tokenizer="performance", vocab_size=388, command="another") as writer:
        for split, named in DOCUMENTS.items():
            for name, ids in named.items():
                writer.append(split, np.array(ids), name=name)
    assert TokenStore.open(tmp_path / "same").fingerprint == first
    changed = DOCUMENTS | {"validation": {"é\n": [13, 18]}}
    assert TokenStore.open(write(tmp_path / "ids", documents=changed)).fingerprint != first
    assert TokenStore.open(write(tmp_path / "vocab", vocab_size=389)).fingerprint != first


# What a writer refuses


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([3, 388], "document 'x.mid': id 388 at place 1 is outside the vocabulary of 388"),
        ([3, 5, -1], "document 'x.mid': id -1 at place 2 is outside the vocabulary of 388"),
        ([0.5], "document 'x.mid': got float64 of shape \\(1,\\), needs integers with one axis"),
        ([[1, 2]], "document 'x.mid': got int64 of shape \\(1, 2\\), needs integers with one axis"),
        (np.array([], dtype=np.int32), "document 'x.mid' has no tokens"),
    ],
)
def test_bad_documents_are_refused(tmp_path: Path, ids: list, message: str) -> None:
    with (
        pytest.raises(ValueError, match=message),
        StoreWriter(tmp_path / "s", tokenizer="performance", vocab_size=388) as w,
    ):
        w.append("train", np.array(ids), name="x.mid")
    assert hidden(tmp_path / "s") == []


@pytest.mark.parametrize("split", ["", "../train", "a b"])
def test_splits_must_make_file_names(tmp_path: Path, split: str) -> None:
    with (
        pytest.raises(ValueError, match="names a file: use letters, digits"),
        StoreWriter(tmp_path / "s", tokenizer="bytes", vocab_size=256) as writer,
    ):
        writer.append(split, np.array([1]), name="x")


def test_a_store_without_documents_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="no document was written"),
        StoreWriter(tmp_path / "s", tokenizer="bytes", vocab_size=256),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_vocabulary_has_a_range(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vocab_size=0 must lie in 1\.\.4294967296"):
        StoreWriter(tmp_path / "s", tokenizer="bytes", vocab_size=0)


def test_append_outside_the_block_is_an_error(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "s", tokenizer="bytes", vocab_size=256)
    with pytest.raises(RuntimeError, match="inside its `with` block"):
        writer.append("train", np.array([1]), name="x")
    assert list(tmp_path.iterdir()) == []


# What is at the target already


def test_an_existing_store_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    path = write(tmp_path / "store")
    with pytest.raises(FileExistsError, match="a token store is there already; choose another place or --overwrite"):
        StoreWriter(path, tokenizer="bytes", vocab_size=256)
    assert TokenStore.open(path).header.tokenizer == "performance"
    with StoreWriter(path, tokenizer="bytes", vocab_size=256, overwrite=True) as writer:
        writer.append("test", np.array([1]), name="x")
        assert TokenStore.open(path).header.tokenizer == "performance"  # the old one, until the end
    assert TokenStore.open(path).splits == ("test",)
    assert hidden(path) == []


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    assert TokenStore.open(write(tmp_path / "store")).splits == ("train", "validation")


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_store_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("long work")
    (tmp_path / "file").write_text("x")
    for name in ("thesis", "file"):
        with pytest.raises(FileExistsError, match="exists and is not a token store; choose another place"):
            StoreWriter(tmp_path / name, tokenizer="bytes", vocab_size=256, overwrite=overwrite)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "long work"


def test_a_mount_point_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda self: self == tmp_path / "s")
    with pytest.raises(FileExistsError, match="a mount point cannot be replaced; choose a directory inside it"):
        StoreWriter(tmp_path / "s", tokenizer="bytes", vocab_size=256)


def test_a_target_that_appeared_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "store"

    def work() -> None:
        with StoreWriter(path, tokenizer="bytes", vocab_size=256) as writer:
            writer.append("train", np.array([1]), name="x")
            path.mkdir()
            (path / "notes.txt").write_text("mine")

    with pytest.raises(FileExistsError, match="not a token store"):
        work()
    assert (path / "notes.txt").read_text() == "mine"
    assert hidden(path) == []


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", tokenizer="bytes", vocab_size=256) as first:
        first.append("train", np.array([1]), name="x")
        second = StoreWriter(tmp_path / "s", tokenizer="bytes", vocab_size=256)
        with pytest.raises(FileExistsError, match="another process is writing this store"), second:
            pass
    assert TokenStore.open(tmp_path / "s").split("train").names == ["x"]


# Interruptions


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_writer_leaves_nothing(tmp_path: Path, interruption: type[BaseException]) -> None:
    def work() -> None:
        with StoreWriter(tmp_path / "s", tokenizer="bytes", vocab_size=256) as writer:
            writer.append("train", np.array([1]), name="x")
            raise interruption

    with pytest.raises(interruption):
        work()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_nothing_at_the_path_and_the_next_cleans_up(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, numpy as np\n"
        "from perceivers.data.tokens import StoreWriter\n"
        "with StoreWriter(sys.argv[1], tokenizer='bytes', vocab_size=256) as writer:\n"
        "    writer.append('leftover', np.arange(256).repeat(999), name='x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "store")], check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".store.lock", ".store.partial"]
    assert (tmp_path / ".store.partial" / "leftover.tokens").stat().st_size > 0
    with pytest.raises(FileNotFoundError, match="there is no store"):
        TokenStore.open(tmp_path / "store")
    assert TokenStore.open(write(tmp_path / "store")).splits == ("train", "validation")
    assert hidden(tmp_path / "store") == []
    assert not list((tmp_path / "store").glob("leftover*"))


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs Linux's device that is always full")
def test_a_full_disk_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = Path.open

    def open_on_full_disk(self: Path, *args, **kwargs):
        return real_open(Path("/dev/full") if self.suffix == ".tokens" else self, *args, **kwargs)

    def work() -> None:
        with StoreWriter(tmp_path / "store", tokenizer="bytes", vocab_size=256) as writer:
            for name in range(100):  # more than the file's buffer
                writer.append("train", np.zeros(9999, dtype=np.uint8), name=str(name))

    monkeypatch.setattr(Path, "open", open_on_full_disk)
    with pytest.raises(OSError, match=r"the disk is full: .*store was not written .*free some space") as caught:
        work()
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("which", ["fsync", "rename"])
@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, existing: bool) -> None:
    if existing:
        write(tmp_path / "store")
    real = getattr(os, which)

    def fail(source, *arguments):
        if which == "fsync" or Path(source).name == ".store.partial":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(source, *arguments)

    monkeypatch.setattr(os, which, fail)
    with pytest.raises(OSError, match="the disk is full"):
        write(tmp_path / "store", overwrite=True, documents={"train": {"new": [1]}})
    monkeypatch.undo()
    if existing:
        assert TokenStore.open(tmp_path / "store").splits == ("train", "validation")
    assert hidden(tmp_path / "store") == []
    assert (tmp_path / "store").exists() == existing


def test_other_faults_of_the_file_system_are_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write(tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


# Opening what is damaged


def flip(file: Path, place: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_missing_store(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: there is no store; make one with `perceivers prepare`"):
        TokenStore.open(tmp_path / "nowhere")


def test_something_else_than_a_store(tmp_path: Path) -> None:
    (tmp_path / "song.mid").write_bytes(b"MThd")
    for path in (tmp_path, tmp_path / "song.mid"):
        with pytest.raises(ValueError, match=r"not a store, it has no header\.json; make one with"):
            TokenStore.open(path)
    (tmp_path / "header.json").write_text('{"name": "mine"}')
    with pytest.raises(ValueError, match=r"header\.json: not the header of a token store; make a store with"):
        TokenStore.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]"])
def test_unreadable_header(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "store")
    (path / "header.json").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"header\.json: (damaged: not readable as JSON|not the header of a token store)"
    ):
        TokenStore.open(path)


def test_header_of_another_version(tmp_path: Path) -> None:
    path = write(tmp_path / "store")
    text = (path / "header.json").read_text()
    (path / "header.json").write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="format version 2, this program reads version 1; upgrade perceivers"):
        TokenStore.open(path)


def test_header_without_a_field(tmp_path: Path) -> None:
    path = write(tmp_path / "store")
    values = json.loads((path / "header.json").read_text())
    for field in ("tokenizer", "splits"):
        left = {key: value for key, value in values.items() if key != field}
        (path / "header.json").write_text(json.dumps(left))
        with pytest.raises(ValueError, match=r"header\.json: damaged: a field is missing or wrong"):
            TokenStore.open(path)


def test_header_that_was_edited(tmp_path: Path) -> None:
    path = write(tmp_path / "store")
    text = (path / "header.json").read_text()
    (path / "header.json").write_text(text.replace('"vocab_size": 388', '"vocab_size": 389'))
    with pytest.raises(ValueError, match=r"header\.json: damaged: its content does not match its own fingerprint"):
        TokenStore.open(path)


@pytest.mark.parametrize("name", ["train.tokens", "train.offsets", "train.names", "validation.tokens"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "store") / name
    whole = file.read_bytes()
    flip(file)
    with pytest.raises(
        ValueError, match=f"{name}: damaged: its content does not match the checksum in the header; copy"
    ):
        TokenStore.open(file.parent)
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=f"{name}: damaged: {len(whole) - 1} bytes where the header says {len(whole)}"):
        TokenStore.open(file.parent)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: missing; copy the whole store again, or prepare it again"):
        TokenStore.open(file.parent)


def test_large_stores_are_checked_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "CHECKSUM_LIMIT", 10)
    path = write(tmp_path / "store")
    TokenStore.open(path).verify()
    flip(path / "train.tokens")
    store = TokenStore.open(path)
    with pytest.raises(ValueError, match=r"train\.tokens: damaged"):
        store.verify()


def test_large_stores_still_have_their_offsets_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "CHECKSUM_LIMIT", 10)
    path = write(tmp_path / "store")
    flip(path / "train.offsets", place=15)  # the second offset becomes huge
    with pytest.raises(ValueError, match=r"train\.offsets: damaged: its offsets do not fit the tokens"):
        TokenStore.open(path)


def test_unknown_split(tmp_path: Path) -> None:
    store = TokenStore.open(write(tmp_path / "store"))
    with pytest.raises(ValueError, match="store: no split 'test'; it has train, validation"):
        store.split("test")


@pytest.mark.parametrize("kind", [TokenStore, PictureStore])
def test_where_no_store_is_the_nearest_is_named(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^stor: there is no store; make one with `perceivers prepare`$"):
        kind.open("stor")
    (tmp_path / "data" / "store").mkdir(parents=True)
    (tmp_path / "data" / "store" / "header.json").write_text("{}")
    for path in ("stor", "store", "data/sotre"):
        with pytest.raises(FileNotFoundError, match=rf"^{path}: there is no store; .*data/store"):
            kind.open(path)
    with pytest.raises(ValueError, match=r"^data: not a store, it has no header.json; .*data/store"):
        kind.open("data")
