"""Documents -> the splits of a token store, whatever some of them hold."""

import contextlib
import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from perceivers.data.sources import Document
from perceivers.data.splits import SPLITS, SplitBy, chosen_splits, few_documents, pieces_apart
from perceivers.data.tokens import StoreWriter, TokenStore

__all__ = ["Item", "PrepareSummary", "Remarks", "SplitSummary", "reason", "write_splits"]

CUT = "cut"
"""In place of a split: the document's beginning, and its two last parts, go to the three splits."""
SHORTEST_CUT = 20
"""A document with fewer tokens is not cut."""

Remarks = defaultdict[str, list[str]]
"""What is to be said of some files, and their names."""


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
    """Documents that were left out because they are in a split that is held out too: each as "name (split)", first the
    one that was kept."""
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
            lines.append(f"{len(self.duplicates)} documents were left out, because the same are held out too:")
            lines += [f"  {second} = {first}" for first, second in self.duplicates[:examples]]
        return lines


@dataclass(frozen=True)
class Item:
    """A document, and how its ids are made."""

    document: Document
    ids: Callable[[Remarks], np.ndarray]
    """Raises whatever a decoder raises; says in its argument what is to be said of the file."""


def reason(error: Exception, name: str) -> str:
    """Why a file cannot be used, in one line that does not begin with its name."""
    text = " ".join(str(error).split()).removeprefix(f"{name}: ")
    if isinstance(error, (ValueError, OSError)) and text:
        return text
    return f"cannot be read ({type(error).__name__}{': ' if text else ''}{text})"


class _PlanAnewError(Exception):
    """Splits that a hash chose lost all their documents; arguments: those that can be used, and their digests."""


def write_splits(
    open_writer: Callable[[], StoreWriter],
    items: Sequence[Item],
    split_by: SplitBy | None,
    *,
    notes: list[str],
    progress: bool,
    skipped: Sequence[tuple[str, str]] = (),
    seconds_of: Callable[[np.ndarray], float] | None = None,
    made: bool = False,
) -> PrepareSummary:
    """Bring documents into their splits, and count.

    Args:
        open_writer: Makes the writer; once more where splits are planned anew, because they lost all their documents.
        items: Documents.
        split_by: What stays together where splits are not given.
        notes: What is known so far, for the user.
        progress: Show a bar.
        skipped: Files that could not be used, and why.
        seconds_of: Length of a document's music.
        made: They are no user's, so that nothing is to be said of them.

    Raises:
        ValueError: Nothing is left of what was for training, or at all.
    """
    started = time.perf_counter()
    skipped = list(skipped)
    duplicates: list[tuple[str, str]] = []
    digests: list[bytes] | None = None
    while True:
        splits, how = _choose_splits([item.document for item in items], split_by, digests)
        writer = _Writing(open_writer(), seconds_of, chosen_here=bool(how))
        try:
            writer.write(items, splits, progress=progress)
        except _PlanAnewError as again:
            skipped, duplicates = skipped + writer.skipped, duplicates + writer.duplicates
            items, digests = again.args
        except ValueError:
            if writer.summaries or not (broken := skipped + writer.skipped):
                raise
            name, reason = broken[0]
            raise ValueError(f"none of {len(broken)} files could be used; the first, {name}: {reason}") from None
        else:
            break
    notes = [*notes, *how]
    if how and CUT not in splits and (equal := len(writer.digests) - len(set(writer.digests))):
        notes.append(f"{equal} documents are equal to others, and in one split with them")
    if not made:
        counts = {split: writer.summaries[split].documents for split in SPLITS if split in writer.summaries}
        if CUT not in splits:
            notes += pieces_apart([item.document.name for item in items], splits) + few_documents(counts)
        for what, names in writer.remarks.items():
            notes.append(f"{len(names)} files {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}")
    header = TokenStore.open(writer.store.path).header  # and so it was read back once
    notes += [] if header.keys is None else [f"in training, {header.keys}"]
    return PrepareSummary(
        path=writer.store.path,
        fingerprint=header.fingerprint,
        splits={split: writer.summaries[split] for split in SPLITS if split in writer.summaries},
        skipped=skipped + writer.skipped,
        duplicates=duplicates + writer.duplicates,
        notes=notes,
        elapsed_s=time.perf_counter() - started,
    )


