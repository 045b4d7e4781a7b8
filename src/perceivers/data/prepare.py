"""Users' files -> a token store: what `perceivers prepare` does."""

import contextlib
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from perceivers.data import music
from perceivers.data.sources import SPLITS, Document, find_documents, hashed_splits
from perceivers.data.text import BYTES_VOCAB_SIZE
from perceivers.data.tokens import StoreWriter, TokenStore

__all__ = [
    "PrepareSummary",
    "SplitSummary",
    "prepare_copy",
    "prepare_music",
    "prepare_text",
    "prepare_tokens",
]

MIDI_SUFFIXES = (".mid", ".midi")
TOKEN_SUFFIXES = (".npy", ".txt", ".jsonl")
CUT = "cut"
"""In place of a split: the document's beginning, and its two last parts, go to the three splits."""
NO_TOKENS = "it has no tokens"
SHORTEST_CUT = 20
"""A document with fewer tokens is not cut."""


@dataclass(kw_only=True)
class SplitSummary:
    """What went into one split."""

    documents: int = 0
    tokens: int = 0
    seconds: float | None = None
    """Length of the music; None for other data."""


@dataclass(frozen=True, kw_only=True)
class PrepareSummary:
    """What a preparation made, and what the user should know of it."""

    path: Path
    fingerprint: str
    splits: dict[str, SplitSummary]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Files that could not be used, and why."""
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    """Pairs of documents with the same content in different splits, each as "name (split)"."""
    notes: list[str] = field(default_factory=list)
    elapsed_s: float

    def lines(self, *, examples: int = 5) -> list[str]:
        """The summary as lines of text, with at most so many examples of each trouble."""
        lines = [f"{self.path}: token store {self.fingerprint}, made in {self.elapsed_s:.1f} s"]
        for name, split in self.splits.items():
            line = f"  {name:10} {split.documents:9,} documents {split.tokens:13,} tokens"
            lines.append(line if split.seconds is None else f"{line} {split.seconds / 3600:8.2f} hours")
        lines += self.notes
        if self.skipped:
            lines.append(f"{len(self.skipped)} files could not be used:")
            lines += [f"  {name}: {reason}" for name, reason in self.skipped[:examples]]
        if self.duplicates:
            lines.append(
                f"{len(self.duplicates)} documents are in two splits at once, so held-out scores will flatter:"
            )
            lines += [f"  {first} = {second}" for first, second in self.duplicates[:examples]]
        return lines


@dataclass(frozen=True)
class _Encoded:
    """A document's ids, and a digest of what they were made of."""

    ids: np.ndarray
    digest: bytes


def prepare_music(
    sources: Sequence[Path],
    out: Path,
    *,
    overwrite: bool = False,
    progress: bool = False,
    command: str | None = None,
) -> PrepareSummary:
    """Turn MIDI files into performance events.

    Args:
        sources: Directories, zip archives or files; splits as in `find_documents`, otherwise by name.
        out: Where the store shall be.
        overwrite: Replace the store that is there.
        progress: Show a bar with the time left, on a terminal.
        command: Noted in the store.

    Raises:
        FileNotFoundError: A source does not exist.
        FileExistsError: Something is at `out`.
        ValueError: There is no MIDI file, or none that can be read.
        OSError: The disk is full.
    """
    writer = StoreWriter(
        out,
        tokenizer="performance",
        vocab_size=music.VOCAB_SIZE,
        overwrite=overwrite,
        source=_names(sources),
        command=command,
    )
    documents, notes = find_documents(sources, MIDI_SUFFIXES)
    encoded = (_tried(_encode_midi, document) for document in documents)
    return _write(writer, documents, encoded, notes=notes, progress=progress, seconds_of=music.seconds)


def prepare_text(
    sources: Sequence[Path],
    out: Path,
    *,
    overwrite: bool = False,
    progress: bool = False,
    command: str | None = None,
) -> PrepareSummary:
    """Turn .txt files into bytes, each file a document; arguments and errors as `prepare_music`."""
    writer = StoreWriter(
        out,
        tokenizer="bytes",
        vocab_size=BYTES_VOCAB_SIZE,
        overwrite=overwrite,
        source=_names(sources),
        command=command,
    )
    documents, notes = find_documents(sources, (".txt",))
    encoded = (_tried(_encode_text, document) for document in documents)
    return _write(writer, documents, encoded, notes=notes, progress=progress)


