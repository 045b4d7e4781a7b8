"""Pictures in arrays: IDX files (MNIST's format), .npz and .npy."""

import gzip
import io
import math
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import UInt8

from perceivers.data.picture_files import Picture
from perceivers.data.sources import UNPACKED_MB, Document, check_unpacked
from perceivers.data.splits import split_named, words_of

__all__ = ["ARRAY_ENDINGS", "arrays_as_pictures", "arrays_without_labels", "read_arrays", "read_idx"]

ARRAY_ENDINGS = (".npz", ".npy", "-ubyte", "-ubyte.gz")

PICTURE_WORDS = {"x", "image", "images", "img", "imgs", "picture", "pictures", "pixels", "data"}
LABEL_WORDS = {"y", "label", "labels", "target", "targets", "class", "classes", "category", "categories"}
NAME_WORDS = {"name", "names", "classes", "categories"}
NAMES = "name arrays x_train and y_train, x_test and y_test, or images and labels"

IDX_UBYTE = 8
"""Code of unsigned bytes in an IDX file."""


def arrays_as_pictures(
    documents: Sequence[Document],
) -> tuple[list[Picture], list[tuple[str, str]], list[str]]:
    """All pictures of all arrays; names say which array is what: x_train, train_images, t10k-labels-idx1-ubyte, ...

    Args:
        documents: IDX, .npz and .npy files.

    Returns:
        Pictures; files and arrays that are none, though no name says what they should be, and why; notes for the user.

    Raises:
        ValueError: A file is damaged, arrays are not pictures or labels, or don't fit each other.
    """
    found: dict[tuple[str | None, str], list[tuple[str, np.ndarray]]] = defaultdict(list)
    skipped: list[tuple[str, str]] = []
    notes: list[str] = []
    for document in _unpacked_once(documents):
        try:
            arrays = read_arrays(document)
        except (ValueError, OSError) as error:
            if _meaning(document.name)[1]:  # what it belongs to is of no use without it
                raise
            skipped.append((document.name, str(error).removeprefix(f"{document.name}: ")))
            continue
        for name, array in arrays.items():
            split, what = _meaning(name)
            if what is None and array.ndim < 3:
                notes.append(f"{name!r} is left out, it is neither pictures nor labels; {NAMES}")
            elif what is None and (reason := _why_no_pixels(array)):
                skipped.append((name, reason))
            else:
                found[split or document.split, what or "pictures"].append((name, array))
    if not any(what == "pictures" for _, what in found):
        raise ValueError(": ".join(skipped[0]) if skipped else f"{documents[0].name}: there are no pictures; {NAMES}")
    names = _class_names(found)
    pictures: list[Picture] = []
    for split in dict.fromkeys(split for split, _ in found):
        pictures += _pictures(split, found[split, "pictures"], found[split, "labels"])
    pictures = _named(pictures, names)
    without = [picture for picture in pictures if picture.label is None]
    if without and len(without) < len(pictures):
        raise ValueError(f"{without[0].name} has no label, others have; give labels for all pictures, or for none")
    return pictures, skipped, notes


def arrays_without_labels(documents: Sequence[Document]) -> tuple[list[Picture], list[tuple[str, str]]]:
    """All pictures of all arrays, whatever the labels beside them are.

    Args:
        documents: IDX, .npz and .npy files.

    Returns:
        Pictures; and files and arrays that can't be read, or are not the pictures that their names say, and why.
    """
    pictures: list[Picture] = []
    skipped: list[tuple[str, str]] = []
    for document in _unpacked_once(documents):
        try:
            arrays = read_arrays(document)
        except (ValueError, OSError) as error:
            skipped.append((document.name, str(error).removeprefix(f"{document.name}: ")))
            continue
        for name, array in arrays.items():
            split, what = _meaning(name)
            if what == "labels" or (what is None and array.ndim < 3):
                continue
            if reason := _why_no_pixels(array):
                skipped.append((name, reason))
            else:
                pictures += _pictures(split or document.split, [(name, array)], [])
    return pictures, skipped


def _unpacked_once(documents: Sequence[Document]) -> list[Document]:
    """The documents without those that are there unpacked, too."""
    names = {document.name for document in documents}
    return [d for d in documents if not (d.name.endswith(".gz") and d.name.removesuffix(".gz") in names)]


def _class_names(found: dict[tuple[str | None, str], list[tuple[str, np.ndarray]]]) -> dict[str, list[str]]:
    """Take out arrays of text that name the classes 0, 1, ... of labels which are numbers."""
    labels = [entry for (_, what), entries in found.items() if what == "labels" for entry in entries]
    if not any(array.dtype.kind in "iu" for _, array in labels):
        return {}
    names = {
        name: _as_text(array)
        for name, array in labels
        if array.dtype.kind in "US" and array.ndim == 1 and words_of(_stem(name)) & NAME_WORDS
    }
    for key, entries in found.items():
        found[key] = [(name, array) for name, array in entries if name not in names]
    return names


def _stem(name: str) -> str:
    return PurePosixPath(name).name.removesuffix(".npy")


