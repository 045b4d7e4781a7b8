import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest

from perceivers.data.picture_store import PictureStore
from perceivers.data.prepare import Choices
from perceivers.data.prepare_pictures import prepare_pictures

Image = pytest.importorskip("PIL.Image")


def pictures(count: int, *, seed: int = 0, size: tuple[int, int] = (5, 7)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *size), dtype=np.uint8)


def save(path: Path, *, seed: int, size: tuple[int, int] = (5, 7), colour: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = pictures(3, seed=seed, size=size)
    Image.fromarray(pixels.transpose(1, 2, 0) if colour else pixels[0]).save(path)


def test_arrays_with_training_and_test_lend_validation_a_twelfth(tmp_path: Path) -> None:
    train, test = pictures(24), pictures(3, seed=1)
    labels = np.arange(24) % 3 + 5
    np.savez(tmp_path / "set.npz", x_train=train, y_train=labels, x_test=test, y_test=np.array([5, 6, 9]))
    summary = prepare_pictures([tmp_path / "set.npz"], tmp_path / "store", command="the command")
    store = PictureStore.open(tmp_path / "store")
    assert (store.shape, store.classes) == ((5, 7, 1), ("5", "6", "7", "9"))
    assert summary.splits == {"train": 22, "validation": 2, "test": 3}
    assert (store.header.source, store.header.command) == ("set.npz", "the command")
    assert np.array_equal(store.split("test").pixels[..., 0], test)
    assert store.split("test").labels.tolist() == [0, 1, 3]
    split = store.split("train")
    places = [int(np.flatnonzero((train == picture[..., 0]).all((1, 2)))[0]) for picture in split.pixels]
    assert places == sorted(places)
    assert split.labels.tolist() == [place % 3 for place in places]
    text = "\n".join(summary.lines())
    assert f"store: picture store {store.fingerprint}, made in" in text
    assert "  train             22 pictures 5 x 7, grey, 4 classes" in text
    assert "there was no validation split: 2 of 24 training pictures, by a hash, are it now" in text
    assert "class '9' has no training picture" in text
    again = prepare_pictures([tmp_path / "set.npz"], tmp_path / "again")
    assert again.fingerprint == summary.fingerprint


def test_folders_of_one_size(tmp_path: Path) -> None:
    for seed, name in enumerate(("train/eel/1.png", "train/cat/1.png", "val/cat/1.png", "test/eel/1.png")):
        save(tmp_path / "pets" / name, seed=seed, colour=seed == 2)
    summary = prepare_pictures([tmp_path / "pets"], tmp_path / "store")
    assert (summary.shape, summary.classes) == ((5, 7, 3), ("cat", "eel"))
    assert summary.splits == {"train": 2, "validation": 1, "test": 1}
    assert summary.notes == [
        "splits as the folders say: test, train, val",
        "few pictures (train 2, validation 1, test 1): scores on fewer than 10 say little about others",
    ]
    store = PictureStore.open(tmp_path / "store")
    assert store.split("train").labels.tolist() == [0, 1]
    assert np.array_equal(store.split("train").pixels[1, ..., 2], pictures(3, seed=0)[0])  # grey became colour


def test_photos_of_several_sizes(tmp_path: Path) -> None:
    for seed in range(9):
        save(tmp_path / "photos" / f"{seed}.jpg", seed=seed, size=(13 + seed, 17))
    with pytest.raises(
        ValueError, match=r"differ in size: 0\.jpg has 13 x 17 pixels, 1\.jpg 14 x 17; give --size ROWS COLUMNS"
    ):
        prepare_pictures([tmp_path / "photos"], tmp_path / "store")
    with pytest.raises(ValueError, match=r"size=\(0, 7\) must be rows and columns"):
        prepare_pictures([tmp_path / "photos"], tmp_path / "store", size=(0, 7))
    assert not (tmp_path / "store").exists()
    summary = prepare_pictures([tmp_path / "photos"], tmp_path / "store", size=(15, 11))
    assert summary.shape == (15, 11, 3)
    assert summary.classes is None
    assert sum(summary.splits.values()) == 9
    assert set(summary.splits) == {"train", "validation", "test"}
    assert "2 pictures are smaller than 15 x 11 and were enlarged" in summary.notes
    assert "splits by a hash of the name: 90 % train, 5 % validation, 5 % test" in summary.notes


def test_broken_pictures_are_counted_and_equal_ones_named(tmp_path: Path) -> None:
    for seed, name in enumerate(("train/a.png", "val/e.png", "test/b.png", "train/f.png")):
        save(tmp_path / name, seed=seed % 2 if seed < 3 else 7)
    (tmp_path / "train" / "c.png").write_text("no picture")
    data = (tmp_path / "train" / "a.png").read_bytes()
    (tmp_path / "train" / "d.png").write_bytes(data[:-30])
    summary = prepare_pictures([tmp_path], tmp_path / "store")
    assert [name for name, _ in summary.skipped] == ["train/c.png", "train/d.png"]
    lines = "\n".join(summary.lines(examples=1))
    assert "2 pictures could not be used:\n  train/c.png: cannot be read as a picture" in lines
    assert "1 pictures were left out, because the same are held out too:" in lines
    assert "train/a.png (train) = test/b.png (test)" in lines
    assert summary.splits == {"train": 1, "validation": 1, "test": 1}


@pytest.mark.parametrize("content", [b"", b"begin"])
def test_nothing_that_can_be_used(tmp_path: Path, content: bytes) -> None:
    save(tmp_path / "a" / "1.png", seed=0)
    data = (tmp_path / "a" / "1.png").read_bytes()
    for name in "12":
        (tmp_path / "a" / f"{name}.png").write_bytes(content and data[:50])
    with pytest.raises(ValueError, match=r"none of 2 pictures could be used; the first, 1\.png: cannot be read"):
        prepare_pictures([tmp_path / "a"], tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_no_pickles_and_no_mixtures(tmp_path: Path) -> None:
    (tmp_path / "mnist.pkl.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(ValueError, match=r"mnist\.pkl\.gz: a pickle, which can run any program .* numpy\.savez"):
        prepare_pictures([tmp_path], tmp_path / "store")
    np.save(tmp_path / "a.npy", pictures(2))
    save(tmp_path / "b.png", seed=0)
    with pytest.raises(ValueError, match=r"both arrays \(a\.npy\) and picture files \(b\.png\)"):
        prepare_pictures([tmp_path], tmp_path / "store")
    with pytest.raises(ValueError, match=r"no file there ends in \.npz or \.npy or"):
        prepare_pictures([_empty(tmp_path)], tmp_path / "store")


@pytest.mark.parametrize("name", ["bad.npy", "bad.npz", "x_train.npy", "train-images-idx3-ubyte", "labels.npz"])
@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\1\0\xff\xff", b"PK\3\4", bytes(range(256))])
def test_a_damaged_array_keeps_no_picture_back(tmp_path: Path, name: str, content: bytes) -> None:
    for number in range(7):
        save(tmp_path / "in" / f"{number}.png", seed=number)
    (tmp_path / "in" / name).write_bytes(content)
    summary = prepare_pictures([tmp_path / "in"], tmp_path / "store")
    assert sum(summary.splits.values()) == 7
    assert [skipped for skipped, _ in summary.skipped] == [name]


def _empty(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_the_place_is_refused_before_the_work(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pictures(5))
    prepare_pictures([tmp_path / "a.npy"], tmp_path / "store")
    with pytest.raises(FileExistsError, match="a picture store is there already"):
        prepare_pictures([tmp_path / "nowhere"], tmp_path / "store")
    np.save(tmp_path / "a.npy", pictures(2))
    prepare_pictures([tmp_path / "a.npy"], tmp_path / "store", overwrite=True)
    assert PictureStore.open(tmp_path / "store").splits == ("train",)


@pytest.mark.parametrize("broken", range(4))
def test_a_picture_that_cannot_be_used_empties_no_split(tmp_path: Path, broken: int) -> None:
    for index in range(4):
        save(tmp_path / "d" / f"{index}.png", seed=index)
    path = tmp_path / "d" / f"{broken}.png"
    path.write_bytes(path.read_bytes()[:-30])
    summary = prepare_pictures([tmp_path / "d"], tmp_path / "store")
    assert summary.splits == {"train": 1, "validation": 1, "test": 1}
    assert [name for name, _ in summary.skipped] == [f"{broken}.png"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train/a.png", "test/b.png"), r"nothing is left for training: its pictures cannot be used"),
        (("x.npy", "x_test.npy"), r"x\.npy#0 has no split, others have: name .* --split-by hash"),
    ],
)
def test_splits_that_train_nothing_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    for seed, name in enumerate(names):
        if name.endswith(".npy"):
            tmp_path.joinpath("d").mkdir(exist_ok=True)
            np.save(tmp_path / "d" / name, pictures(3, seed=seed))
        else:
            save(tmp_path / "d" / name, seed=3)  # the same
    with pytest.raises(ValueError, match=message):
        prepare_pictures([tmp_path / "d"], tmp_path / "store")
    summary = prepare_pictures([tmp_path / "d"], tmp_path / "store", choices=Choices(split_by="hash"))
    assert "train" in summary.splits
    assert summary.classes is None


def test_what_is_held_out_alone_makes_a_store_to_evaluate_on(tmp_path: Path) -> None:
    for seed, name in enumerate(("test/a/1.png", "test/b/2.png")):
        save(tmp_path / name, seed=seed)
    assert prepare_pictures([tmp_path], tmp_path / "store").splits == {"test": 2}


def test_pictures_beside_folders_of_classes_are_told(tmp_path: Path) -> None:
    for seed, name in enumerate(("train/a/1.png", "train/b/2.png", "train/b/3.png", "test/4.png")):
        save(tmp_path / name, seed=seed)
    summary = prepare_pictures([tmp_path], tmp_path / "store")
    assert summary.classes is None
    assert "there are no classes: test/4.png lies in no folder of a class, others do (a, b)" in summary.notes


@pytest.mark.parametrize("content", [b"no picture", None])
def test_a_given_split_that_loses_all_pictures_is_told(tmp_path: Path, content: bytes | None) -> None:
    """Files that are no pictures, and one that breaks off."""
    for seed, name in enumerate(("train/1.png", "train/2.png", "train/3.png", "val/1.png", "test/1.png")):
        save(tmp_path / name, seed=seed)
    broken = tmp_path / "test/1.png"
    broken.write_bytes(broken.read_bytes()[:60] if content is None else content)
    summary = prepare_pictures([tmp_path], tmp_path / "store")
    assert summary.splits == {"train": 3, "validation": 1}
    assert "no picture is left for test" in summary.notes


def test_published_layouts_of_one_array_a_file(tmp_path: Path) -> None:
    for split, count in (("train", 12), ("Test", 2)):
        np.save(tmp_path / f"X_{split}.npy", pictures(count, seed=count))
        np.save(tmp_path / f"y_{split}.npy", np.arange(count) % 2)
    summary = prepare_pictures([tmp_path], tmp_path / "store")
    assert summary.splits == {"train": 11, "validation": 1, "test": 2}
    assert summary.classes == ("0", "1")


def test_one_damaged_array_does_not_stop_the_others(tmp_path: Path) -> None:
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", pictures(5, seed=ord(name)))
    np.save(tmp_path / "floats.npy", np.zeros((5, 7, 3)))
    (tmp_path / "damaged.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': (((((")
    (tmp_path / "archive.npz").write_bytes(b"PK\x03\x04")
    with zipfile.ZipFile(tmp_path / "bytes.npz", "w") as archive:
        archive.writestr("x_train", "no array")
    summary = prepare_pictures([tmp_path], tmp_path / "store")
    assert sum(summary.splits.values()) == 15
    assert sorted(name for name, _ in summary.skipped) == ["archive.npz", "bytes.npz", "damaged.npy", "floats.npy"]
    np.save(tmp_path / "y.npy", np.zeros(5, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"y\.npy: it holds Python objects"):  # labels that are missed
        prepare_pictures([tmp_path], tmp_path / "again")


def test_arrays_that_unpack_to_more_than_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pictures(5))
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros((3, 1024, 1024), np.uint8))
    (tmp_path / "b-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x03" + bytes(3 * 2**20)))
    summary = prepare_pictures([tmp_path], tmp_path / "store", choices=Choices(unpacked_mb=2))
    assert sum(summary.splits.values()) == 5
    assert {name for name, reason in summary.skipped if "more than 2; --unpacked-mb" in reason} == {
        "b-ubyte.gz",
        "bomb.npz",
    }


def test_equal_pictures_stay_in_one_split(tmp_path: Path) -> None:
    black = np.zeros((5, 7), np.uint8)
    np.save(tmp_path / "a.npy", np.stack([black] * 9))
    assert prepare_pictures([tmp_path / "a.npy"], tmp_path / "one").splits == {"train": 9}
    np.save(tmp_path / "b.npy", np.concatenate([pictures(3), pictures(3), pictures(3), pictures(3)]))
    summary = prepare_pictures([tmp_path], tmp_path / "more")
    assert sum(summary.splits.values()) == 21
    store = PictureStore.open(tmp_path / "more")
    kinds = [{picture.tobytes() for picture in store.split(split).pixels} for split in store.splits]
    assert sum(map(len, kinds)) == len(set.union(*kinds)) == 4
