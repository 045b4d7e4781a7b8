"""The picture store: pictures of one size and their labels on disk, memory-mapped, or in memory.

A store is a directory that is written once and then only read:

    header.json      shape, names of the classes, and per split the count, file sizes and checksums
    train.pixels     uint8, pictures x rows x columns x channels
    train.labels     little-endian int64, one a picture: its class; not there if there are no classes
    ...              the same files for every other split
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from perceivers.data.header import FileRecord, check_sizes, check_sums, damaged, no_store, store_kind
from perceivers.data.new_directory import HashedFile, NewDirectory, restore, write_synced
from perceivers.data.picture_header import KIND, PictureHeader, PictureSplitRecord
from perceivers.data.splits import SPLITS, split_in

__all__ = ["PictureSplit", "PictureStore", "PictureWriter"]

HEADER, PIXELS, LABELS = "header.json", ".pixels", ".labels"

CHECKSUM_LIMIT = 2**30
"""Stores below this many bytes have their checksums verified whenever they are opened."""

Pixels = UInt8[np.ndarray, "pictures rows columns channels"] | Float32[np.ndarray, "pictures rows columns channels"]

Arrays = tuple[Pixels, Int64[np.ndarray, " labels"] | None]
"""Pixels and labels."""


@dataclass(frozen=True)
class PictureSplit:
    """The pictures of one split; `len(split)` counts them."""

    name: str
    pixels: Pixels
    labels: Int64[np.ndarray, " pictures"] | None
    """The class of each, counted from 0; None where nothing is known."""

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns and channels of a picture."""
        rows, columns, channels = self.pixels.shape[1:]
        return rows, columns, channels


@dataclass(frozen=True)
class PictureStore:
    """Pictures by split; `PictureStore.open(path)` or `PictureStore.in_memory(...)` makes it."""

    path: Path | None
    """Where it lies; None in memory."""
    header: PictureHeader
    arrays: Mapping[str, PictureSplit]
    numbered_as: tuple[str, ...] | None = None
    """Names of the labels where `renumbered` changed their numbers."""

    @classmethod
    def open(cls, path: str | Path) -> "PictureStore":
        """Open the store at `path` after checking its files' sizes, and their checksums if it is below 1 GiB.

        Raises:
            FileNotFoundError: There is no store, or one of its files is missing.
            ValueError: `path` is something else, or a file is damaged; the message says which and how.
        """
        path = Path(path)
        restore(path)
        if not (path / HEADER).is_file():
            raise no_store(path)
        header = PictureHeader.read(path / HEADER)
        check_sizes(path, header.files)
        if sum(record.num_bytes for record in header.files.values()) < CHECKSUM_LIMIT:
            check_sums(path, header.files)
        return cls(path, header, {name: _mapped(path, header, name) for name in header.splits})

    @staticmethod
    def is_at(path: str | Path) -> bool:
        """Whether the header at `path`, if there is one, says that this is a picture store."""
        restore(Path(path))
        return store_kind(Path(path) / HEADER) == KIND

    @classmethod
    def in_memory(
        cls, splits: Mapping[str, Arrays], *, classes: Sequence[str] | None = None, source: str | None = None
    ) -> "PictureStore":
        """A store of arrays, with the fingerprint that it would have on disk.

        Args:
            splits: Pixels and labels by the split's name, usually "train", "validation", "test". Pixels may be float32,
                too; they then reach models as they are.
            classes: Names of the labels 0, 1, ...; None where there are no labels.
            source: Noted in the header.

        Raises:
            ValueError: There is no picture, pictures differ in shape, or labels don't fit `classes`.
        """
        names = None if classes is None else tuple(classes)
        shape, records, arrays = None, {}, {}
        for name, (pixels, labels) in splits.items():
            shape = pixels.shape[1:] if shape is None else shape
            _check_pictures(name, pixels, labels, shape=shape, classes=names, dtypes=(np.uint8, np.float32))
            arrays[name] = PictureSplit(name, pixels, labels)
            data = {PIXELS: np.ascontiguousarray(pixels)}
            if labels is not None:
                data[LABELS] = np.ascontiguousarray(labels.astype("<i8", copy=False))
            files = {
                name + suffix: FileRecord(num_bytes=array.nbytes, sha256=hashlib.sha256(array.data).hexdigest())
                for suffix, array in data.items()
            }
            records[name] = PictureSplitRecord(pictures=len(pixels), files=files)
        if shape is None:
            raise ValueError("there are no pictures: give at least one split")
        return cls(None, PictureHeader(shape=shape, classes=names, splits=records, source=source), arrays)

    @property
    def tokenizer(self) -> str:
        """What kind of store this is, where others say what made their ids."""
        return "pictures"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns and channels of every picture."""
        return self.header.shape

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the labels 0, 1, ...; None where there are no labels."""
        return self.header.classes if self.numbered_as is None else self.numbered_as

    def renumbered(self, classes: tuple[str, ...] | None) -> "PictureStore":
        """The same pictures with labels numbered as `classes` are, by their names; None for any numbers.

        Raises:
            ValueError: A class of the store has another name, or one that several of `classes` have.
        """
        own = self.classes
        if own is None or classes is None or own == classes:
            return self
        if other := [name for name in own if classes.count(name) != 1]:
            raise ValueError(
                f"classes by name: {self.path} has {_listed(other)}, which the model does not know, or knows "
                f"several times; its own are {_listed(classes)}"
            )
        order = np.array([classes.index(name) for name in own])
        arrays = {
            name: split if split.labels is None else replace(split, labels=order[split.labels])
            for name, split in self.arrays.items()
        }
        return replace(self, arrays=arrays, numbered_as=classes)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.header.splits)

    @property
    def fingerprint(self) -> str:
        """16 hex digits: a run records them, and so notices on resume that its data changed."""
        return self.header.fingerprint

    def split(self, name: str) -> PictureSplit:
        """The pictures of split `name`.

        Raises:
            ValueError: There is no such split.
        """
        name = split_in(name, self.splits)
        if name not in self.arrays:
            place = "the pictures" if self.path is None else self.path
            raise ValueError(f"{place}: no split {name!r}; it has {', '.join(self.splits)}")
        return self.arrays[name]