def _named(pictures: list[Picture], names: dict[str, list[str]]) -> list[Picture]:
    """Pictures with the names of their classes in place of numbers.

    Raises:
        ValueError: Several arrays name classes otherwise, or one has no name for a number, or one name for two.
    """
    if not names or not all(isinstance(picture.label, int) for picture in pictures):
        return pictures
    (source, classes), *others = names.items()
    if other := [name for name, listed in others if listed != classes]:
        raise ValueError(f"{source} and {other[0]} name classes in different ways; keep the one that is right")
    if len(set(classes)) < len(classes):
        raise ValueError(f"{source}: two classes have the same name; name each otherwise, or leave the array out")
    named = []
    for picture in pictures:
        if not 0 <= int(picture.label or 0) < len(classes):
            raise ValueError(f"{picture.name} has the label {picture.label}, {source} names 0 to {len(classes) - 1}")
        named.append(replace(picture, label=classes[int(picture.label or 0)]))
    return named


def read_idx(data: bytes, *, name: str, unpacked_mb: int = UNPACKED_MB) -> UInt8[np.ndarray, "*shape"]:
    """The array of an IDX file, which may be packed with gzip.

    Raises:
        ValueError: It is damaged, or holds something else than bytes.
    """
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(unpacked_mb * 2**20 + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{name}: damaged, it cannot be unpacked ({error})") from error
        check_unpacked(len(data), unpacked_mb)
    if len(data) < 4 or data[:2] != b"\0\0":
        raise ValueError(f"{name}: not an IDX file, it does not begin with two zero bytes")
    if data[2] != IDX_UBYTE:
        raise ValueError(f"{name}: holds values of type {data[2]:#04x}, needs bytes ({IDX_UBYTE:#04x})")
    begin = 4 + 4 * data[3]
    shape = tuple(int(size) for size in np.frombuffer(data[4:begin], dtype=">u4", count=len(data[4:begin]) // 4))
    if len(shape) < data[3] or len(data) - begin != math.prod(shape):
        raise ValueError(f"{name}: damaged: {len(data):,} bytes, which do not fit the sizes that it names, {shape}")
    return np.frombuffer(data, dtype=np.uint8, offset=begin).reshape(shape)


def read_arrays(document: Document) -> dict[str, np.ndarray]:
    """The arrays of a file by name."""
    name, data = document.name, document.read()
    if not name.lower().endswith((".npz", ".npy")):
        return {name: read_idx(data, name=name, unpacked_mb=document.unpacked_mb)}
    try:
        if name.lower().endswith(".npz"):
            for member in zipfile.ZipFile(io.BytesIO(data)).infolist():
                check_unpacked(member.file_size, document.unpacked_mb)
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {name: loaded}
        arrays = {f"{name}/{key}": loaded[key] for key in loaded.files}
        if wrong := [key for key, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{wrong[0]} is no array")
        return arrays
    except Exception as error:  # damaged headers raise all sorts of things
        if "pickle" in str(error):
            raise ValueError(
                f"{name}: it holds Python objects, or is damaged; pickles can run programs, so none is opened: "
                "save the arrays again as numbers, uint8 for pictures"
            ) from error
        raise ValueError(f"{name}: damaged, or not what its name says ({error})") from error


def _meaning(name: str) -> tuple[str | None, str | None]:
    """The split of an array, and whether it is "pictures" or "labels", as far as its name says."""
    own, around = PurePosixPath(name).name, PurePosixPath(name).parent.name  # the .npz, or the folder
    split = split_named(own) or (split_named(around) if around.lower().endswith(".npz") else None)
    for known in (words_of(own), words_of(around) - {"data"}):
        if what := "labels" if known & LABEL_WORDS else "pictures" if known & PICTURE_WORDS else None:
            return split, what
    return split, None


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
    if reason := _why_no_pixels(array):
        raise ValueError(f"{name}: {reason}")
    return array[..., None] if array.ndim == 3 else array


def _why_no_pixels(array: np.ndarray) -> str | None:
    if array.dtype != np.uint8:
        return f"pixels are {array.dtype}, needs uint8 from 0 to 255; save them again as that"
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[-1] not in (1, 3)) or 0 in array.shape:
        return f"shape {array.shape}, needs pictures x rows x columns, or those x 1 or 3 channels; reshape it"
    return None


def _as_labels(array: np.ndarray, name: str, *, count: int) -> list[int] | list[str]:
    if array.size != count or array.shape[0] != count:
        raise ValueError(f"{name}: labels of shape {array.shape}, needs one for each of {count} pictures")
    if array.dtype.kind not in "iubUS":
        raise ValueError(f"{name}: labels are {array.dtype}, needs integers or text")
    if array.dtype.kind in "US":
        return _as_text(array.reshape(-1))
    return [int(label) for label in array.reshape(-1)]


def _as_text(array: np.ndarray) -> list[str]:
    return [text.decode("utf-8", "replace") if isinstance(text, bytes) else text for text in array.tolist()]