class _Writing:
    """One attempt to bring documents into their splits."""

    def __init__(
        self, store: StoreWriter, seconds_of: Callable[[np.ndarray], float] | None, *, chosen_here: bool
    ) -> None:
        self.store, self.seconds_of, self.chosen_here = store, seconds_of, chosen_here
        self.summaries: dict[str, SplitSummary] = {}
        self.skipped: list[tuple[str, str]] = []
        self.duplicates: list[tuple[str, str]] = []
        self.remarks: Remarks = defaultdict(list)
        self.digests: list[bytes] = []
        """Of what was written."""
        self._held_out: dict[bytes, tuple[str, str]] = {}

    def write(self, items: Sequence[Item], splits: Sequence[str], *, progress: bool) -> None:
        """Write all of them, those that are held out first.

        What stands there too joins it where splits are chosen here, and is left out where they are given.

        Raises:
            ValueError: Nothing is left of what was for training, or at all.
            _PlanAnewError: Some splits that a hash chose are empty.
        """
        order = sorted(range(len(items)), key=lambda index: (_rank(splits[index]), index))
        used: dict[int, str] = {}
        bar = tqdm(order, desc="preparing", unit="document", disable=None if progress else True)
        with self.store, contextlib.closing(bar):
            for index in bar:
                if split := self._write_one(items[index], splits[index]):
                    used[index] = split
            if used and self.chosen_here and set(splits) != set(used.values()):
                digests = dict(zip(used, self.digests, strict=True))
                raise _PlanAnewError(
                    [items[index] for index in sorted(used)], [digests[index] for index in sorted(used)]
                )
            if not self.summaries or ("train" in splits and "train" not in self.summaries):
                raise ValueError(
                    f"nothing is left for training: the splits as given are {', '.join(sorted(set(splits)))}; "
                    "add training data, or split anew with --split-by hash"
                )

    def _write_one(self, item: Item, split: str) -> str | None:
        """The split into which the document went, if into any."""
        name = item.document.name
        try:
            ids = item.ids(self.remarks)
        except Exception as error:  # decoders raise all sorts of things, and one file must not stop the others
            self.skipped.append((name, reason(error, name)))
            return None
        if len(ids) == 0:
            self.skipped.append((name, "it has no tokens"))
            return None
        digest = hashlib.sha256(np.ascontiguousarray(ids, dtype=np.int64).data).digest()
        if split in ("validation", "test"):
            self._held_out.setdefault(digest, (name, split))
        first, held_out_in = self._held_out.get(digest, (name, split))
        if held_out_in != split and not self.chosen_here:
            self.duplicates.append((f"{first} ({held_out_in})", f"{name} ({split})"))
            return None
        split = held_out_in
        self.digests.append(digest)
        for part, part_ids in _parts(ids, split).items():
            self.store.append(part, part_ids, name=name)
            summary = self.summaries.setdefault(part, SplitSummary(seconds=0.0 if self.seconds_of else None))
            summary.documents += 1
            summary.tokens += len(part_ids)
            if self.seconds_of is not None:
                summary.seconds = round((summary.seconds or 0.0) + self.seconds_of(part_ids), 2)  # whole steps
        return split


def _rank(split: str) -> int:
    """Test comes first, training last."""
    return -SPLITS.index(split) if split in SPLITS else 0


def _choose_splits(
    documents: Sequence[Document], by: SplitBy | None, digests: Sequence[bytes] | None
) -> tuple[list[str], list[str]]:
    """Where each document goes: as its place says, else by a hash, else (one or two documents) in parts; and notes.

    No note where splits were given.
    """
    if documents and all(document.split is not None for document in documents):
        return [str(document.split) for document in documents], []
    splits, note = chosen_splits([document.name for document in documents], by, digests)
    if splits is None:
        note = "fewer than 3 documents, so each was cut: 90 % for training, 5 % validation, 5 % test"
        return [CUT] * len(documents), [note]
    return splits, [note]


def _parts(ids: np.ndarray, split: str) -> dict[str, np.ndarray]:
    """The parts of a document by the split they go to."""
    if split != CUT:
        return {split: ids}
    if len(ids) < SHORTEST_CUT:
        return {"train": ids}
    held_out = len(ids) // 20
    train, validation, test = np.split(ids, [len(ids) - 2 * held_out, len(ids) - held_out])
    return {"train": train, "validation": validation, "test": test}