def prepare_tokens(
    sources: Sequence[Path],
    out: Path,
    *,
    vocab_size: int,
    overwrite: bool = False,
    progress: bool = False,
    command: str | None = None,
) -> PrepareSummary:
    """Store ids that the user made: arguments and errors as `prepare_music`.

    Files: .npy (one axis: a document; two: a document each row), .txt (integers with white space between: a
    document), .jsonl (each line a document, {"ids": [...]}).

    Args:
        sources: Directories, zip archives or files.
        out: Where the store shall be.
        vocab_size: Every id must be below this.
        overwrite: Replace the store that is there.
        progress: Show a bar with the time left, on a terminal.
        command: Noted in the store.
    """
    writer = StoreWriter(
        out, tokenizer="ids", vocab_size=vocab_size, overwrite=overwrite, source=_names(sources), command=command
    )
    files, notes = find_documents(sources, TOKEN_SUFFIXES)
    documents: list[Document] = []  # read once to count and check, and again to write, so that memory suffices
    for file in tqdm(files, desc="checking", unit="file", disable=None if progress else True):
        count = sum(1 for _ in _token_documents(file))
        documents += [file] if count == 1 else [replace(file, name=f"{file.name}#{row}") for row in range(count)]
    if not documents:
        raise ValueError(f'{_names(sources)}: no line there holds a document, {{"ids": [...]}}')
    every = (ids for file in files for ids in _token_documents(file))
    encoded = (_Encoded(ids, hashlib.sha256(ids.tobytes()).digest()) if len(ids) else NO_TOKENS for ids in every)
    return _write(writer, documents, encoded, notes=notes, progress=progress)


def prepare_copy(
    out: Path,
    *,
    length: int,
    count: int,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
    command: str | None = None,
) -> PrepareSummary:
    """Make sequences of the copy task, 90 % for training and 5 % each for validation and test.

    Args:
        out: Where the store shall be.
        length: Tokens of a sequence, SOS and EOS included; even.
        count: Sequences, at least 3.
        seed: Not negative; each split has its own sequences.
        overwrite: Replace the store that is there.
        progress: Show a bar with the time left, on a terminal.
        command: Noted in the store.

    Raises:
        ValueError: `length` or `count` is out of range.
    """
    from perceivers.data.synthetic import COPY_VOCAB_SIZE, mirrored_ids  # it imports torch, the others need none

    if count < 3:
        raise ValueError(f"count={count} must be at least 3, one sequence for each split")
    writer = StoreWriter(
        out,
        tokenizer="copy",
        vocab_size=COPY_VOCAB_SIZE,
        overwrite=overwrite,
        source=f"copy task, length {length}, seed {seed}",
        command=command,
    )
    held_out = max(1, round(count * 0.05))
    counts = {"train": count - 2 * held_out, "validation": held_out, "test": held_out}
    documents = [
        Document(name=str(index), file=Path(), split=split) for split, n in counts.items() for index in range(n)
    ]

    def encode(document: Document) -> _Encoded:
        ids = mirrored_ids(length, seed=seed, split=str(document.split), index=int(document.name))
        return _Encoded(ids, ids.tobytes())

    return _write(writer, documents, map(encode, documents), notes=[], progress=progress)


def _names(sources: Sequence[Path]) -> str:
    return ", ".join(source.name for source in sources)


def _encode_midi(document: Document) -> _Encoded:
    data = document.read()
    return _Encoded(music.encode_performance(data, name=document.name), hashlib.sha256(data).digest())


def _encode_text(document: Document) -> _Encoded:
    data = document.read()  # bytes stay as they are, whatever the encoding, so nothing is lost
    return _Encoded(np.frombuffer(data, dtype=np.uint8), hashlib.sha256(data).digest())


def _tried(encode: Callable[[Document], _Encoded], document: Document) -> _Encoded | str:
    """A document encoded, or the reason why it cannot be."""
    try:
        encoded = encode(document)
    except (ValueError, OSError) as error:
        return str(error).removeprefix(f"{document.name}: ")
    return encoded if len(encoded.ids) else NO_TOKENS