def _listed(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _mapped(path: Path, header: PictureHeader, name: str) -> PictureSplit:
    """A split's files mapped into memory, their sizes compared with its count."""
    count, files = header.splits[name].pictures, header.splits[name].files
    shapes: dict[str, tuple[tuple[int, ...], np.dtype]] = {name + PIXELS: ((count, *header.shape), np.dtype(np.uint8))}
    if header.classes is not None:
        shapes[name + LABELS] = ((count,), np.dtype("<i8"))
    for file, (shape, dtype) in shapes.items():
        expected = int(np.prod(shape)) * dtype.itemsize
        if file not in files or files[file].num_bytes != expected:
            raise damaged(path / HEADER, f"the count of split {name!r} does not fit its files")
    pixels, *labels = (
        np.memmap(path / file, dtype=dtype, mode="r", shape=shape) for file, (shape, dtype) in shapes.items()
    )
    if labels and (labels[0].min() < 0 or labels[0].max() >= len(header.classes or ())):
        raise damaged(path / (name + LABELS), f"a label is not one of the {len(header.classes or ())} classes")
    return PictureSplit(name, pixels, labels[0] if labels else None)


class PictureWriter:
    """Write a picture store, some pictures at a time; used in a `with` block.

        with PictureWriter(path, shape=(28, 28, 1), classes=("cat", "dog")) as writer:
            writer.append("train", pixels, labels)

    As with the token store nothing is at `path` before the block ends well, see `NewDirectory`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        shape: tuple[int, int, int],
        classes: Sequence[str] | None = None,
        overwrite: bool = False,
        source: str | None = None,
        command: str | None = None,
    ) -> None:
        """Check the target; nothing is written yet.

        Args:
            path: Where the store shall be; its parent is made if need be.
            shape: Rows, columns and channels of every picture.
            classes: Names of the labels 0, 1, ...; None where there are no labels.
            overwrite: Replace a picture store that is at `path`; never anything else.
            source: Noted in the header.
            command: Noted in the header.

        Raises:
            FileExistsError: Something is at `path`.
        """
        files = (HEADER, PIXELS, LABELS)
        self._place = NewDirectory(path, kind="picture store", files=files, overwrite=overwrite)
        self.path = self._place.path
        self.shape, self.classes = shape, None if classes is None else tuple(classes)
        self.source, self.command = source, command
        self._splits: dict[str, _SplitWriter] = {}

    def __enter__(self) -> "PictureWriter":
        self._place.open()
        return self

    def append(
        self,
        split: str,
        pixels: UInt8[np.ndarray, "pictures rows columns channels"],
        labels: Int64[np.ndarray, " labels"] | None = None,
    ) -> None:
        """Add pictures to the end of `split`.

        Args:
            split: Usually "train", "validation" or "test".
            pixels: At least one picture.
            labels: Their classes; None where the store has none.

        Raises:
            ValueError: Pictures of another shape, or labels that don't fit the classes.
            OSError: The disk is full, or another fault of the file system.
        """
        if not self._place.is_open:
            raise RuntimeError("append to a PictureWriter inside its `with` block")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", split):
            raise ValueError(f"split {split!r} names a file: use letters, digits, - and _ only")
        _check_pictures(split, pixels, labels, shape=self.shape, classes=self.classes)
        with self._place.explained():
            if split not in self._splits:
                self._splits[split] = _SplitWriter(self._place.partial / split)
            self._splits[split].append(pixels, labels)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with self._place.explained():
                    self._commit()
        finally:
            for writer in self._splits.values():
                writer.file.close()
            self._place.discard()

    def _commit(self) -> None:
        if not self._splits:
            raise ValueError(f"{self.path}: no picture was written, so there is no store to make")
        order = sorted(self._splits, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))
        records = {name: self._splits[name].finish() for name in order}
        header = PictureHeader(
            shape=self.shape, classes=self.classes, splits=records, source=self.source, command=self.command
        )
        write_synced(self._place.partial / HEADER, header.to_json().encode())
        self._place.commit()


class _SplitWriter:
    """The growing files of one split."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.file = HashedFile(Path(f"{base}{PIXELS}"))
        self.count = 0
        self.labels: list[np.ndarray] = []

    def append(self, pixels: np.ndarray, labels: np.ndarray | None) -> None:
        self.file.write(np.ascontiguousarray(pixels).data)
        self.count += len(pixels)
        if labels is not None:
            self.labels.append(labels)

    def finish(self) -> PictureSplitRecord:
        """Bring everything to the disk."""
        name = self.base.name
        files = {name + PIXELS: self.file.finish()}
        if self.labels:
            data = np.concatenate(self.labels).astype("<i8", copy=False).tobytes()
            files[name + LABELS] = write_synced(Path(f"{self.base}{LABELS}"), data)
        return PictureSplitRecord(pictures=self.count, files=files)


def _check_pictures(
    split: str,
    pixels: np.ndarray,
    labels: np.ndarray | None,
    *,
    shape: tuple[int, ...],
    classes: tuple[str, ...] | None,
    dtypes: tuple[type, ...] = (np.uint8,),
) -> None:
    if pixels.ndim != 4 or pixels.dtype not in dtypes or pixels.shape[1:] != shape or len(pixels) == 0:
        raise ValueError(
            f"split {split!r}: got {pixels.dtype} of shape {pixels.shape}, needs one or more pictures of "
            f"rows x columns x channels = {' x '.join(map(str, shape))}, as uint8"
        )
    if (labels is None) != (classes is None):
        raise ValueError(f"split {split!r}: labels and classes go together: give both, or neither")
    if labels is None or classes is None:
        return
    if labels.dtype != np.int64 or labels.shape != (len(pixels),):
        raise ValueError(
            f"split {split!r}: got labels as {labels.dtype} of shape {labels.shape}, needs int64, one for each of "
            f"{len(pixels)} pictures"
        )
    outside = (labels < 0) | (labels >= len(classes))
    if outside.any():
        place = int(outside.argmax())
        raise ValueError(f"split {split!r}: label {labels[place]} of picture {place} must lie in 0..{len(classes) - 1}")
