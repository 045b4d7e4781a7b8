import gzip
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from perceivers.data.picture_arrays import arrays_as_pictures, read_idx
from perceivers.data.sources import Document

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 3, 7), dtype=np.uint8)
LABELS = np.array([4, 2, 4, 0, 2])


def idx(array: np.ndarray) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def found(tmp_path: Path, **arrays: np.ndarray) -> tuple[dict, list[str]]:
    """Names by split, and notes, of an .npz file."""
    np.savez(tmp_path / "set.npz", **arrays)  # pyright: ignore[reportArgumentType]
    pictures, _, notes = arrays_as_pictures([document(tmp_path / "set.npz")])
    return {split: [p for p in pictures if p.split == split] for split in {p.split for p in pictures}}, notes


def document(path: Path) -> Document:
    return Document(name=path.name, file=path)


def test_idx_files_as_mnist_has_them(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(PIXELS))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(PIXELS)))  # the same, packed
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS)))
    (tmp_path / "t10k-images.idx3-ubyte").write_bytes(idx(PIXELS[:2]))
    (tmp_path / "t10k-labels.idx1-ubyte").write_bytes(idx(LABELS[:2]))
    pictures, _, notes = arrays_as_pictures([document(path) for path in sorted(tmp_path.iterdir())])
    assert notes == []
    assert [(p.split, p.label) for p in pictures if p.split == "test"] == [("test", 4), ("test", 2)]
    train = [p for p in pictures if p.split == "train"]
    assert [p.label for p in train] == LABELS.tolist()
    assert train[3].name == "train-images-idx3-ubyte#3"
    assert (train[3].size, train[3].grey) == ((3, 7), True)
    assert np.array_equal(train[3].read()[..., 0], PIXELS[3])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (idx(PIXELS)[:-1], r"a: damaged: 120 bytes, which do not fit the sizes that it names, \(5, 3, 7\)"),
        (idx(PIXELS)[:9], "a: damaged: 9 bytes"),
        (b"", "a: not an IDX file"),
        (b"\x89PNG", "a: not an IDX file, it does not begin with two zero bytes"),
        (b"\0\0\x0d\x01" + bytes(8), r"a: holds values of type 0x0d, needs bytes \(0x08\)"),
        (gzip.compress(idx(PIXELS))[:-9], "a: damaged, it cannot be unpacked"),
    ],
)
def test_damaged_idx_files(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_idx(data, name="a")


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("X-TRAIN", "Train.Targets", "pixels_test", "test_classes"),
        ("Xtrain", "yTrain", "XTest", "ytest"),
        ("x_trn", "y_trn", "x_tst", "y_tst"),
        ("training_imgs", "training_labels", "testing_imgs", "testing_labels"),
    ],
)
def test_names_of_arrays(tmp_path: Path, names: tuple[str, ...]) -> None:
    values = (PIXELS, LABELS, PIXELS[:2], LABELS[:2, None])
    splits, _ = found(tmp_path, **dict(zip(names, values, strict=True)))
    assert {split: [p.label for p in pictures] for split, pictures in splits.items()} == {
        "train": [4, 2, 4, 0, 2],
        "test": [4, 2],
    }


def test_colour_text_labels_and_leftovers(tmp_path: Path) -> None:
    colour = np.zeros((2, 3, 7, 3), dtype=np.uint8)
    splits, notes = found(tmp_path, images=colour, labels=np.array(["cat", "eel"]), mean=np.zeros(3))
    assert [(p.label, p.grey) for p in splits[None]] == [("cat", False), ("eel", False)]
    assert notes == [
        "'set.npz/mean' is left out, it is neither pictures nor labels; name arrays x_train and y_train, "
        "x_test and y_test, or images and labels"
    ]


