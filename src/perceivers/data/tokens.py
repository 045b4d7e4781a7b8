"""The token store: documents of raw token ids on disk, memory-mapped.

A store is a directory that is written once and then only read:

    header.json      tokenizer, vocabulary, and per split the counts, file sizes and checksums
    train.tokens     the ids of all documents back to back, little-endian uint16 or uint32
    train.offsets    little-endian int64, one more than documents: i has tokens[offsets[i]:offsets[i + 1]]
    train.names      the documents' names, a JSON list
    ...              the same three files for every other split

Ids are raw (bytes 0..255, performance events 0..387); special ids and a model's offset are added by the loader.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Int, Integer

from perceivers.data.header import FileRecord, SplitRecord, StoreHeader, check_sizes, check_sums, damaged, no_store
from perceivers.data.key_counter import KeyUseCounter
from perceivers.data.new_directory import HashedFile, NewDirectory, restore, write_synced
from perceivers.data.splits import SPLITS, split_in
from perceivers.records import parse_json

__all__ = ["StoreHeader", "StoreWriter", "TokenSplit", "TokenStore"]

HEADER = "header.json"
TOKENS, OFFSETS, NAMES = ".tokens", ".offsets", ".names"

CHECKSUM_LIMIT = 2**30
"""Stores below this many bytes have their checksums verified whenever they are opened."""


@dataclass(frozen=True)
class TokenSplit:
    """The documents of one split; `split[i]` are the raw ids of document i, `len(split)` counts documents."""

    name: str
    tokens: Integer[np.ndarray, " tokens"]
    """All ids, back to back."""
    offsets: Int[np.ndarray, " starts"]
    """Where each document starts in `tokens`, and at the end their number."""
    names: list[str]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Integer[np.ndarray, " tokens"]:
        if not 0 <= index < len(self):
            raise IndexError(f"split {self.name!r} has {len(self)} documents, there is no document {index}")
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def num_tokens(self) -> int:
        """Ids in all documents."""
        return len(self.tokens)

    @property
    def lengths(self) -> Int[np.ndarray, " documents"]:
        """Ids in each document."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class TokenStore:
    """A token store that was opened and checked; `TokenStore.open(path)` makes it."""

    path: Path
    header: StoreHeader

    @classmethod
    def open(cls, path: str | Path) -> "TokenStore":
        """Open the store at `path` after checking its files' sizes, and their checksums if it is below 1 GiB.

        Raises:
            FileNotFoundError: There is no store, or one of its files is missing.
            ValueError: `path` is something else, or a file is damaged; the message says which and how.
        """
        path = Path(path)
        restore(path)
        if not (path / HEADER).is_file():
            raise no_store(path)
        store = cls(path, StoreHeader.read(path / HEADER))
        check_sizes(path, store._files)
        if sum(record.num_bytes for record in store._files.values()) < CHECKSUM_LIMIT:
            store.verify()
        for name in store.splits:
            store._check_split(name)
        return store

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.header.splits)

    @property
    def tokenizer(self) -> str:
        """What made the ids."""
        return self.header.tokenizer

    @property
    def fingerprint(self) -> str:
        """The header's fingerprint: a run records it, and so notices on resume that its data changed."""
        return self.header.fingerprint

    def split(self, name: str) -> TokenSplit:
        """Map the files of split `name` into memory.

        Raises:
            ValueError: There is no such split.
        """
        name = split_in(name, self.splits)
        if name not in self.header.splits:
            raise ValueError(f"{self.path}: no split {name!r}; it has {', '.join(self.splits)}")
        base = str(self.path / name)
        return TokenSplit(
            name,
            np.memmap(base + TOKENS, dtype=_little_endian(self.header.dtype), mode="r"),
            np.fromfile(base + OFFSETS, dtype="<i8"),
            parse_json(Path(base + NAMES).read_text(encoding="utf-8")),
        )

    def verify(self) -> None:
        """Read every file and compare its checksum with the header's.

        Raises:
            ValueError: A file differs; the message names it.
        """
        check_sums(self.path, self._files)

    @property
    def _files(self) -> dict[str, FileRecord]:
        return {name: record for split in self.header.splits.values() for name, record in split.files.items()}

    def _check_split(self, name: str) -> None:
        """Compare counts with files: a store too large for checksums at opening may still be damaged."""
        split, record = self.split(name), self.header.splits[name]
        offsets = split.offsets
        ordered = len(offsets) > 0 and offsets[0] == 0 and bool((np.diff(offsets) > 0).all())
        if not ordered or offsets[-1] != split.num_tokens:
            raise damaged(self.path / (name + OFFSETS), "its offsets do not fit the tokens")
        if (record.documents, record.tokens) != (len(split), split.num_tokens) or len(split.names) != len(split):
            raise damaged(self.path / HEADER, f"the counts of split {name!r} do not fit its files")


