import json
from pathlib import Path

import numpy as np
import pytest

from perceivers.data import picture_store
from perceivers.data.picture_store import PictureStore, PictureWriter
from perceivers.data.tokens import StoreWriter, TokenStore

CLASSES = ("cat", "dog", "eel")


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 5, 7, 3), dtype=np.uint8)


def arrays() -> dict:
    return {
        "train": (pictures(11), np.arange(11) % 3),
        "test": (pictures(2, seed=1), np.array([2, 0])),
    }


def write(path: Path, *, overwrite: bool = False, command: str | None = None) -> Path:
    with PictureWriter(path, shape=(5, 7, 3), classes=CLASSES, overwrite=overwrite, command=command) as writer:
        for split, (pixels, labels) in arrays().items():
            writer.append(split, pixels[:1], labels[:1])
            writer.append(split, pixels[1:], labels[1:])
    return path


def test_pictures_come_back(tmp_path: Path) -> None:
    store = PictureStore.open(write(tmp_path / "store"))
    assert (store.splits, store.shape, store.classes) == (("train", "test"), (5, 7, 3), CLASSES)
    assert (store.tokenizer, store.path) == ("pictures", tmp_path / "store")
    for name, (pixels, labels) in arrays().items():
        split = store.split(name)
        assert (split.name, len(split), split.shape) == (name, len(pixels), (5, 7, 3))
        assert isinstance(split.pixels, np.memmap)
        assert np.array_equal(split.pixels, pixels)
        assert np.array_equal(split.labels, labels)
    with pytest.raises(ValueError, match=r"store: no split 'validation'; it has train, test"):
        store.split("validation")


def test_without_labels(tmp_path: Path) -> None:
    with PictureWriter(tmp_path / "s", shape=(5, 7, 3)) as writer:
        writer.append("train", pictures(3))
    store = PictureStore.open(tmp_path / "s")
    assert store.classes is None
    assert store.split("train").labels is None
    assert sorted(entry.name for entry in store.path.iterdir()) == ["header.json", "train.pixels"]


def test_memory_and_disk_agree(tmp_path: Path) -> None:
    memory = PictureStore.in_memory(arrays(), classes=CLASSES)
    disk = PictureStore.open(write(tmp_path / "store", command="perceivers prepare"))
    assert memory.path is None
    assert memory.fingerprint == disk.fingerprint
    assert len(memory.fingerprint) == 16
    assert (memory.splits, memory.shape, memory.classes) == (disk.splits, disk.shape, disk.classes)
    assert np.array_equal(memory.split("test").pixels, disk.split("test").pixels)
    other = arrays() | {"test": (pictures(2, seed=1), np.array([2, 1]))}
    assert PictureStore.in_memory(other, classes=CLASSES).fingerprint != disk.fingerprint


# What is refused


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (pictures(2)[..., :1], [0, 1], r"got uint8 of shape \(2, 5, 7, 1\), needs .* 5 x 7 x 3, as uint8"),
        (pictures(0), [], r"got uint8 of shape \(0, 5, 7, 3\), needs one or more pictures"),
        (pictures(2), None, "labels and classes go together: give both, or neither"),
        (pictures(2), [0], r"got labels as int64 of shape \(1,\), needs int64, one for each of 2 pictures"),
        (pictures(2), [0, 3], r"label 3 of picture 1 must lie in 0\.\.2"),
        (pictures(2), [-1, 0], r"label -1 of picture 0 must lie in 0\.\.2"),
    ],
)
def test_bad_pictures_are_refused(tmp_path: Path, pixels: np.ndarray, labels: list | None, message: str) -> None:
    given = None if labels is None else np.array(labels, dtype=np.int64)
    with (
        pytest.raises(ValueError, match=f"split 'train': {message}"),
        PictureWriter(tmp_path / "s", shape=(5, 7, 3), classes=CLASSES) as writer,
    ):
        writer.append("train", pixels, given)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="split 'train': " if len(pixels) else ".*"):
        PictureStore.in_memory({"test": (pictures(1), np.array([0])), "train": (pixels, given)}, classes=CLASSES)


def test_a_store_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no picture was written"), PictureWriter(tmp_path / "s", shape=(5, 7, 3)):
        pass
    with pytest.raises(ValueError, match="there are no pictures"):
        PictureStore.in_memory({})
    assert list(tmp_path.iterdir()) == []


