"""Users' files -> a token store: what `perceivers prepare` does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from perceivers.arguments import checked_numbers
from perceivers.data import music
from perceivers.data.midi import read_midi
from perceivers.data.sources import UNPACKED_MB, Document, find_documents
from perceivers.data.splits import SplitBy
from perceivers.data.text import BYTES_VOCAB_SIZE, as_utf8
from perceivers.data.token_files import TOKEN_SUFFIXES, check_ids, token_documents
from perceivers.data.tokens import StoreWriter
from perceivers.data.write_splits import Item, PrepareSummary, Remarks, reason, write_splits

__all__ = [
    "Choices",
    "prepare_copy",
    "prepare_music",
    "prepare_text",
    "prepare_tokens",
]

MIDI_SUFFIXES = (".mid", ".midi", ".rmi", ".kar")


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a user may choose of how files are read and split."""

    split_by: SplitBy | None = None
    """What stays together: recordings of a piece, files of a folder (where none has a split's name), or nothing. Splits
    that folders, files or a table name are passed over with "piece" and "hash". None: as they say, otherwise "hash"."""
    unpacked_mb: int = UNPACKED_MB
    """Largest size to which a file may unpack."""

    def find(self, sources: Sequence[Path], suffixes: Sequence[str]) -> tuple[list[Document], list[str]]:
        """Documents and notes, see `find_documents`."""
        splits = self.split_by in (None, "folder")
        return find_documents(sources, suffixes, splits=splits, unpacked_mb=self.unpacked_mb)


AS_GIVEN = Choices()


def prepare_music(
    sources: Sequence[Path],
    out: Path,
    *,
    choices: Choices = AS_GIVEN,
    overwrite: bool = False,
    progress: bool = False,
    command: str | None = None,
) -> PrepareSummary:
    """Turn MIDI files into performance events.

    A document that stands in a held-out split and in training is left out of training, by its ids.

    Args:
        sources: Directories, zip archives or files; splits as in `find_documents`, otherwise by name.
        out: Where the store shall be.
        choices: How documents are split.
        overwrite: Replace the store that is there.
        progress: Show a bar with the time left, on a terminal.
        command: Noted in the store.

    Raises:
        FileNotFoundError: A source does not exist.
        FileExistsError: Something is at `out`.
        ValueError: There is no MIDI file, none that can be read, or nothing would be left of what is for training.
        OSError: The disk is full.
    """
    writer = partial(
        StoreWriter,
        out,
        tokenizer="performance",
        vocab_size=music.VOCAB_SIZE,
        overwrite=overwrite,
        source=_names(sources),
        command=command,
    )
    writer()  # refuses the place before the work
    documents, notes = choices.find(sources, MIDI_SUFFIXES)
    items = [Item(document, partial(_encode_midi, document)) for document in documents]
    return write_splits(writer, items, choices.split_by, notes=notes, progress=progress, seconds_of=music.seconds)


def prepare_text(
    sources: Sequence[Path],
    out: Path,
    *,
    choices: Choices = AS_GIVEN,
    overwrite: bool = False,
    progress: bool = False,
    command: str | None = None,
) -> PrepareSummary:
    """Turn .txt files into UTF-8 bytes, each file a document; arguments and errors as `prepare_music`."""
    writer = partial(
        StoreWriter,
        out,
        tokenizer="bytes",
        vocab_size=BYTES_VOCAB_SIZE,
        overwrite=overwrite,
        source=_names(sources),
        command=command,
    )
    writer()
    documents, notes = choices.find(sources, (".txt",))
    items = [Item(document, partial(_encode_text, document)) for document in documents]
    return write_splits(writer, items, choices.split_by, notes=notes, progress=progress)


@checked_numbers()
def prepare_tokens(
    sources: Sequence[Path],
    out: Path,
    *,
    vocab_size: int,
    choices: Choices = AS_GIVEN,
    overwrite: bool = False,
    progress: bool = False,
    command: str | None = None,
) -> PrepareSummary:
    """Store ids that the user made: arguments and errors as `prepare_music`.

    Files: .npy (one axis: a document; two: a document each row), .txt (integers with white space between: a
    document), .jsonl (each line a document, {"ids": [...]}). A file of which any part is something else is left out.

    Args:
        sources: Directories, zip archives or files.
        out: Where the store shall be.
        vocab_size: Every id must be below this.
        choices: How documents are split.
        overwrite: Replace the store that is there.
        progress: Show a bar with the time left, on a terminal.
        command: Noted in the store.
    """
    writer = partial(
        StoreWriter,
        out,
        tokenizer="ids",
        vocab_size=vocab_size,
        overwrite=overwrite,
        source=_names(sources),
        command=command,
    )
    writer()
    files, notes = choices.find(sources, TOKEN_SUFFIXES)
    read = lru_cache(maxsize=1)(token_documents)
    items: list[Item] = []  # read once to count and check, and again to write, so that memory suffices
    broken: list[tuple[str, str]] = []
    for file in tqdm(files, desc="checking", unit="file", disable=None if progress else True):
        try:
            rows = read(file)
            for ids in rows:
                check_ids(ids, vocab_size)
        except Exception as error:  # decoders raise all sorts of things
            broken.append((file.name, reason(error, file.name)))
            continue
        for row in range(len(rows)):
            document = file if len(rows) == 1 else replace(file, name=f"{file.name}#{row}")
            items.append(Item(document, lambda _, file=file, row=row: read(file)[row]))
    return write_splits(writer, items, choices.split_by, notes=notes, skipped=broken, progress=progress)


@checked_numbers(seed=0)
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
    writer = partial(
        StoreWriter,
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

    def encode(document: Document, _: Remarks) -> np.ndarray:
        return mirrored_ids(length, seed=seed, split=str(document.split), index=int(document.name))

    mirrored_ids(length, seed=seed, split="train", index=0)  # refuses a length that cannot be
    items = [Item(document, partial(encode, document)) for document in documents]
    return write_splits(writer, items, None, notes=[], progress=progress, made=True)


def _names(sources: Sequence[Path]) -> str:
    return ", ".join(source.name for source in sources)


def _encode_midi(document: Document, remarks: Remarks) -> np.ndarray:
    file = read_midi(document.read(), name=document.name)
    if file.has_later_tempos:
        remarks["set a tempo on a track after the first, where it does not count"].append(document.name)
    return music.encode_notes(file.notes)


def _encode_text(document: Document, remarks: Remarks) -> np.ndarray:
    data, encoding = as_utf8(document.read())
    if encoding is not None:
        remarks[f"read as {encoding}, not UTF-8"].append(document.name)
    return np.frombuffer(data, dtype=np.uint8)