class StoreWriter:
    """Write a token store, document by document; used in a `with` block.

        with StoreWriter(path, tokenizer="bytes", vocab_size=256) as writer:
            writer.append("train", ids, name="a.txt")

    Everything goes to a hidden directory beside `path`, which takes its name only when the block ends well:
    an exception, Ctrl-C or a kill leaves nothing at `path`. What a killed writer left behind is removed by the
    next one.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        tokenizer: str,
        vocab_size: int,
        overwrite: bool = False,
        source: str | None = None,
        command: str | None = None,
    ) -> None:
        """Check the target; nothing is written yet.

        Args:
            path: Where the store shall be; its parent is made if need be.
            tokenizer: What made the ids, see `StoreHeader`.
            vocab_size: Every id must be below this.
            overwrite: Replace a store that is at `path`; never anything else.
            source: Noted in the header.
            command: Noted in the header.

        Raises:
            FileExistsError: Something is at `path`.
            ValueError: `vocab_size` is out of range.
        """
        if not 1 <= vocab_size <= 2**32:
            raise ValueError(f"vocab_size={vocab_size} must lie in 1..{2**32}")
        files = (HEADER, TOKENS, OFFSETS, NAMES)
        self._place = NewDirectory(path, kind="token store", files=files, overwrite=overwrite)
        self.path = self._place.path
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.source, self.command = source, command
        self.dtype = "uint16" if vocab_size <= 2**16 else "uint32"
        self._splits: dict[str, _SplitWriter] = {}
        self._keys = KeyUseCounter() if tokenizer == "performance" else None

    def __enter__(self) -> "StoreWriter":
        self._place.open()
        return self

    def append(self, split: str, ids: np.ndarray, *, name: str) -> None:
        """Add a document to the end of `split`.

        Args:
            split: Usually "train", "validation" or "test".
            ids: Raw ids, one axis, at least one.
            name: The document's, for people and for error messages.

        Raises:
            ValueError: An id is outside the vocabulary, or `ids` is no list of integers.
            OSError: The disk is full, or another fault of the file system.
        """
        if not self._place.is_open:
            raise RuntimeError("append to a StoreWriter inside its `with` block")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", split):
            raise ValueError(f"split {split!r} names a file: use letters, digits, - and _ only")
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"document {name!r}: got {ids.dtype} of shape {ids.shape}, needs integers with one axis")
        if len(ids) == 0:
            raise ValueError(f"document {name!r} has no tokens; leave it out")
        outside = (ids < 0) | (ids >= self.vocab_size)
        if outside.any():
            place = int(outside.argmax())
            raise ValueError(
                f"document {name!r}: id {ids[place]} at place {place} is outside the vocabulary of "
                f"{self.vocab_size} (ids 0..{self.vocab_size - 1})"
            )
        with self._place.explained():
            if split not in self._splits:
                self._splits[split] = _SplitWriter(self._place.partial / split)
            self._splits[split].append(ids.astype(_little_endian(self.dtype)).tobytes(), len(ids), name)
        if self._keys is not None and split == "train":
            self._keys.add(ids)

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
            raise ValueError(f"{self.path}: no document was written, so there is no store to make")
        order = sorted(self._splits, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))
        records = {name: self._splits[name].finish() for name in order}
        header = StoreHeader(
            tokenizer=self.tokenizer,
            vocab_size=self.vocab_size,
            dtype=self.dtype,
            splits=records,
            source=self.source,
            command=self.command,
            keys=None if self._keys is None else self._keys.result(),
        )
        write_synced(self._place.partial / HEADER, header.to_json().encode())
        self._place.commit()


class _SplitWriter:
    """The growing files of one split."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.file = HashedFile(Path(f"{base}{TOKENS}"))
        self.offsets = [0]
        self.names: list[str] = []

    def append(self, data: bytes, num_tokens: int, name: str) -> None:
        self.file.write(data)
        self.offsets.append(self.offsets[-1] + num_tokens)
        self.names.append(name)

    def finish(self) -> SplitRecord:
        """Bring everything to the disk."""
        files = {self.base.name + TOKENS: self.file.finish()}
        small = {
            OFFSETS: np.array(self.offsets, dtype="<i8").tobytes(),
            NAMES: json.dumps(self.names).encode(),
        }
        for suffix, data in small.items():
            files[self.base.name + suffix] = write_synced(Path(f"{self.base}{suffix}"), data)
        return SplitRecord(documents=len(self.names), tokens=self.offsets[-1], files=files)


def _little_endian(dtype: str) -> np.dtype:
    return np.dtype(dtype).newbyteorder("<")