def test_appending_needs_the_block(tmp_path: Path) -> None:
    writer = PictureWriter(tmp_path / "s", shape=(5, 7, 3))
    with pytest.raises(RuntimeError, match="inside its `with` block"):
        writer.append("train", pictures(1))
    with pytest.raises(ValueError, match="names a file"), writer:
        writer.append("a/b", pictures(1))


def test_an_interruption_leaves_the_old_store(tmp_path: Path) -> None:
    path = write(tmp_path / "store")
    with pytest.raises(FileExistsError, match="a picture store is there already; choose another place or --overwrite"):
        write(path)

    def work() -> None:
        with PictureWriter(path, shape=(5, 7, 3), overwrite=True) as writer:
            writer.append("train", pictures(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert len(PictureStore.open(path).split("train")) == 11
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_a_token_store_is_never_replaced(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", tokenizer="bytes", vocab_size=256) as writer:
        writer.append("train", np.array([1]), name="x")
    with pytest.raises(FileExistsError, match="exists and is not a picture store"):
        write(tmp_path / "s", overwrite=True)
    with pytest.raises(ValueError, match=r"header\.json: not the header of a picture store"):
        PictureStore.open(tmp_path / "s")
    with pytest.raises(ValueError, match=r"header\.json: not the header of a token store"):
        TokenStore.open(write(tmp_path / "p"))


# Opening what is damaged


def flip(file: Path, place: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: there is no store; make one with `perceivers prep"):
        PictureStore.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"not a store, it has no header\.json"):
        PictureStore.open(tmp_path)
    path = write(tmp_path / "store")
    (path / "test.labels").unlink()
    with pytest.raises(FileNotFoundError, match=r"test\.labels: missing; copy the whole store again"):
        PictureStore.open(path)


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    path = write(tmp_path / "store")
    flip(path / "train.pixels", 3)
    with pytest.raises(ValueError, match=r"train\.pixels: damaged: its content does not match the checksum"):
        PictureStore.open(path)
    with (path / "train.pixels").open("r+b") as stream:
        stream.truncate(100)
    with pytest.raises(ValueError, match=r"train\.pixels: damaged: 100 bytes where the header says 1,155"):
        PictureStore.open(path)


def test_a_damaged_header(tmp_path: Path) -> None:
    path = write(tmp_path / "store")
    values = json.loads((path / "header.json").read_text())
    for change, message in (
        ({"shape": [5, 7]}, "a field is missing or wrong"),
        ({"shape": [7, 5, 3]}, "its content does not match its own fingerprint"),
        ({"version": 2}, "format version 2, this program reads version 1"),
    ):
        (path / "header.json").write_text(json.dumps(values | change))
        with pytest.raises(ValueError, match=message):
            PictureStore.open(path)
    (path / "header.json").write_text("{")
    with pytest.raises(ValueError, match="not readable as JSON"):
        PictureStore.open(path)


def test_large_stores_still_have_their_labels_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_store, "CHECKSUM_LIMIT", 10)
    path = write(tmp_path / "store")
    flip(path / "train.pixels")
    PictureStore.open(path)
    flip(path / "train.labels", 7)
    with pytest.raises(ValueError, match=r"train\.labels: damaged: a label is not one of the 3 classes"):
        PictureStore.open(path)


def test_classes_are_numbered_as_others_number_them_by_name(tmp_path: Path) -> None:
    store = PictureStore.open(write(tmp_path / "store"))
    assert store.classes is not None
    a, b, c = store.classes
    other = store.renumbered((c, "more", a, b))
    assert other.classes == (c, "more", a, b)
    assert other.fingerprint == store.fingerprint
    for name in store.splits:
        before, after = store.split(name), other.split(name)
        assert before.labels is not None
        assert after.labels is not None
        names = [store.classes[label] for label in before.labels]
        assert [other.classes[label] for label in after.labels] == names
        assert np.array_equal(before.pixels, after.pixels)
    assert store.renumbered(None) is store
    assert store.renumbered(store.classes) is store
    with pytest.raises(ValueError, match=rf"store has '{a}', which the model does not know.*its own are '{b}', '{c}'"):
        store.renumbered((b, c))
    with pytest.raises(ValueError, match=f"has '{b}', which the model does not know, or knows several times"):
        store.renumbered((a, b, c, b))