@pytest.mark.parametrize("listed", ["class_names", "label_names", "classes", "target_names"])
def test_an_array_of_names_names_the_classes(tmp_path: Path, listed: str) -> None:
    names = np.array(["zebra", "ant", "bee", "cat", "eel"])
    values = {"x_train": PIXELS, "y_train": LABELS, "x_test": PIXELS[:1], "y_test": LABELS[:1]}
    splits, _ = found(tmp_path, **values, **{listed: names.astype("S") if listed == "classes" else names})
    assert [p.label for p in splits["train"]] == ["eel", "bee", "eel", "zebra", "bee"]
    assert [p.label for p in splits["test"]] == ["eel"]
    with pytest.raises(ValueError, match=r"has the label 4, set\.npz/class_names names 0 to 3"):
        found(tmp_path, x=PIXELS, y=LABELS, class_names=names[:4])
    with pytest.raises(ValueError, match="two classes have the same name"):
        found(tmp_path, x=PIXELS, y=LABELS, class_names=np.array(["a"] * 5))
    with pytest.raises(ValueError, match="name classes in different ways"):
        found(tmp_path, x=PIXELS, y=LABELS, class_names=names, target_names=names[::-1])


@pytest.mark.parametrize("labels", [np.array(["a", "b"] * 2), np.array([b"a", b"b"] * 2), np.array([False, True] * 2)])
def test_labels_of_other_types(tmp_path: Path, labels: np.ndarray) -> None:
    splits, _ = found(tmp_path, x=PIXELS[:4], label_names=labels)
    assert [p.label for p in splits[None]] == [0, 1, 0, 1] if labels.dtype == bool else ["a", "b", "a", "b"]


def test_npy_without_labels(tmp_path: Path) -> None:
    for name in ("holiday", "garden"):
        np.save(tmp_path / f"{name}.npy", PIXELS)
    pictures, _, _ = arrays_as_pictures([document(tmp_path / "garden.npy"), document(tmp_path / "holiday.npy")])
    assert [(p.split, p.label) for p in pictures] == [(None, None)] * 10
    assert (pictures[0].name, pictures[9].name) == ("garden.npy#0", "holiday.npy#4")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": PIXELS / 255}, "set.npz/x: pixels are float64, needs uint8 from 0 to 255"),
        ({"x": PIXELS.reshape(5, 21)}, r"shape \(5, 21\), needs pictures x rows x columns"),
        ({"x": PIXELS[None].repeat(2, 0)}, r"shape \(2, 5, 3, 7\), needs .* 1 or 3 channels; reshape it"),
        ({"x": PIXELS, "y": LABELS[:4]}, r"set.npz/y: labels of shape \(4,\), needs one for each of 5 pictures"),
        ({"x": PIXELS, "y": LABELS / 2}, "labels are float64, needs integers or text"),
        ({"y": LABELS}, "set.npz: there are no pictures; name arrays x_train"),
        ({"x": PIXELS, "images": PIXELS, "y": LABELS}, "not clear which labels belong to which pictures"),
        ({"y_test": LABELS, "x": PIXELS}, "not clear which labels belong to which pictures: set.npz/y_test"),
        ({"x_train": PIXELS, "y_train": LABELS, "x_test": PIXELS}, "set.npz/x_test#0 has no label, others have"),
    ],
)
def test_arrays_that_are_no_pictures(tmp_path: Path, arrays: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        found(tmp_path, **arrays)


def test_no_pickle_is_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}, 3], dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps([1, 2]))
    for name in "ab":
        with pytest.raises(ValueError, match=f"{name}.npy: it holds Python objects, or is damaged; pickles can run"):
            arrays_as_pictures([document(tmp_path / f"{name}.npy")])


def test_damaged_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x=PIXELS)
    data = bytearray((tmp_path / "set.npz").read_bytes())
    data[zipfile.ZipFile(tmp_path / "set.npz").infolist()[0].file_size // 2] ^= 1
    (tmp_path / "set.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"set\.npz: damaged, or not what its name says"):
        arrays_as_pictures([document(tmp_path / "set.npz")])