def _write(
    writer: StoreWriter,
    documents: Sequence[Document],
    encoded: Iterable[_Encoded | str],
    *,
    notes: list[str],
    progress: bool,
    seconds_of: Callable[[np.ndarray], float] | None = None,
) -> PrepareSummary:
    """Bring encoded documents into their splits, and count."""
    started = time.perf_counter()
    splits = _choose_splits(documents)
    if CUT in splits:
        notes = [*notes, "fewer than 3 documents, so each was cut: 90 % for training, 5 % validation, 5 % test"]
    summaries: dict[str, SplitSummary] = {}
    skipped: list[tuple[str, str]] = []
    duplicates: list[tuple[str, str]] = []
    first_of: dict[bytes, tuple[str, str]] = {}
    bar = tqdm(documents, desc="preparing", unit="document", disable=None if progress else True)
    with writer, contextlib.closing(bar):
        for document, chosen, result in zip(bar, splits, encoded, strict=True):
            if isinstance(result, str):
                skipped.append((document.name, result))
                continue
            for split, ids in _parts(result.ids, chosen).items():
                writer.append(split, ids, name=document.name)
                summary = summaries.setdefault(split, SplitSummary(seconds=0.0 if seconds_of else None))
                summary.documents += 1
                summary.tokens += len(ids)
                if seconds_of is not None:
                    summary.seconds = (summary.seconds or 0.0) + seconds_of(ids)
            split, name = first_of.setdefault(result.digest, (chosen, document.name))
            if split != chosen:
                duplicates.append((f"{name} ({split})", f"{document.name} ({chosen})"))
        if not summaries:
            name, reason = skipped[0]
            raise ValueError(f"none of {len(skipped)} files could be used; the first, {name}: {reason}")
    return PrepareSummary(
        path=writer.path,
        fingerprint=TokenStore.open(writer.path).fingerprint,  # and so it was read back once
        splits={split: summaries[split] for split in sorted(summaries, key=SPLITS.index)},
        skipped=skipped,
        duplicates=duplicates,
        notes=notes,
        elapsed_s=time.perf_counter() - started,
    )


def _choose_splits(documents: Sequence[Document]) -> list[str]:
    """Where each document goes: as its place says, else by its name, else (one or two documents) in parts."""
    free = [index for index, document in enumerate(documents) if document.split is None]
    splits = [document.split or CUT for document in documents]
    if len(documents) >= 3:
        for index, split in zip(free, hashed_splits([documents[index].name for index in free]), strict=True):
            splits[index] = split
    return splits


def _parts(ids: np.ndarray, split: str) -> dict[str, np.ndarray]:
    """The parts of a document by the split they go to."""
    if split != CUT:
        return {split: ids}
    if len(ids) < SHORTEST_CUT:
        return {"train": ids}
    held_out = len(ids) // 20
    train, validation, test = np.split(ids, [len(ids) - 2 * held_out, len(ids) - held_out])
    return {"train": train, "validation": validation, "test": test}


def _token_documents(file: Document) -> Iterator[np.ndarray]:
    """The documents of one file of ids.

    Raises:
        ValueError: The file holds something else; the message names it, and the line.
    """
    data = file.read()
    match Path(file.member or file.file).suffix.lower():
        case ".npy":
            try:
                array = np.load(io.BytesIO(data), allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise ValueError(f"{file.name}: not a .npy file of integers ({error})") from error
            if array.ndim not in (1, 2) or not np.issubdtype(array.dtype, np.integer):
                raise ValueError(
                    f"{file.name}: {array.dtype} of shape {array.shape}, needs integers: one axis for a document, "
                    "two for a document each row"
                )
            yield from np.atleast_2d(array)
        case ".txt":
            try:
                yield np.array(data.split(), dtype=np.int64)
            except (ValueError, OverflowError) as error:
                raise ValueError(f"{file.name}: needs integers with white space between ({error})") from error
        case _:
            for number, line in enumerate(data.splitlines(), 1):
                if line.strip():
                    yield _json_ids(line, f"{file.name}, line {number}")


def _json_ids(line: bytes, place: str) -> np.ndarray:
    try:
        ids = json.loads(line)["ids"]
        array = np.array(ids, dtype=np.int64)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f'{place}: needs {{"ids": [...]}} with integers ({error!r})') from error
    if array.ndim != 1 or not all(type(value) is int for value in ids):  # numpy would round 1.5
        raise ValueError(f'{place}: needs {{"ids": [...]}} with integers')
    return array
