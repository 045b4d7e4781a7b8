"""Pictures in arrays: IDX files (MNIST's format), .npz and .npy."""

import gzip
import io
import math
import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import UInt8

from perceivers.data.picture_files import Picture
from perceivers.data.sources import SPLIT_FOLDERS, Document

__all__ = ["ARRAY_ENDINGS", "arrays_as_pictures", "read_idx"]

ARRAY_ENDINGS = (".npz", ".npy", "-ubyte", "-ubyte.gz")

SPLIT_WORDS = SPLIT_FOLDERS | {"training": "train", "t10k": "test", "testing": "test"}
PICTURE_WORDS = {"x", "image", "images", "picture", "pictures", "pixels", "data"}
LABEL_WORDS = {"y", "label", "labels", "target", "targets", "class", "classes"}
NAMES = "name arrays x_train and y_train, x_test and y_test, or images and labels"

IDX_UBYTE = 8
"""Code of unsigned bytes in an IDX file."""


def arrays_as_pictures(documents: Sequence[Document]) -> tuple[list[Picture], list[str]]:
    """All pictures of all arrays; names say which array is what: x_train, train_images, t10k-labels-idx1-ubyte, ...

    Args:
        documents: IDX, .npz and .npy files.

    Returns:
        Pictures, and notes for the user.

    Raises:
        ValueError: A file is damaged, arrays are not pictures or labels, or don't fit each other.
    """
    names = {document.name for document in documents}
    found: dict[tuple[str | None, str], list[tuple[str, np.ndarray]]] = defaultdict(list)
    notes = []
    for document in documents:
        if document.name.endswith(".gz") and document.name.removesuffix(".gz") in names:
            continue  # the same, packed
        for name, array in _read(document).items():
            split, what = _meaning(name)
            what = what or ("pictures" if array.ndim >= 3 else None)
            if what is None:
                notes.append(f"{name!r} is left out, it is neither pictures nor labels; {NAMES}")
            else:
                found[split or document.split, what].append((name, array))
    if not any(what == "pictures" for _, what in found):
        raise ValueError(f"{documents[0].name}: there are no pictures; {NAMES}")
    pictures = []
    for split in dict.fromkeys(split for split, _ in found):
        pictures += _pictures(split, found[split, "pictures"], found[split, "labels"])
    without = [picture for picture in pictures if picture.label is None]
    if without and len(without) < len(pictures):
        raise ValueError(f"{without[0].name} has no label, others have; give labels for all pictures, or for none")
    return pictures, notes


def read_idx(data: bytes, *, name: str) -> UInt8[np.ndarray, "*shape"]:
    """The array of an IDX file, which may be packed with gzip.

    Raises:
        ValueError: It is damaged, or holds something else than bytes.
    """
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{name}: damaged, it cannot be unpacked ({error})") from error
    if len(data) < 4 or data[:2] != b"\0\0":
        raise ValueError(f"{name}: not an IDX file, it does not begin with two zero bytes")
    if data[2] != IDX_UBYTE:
        raise ValueError(f"{name}: holds values of type {data[2]:#04x}, needs bytes ({IDX_UBYTE:#04x})")
    begin = 4 + 4 * data[3]
    shape = tuple(int(size) for size in np.frombuffer(data[4:begin], dtype=">u4", count=len(data[4:begin]) // 4))
    if len(shape) < data[3] or len(data) - begin != math.prod(shape):
        raise ValueError(f"{name}: damaged: {len(data):,} bytes, which do not fit the sizes that it names, {shape}")
    return np.frombuffer(data, dtype=np.uint8, offset=begin).reshape(shape)


def _read(document: Document) -> dict[str, np.ndarray]:
    """The arrays of a file by name."""
    name, data = document.name, document.read()
    if not name.lower().endswith((".npz", ".npy")):
        return {name: read_idx(data, name=name)}
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {name: loaded}
        return {f"{name}/{key}": loaded[key] for key in loaded.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error):
            raise ValueError(
                f"{name}: it holds Python objects, or is damaged; pickles can run programs, so none is opened: "
                "save the arrays again as numbers, uint8 for pictures"
            ) from error
        raise ValueError(f"{name}: damaged, or not what its name says ({error})") from error


def _meaning(name: str) -> tuple[str | None, str | None]:
    """The split of an array, and whether it is "pictures" or "labels", as far as its name says."""
    words = re.split(r"[^a-z0-9]+", PurePosixPath(name.lower()).name)
    splits = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
    labels, pictures = LABEL_WORDS.intersection(words), PICTURE_WORDS.intersection(words)
    return splits[0] if splits else None, "labels" if labels else "pictures" if pictures else None


def _pictures(
    split: str | None, arrays: list[tuple[str, np.ndarray]], labels: list[tuple[str, np.ndarray]]
) -> list[Picture]:
    if labels and (len(labels), len(arrays)) != (1, 1):
        names = ", ".join(name for name, _ in arrays + labels)
        raise ValueError(f"it is not clear which labels belong to which pictures: {names}; {NAMES}")
    pictures = []
    for name, array in arrays:
        pixels = _as_pixels(array, name)
        classes = _as_labels(labels[0][1], labels[0][0], count=len(pixels)) if labels else [None] * len(pixels)
        _, rows, columns, channels = pixels.shape
        pictures += [
            Picture(
                name=f"{name}#{row}",
                split=split,
                label=label,
                size=(rows, columns),
                grey=channels == 1,
                read=pixels[row].view,
            )
            for row, label in enumerate(classes)
        ]
    return pictures


def _as_pixels(array: np.ndarray, name: str) -> UInt8[np.ndarray, "pictures rows columns channels"]:
    if array.dtype != np.uint8:
        raise ValueError(f"{name}: pixels are {array.dtype}, needs uint8 from 0 to 255; save them again as that")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or 0 in array.shape:
        raise ValueError(
            f"{name}: shape {array.shape}, needs pictures x rows x columns, or those x 1 or 3 channels; reshape it"
        )
    return array


def _as_labels(array: np.ndarray, name: str, *, count: int) -> list[int] | list[str]:
    if array.size != count or array.shape[0] != count:
        raise ValueError(f"{name}: labels of shape {array.shape}, needs one for each of {count} pictures")
    if array.dtype.kind not in "iuU":
        raise ValueError(f"{name}: labels are {array.dtype}, needs integers or text")
    return array.reshape(-1).tolist()
