"""Users' pictures -> a picture store: what `perceivers prepare pictures` does."""

import contextlib
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from perceivers.data.picture_arrays import ARRAY_ENDINGS, arrays_as_pictures, read_arrays
from perceivers.data.picture_files import PICTURE_ENDINGS, Picture, files_as_pictures, fitted, without_class
from perceivers.data.picture_store import PictureStore, PictureWriter
from perceivers.data.prepare import AS_GIVEN, Choices
from perceivers.data.sources import Document
from perceivers.data.splits import SPLITS, chosen_splits, few_documents
from perceivers.data.write_splits import reason

__all__ = ["PictureSummary", "prepare_pictures"]

PICKLE_ENDINGS = (".pkl", ".pickle", ".pkl.gz", "data_batch_1", "test_batch")
VALIDATION_SHARE = 12
"""One in so many training pictures is for validation, where only training and test are given: MNIST's 5,000."""


@dataclass(frozen=True, kw_only=True)
class PictureSummary:
    """What a preparation made, and what the user should know of it."""

    path: Path
    fingerprint: str
    shape: tuple[int, int, int]
    """Rows, columns and channels of a picture."""
    classes: tuple[str, ...] | None
    splits: dict[str, int]
    """Pictures of each split."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Pictures that could not be used, and why."""
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    """Pictures that were left out because they are in a split that is held out too: each as "name (split)", first the
    one that was kept."""
    notes: list[str] = field(default_factory=list)
    elapsed_s: float

    def lines(self, *, examples: int = 5) -> list[str]:
        """The summary as lines of text, with at most so many examples of each trouble."""
        lines = [f"{self.path}: picture store {self.fingerprint}, made in {self.elapsed_s:.1f} s"]
        rows, columns, channels = self.shape
        what = f"{rows} x {columns}, " + ("grey" if channels == 1 else "colour")
        what += "" if self.classes is None else f", {len(self.classes)} classes"
        lines += [f"  {name:10} {count:9,} pictures {what}" for name, count in self.splits.items()]
        lines += self.notes
        if self.skipped:
            lines.append(f"{len(self.skipped)} pictures could not be used:")
            lines += [f"  {name}: {reason}" for name, reason in self.skipped[:examples]]
        if self.duplicates:
            lines.append(f"{len(self.duplicates)} pictures were left out, because the same are held out too:")
            lines += [f"  {second} = {first}" for first, second in self.duplicates[:examples]]
        return lines


def prepare_pictures(
    sources: Sequence[Path],
    out: Path,
    *,
    size: tuple[int, int] | None = None,
    choices: Choices = AS_GIVEN,
    overwrite: bool = False,
    progress: bool = False,
    command: str | None = None,
) -> PictureSummary:
    """Bring pictures to one size, and into one store.

    Args:
        sources: Directories, zip archives or files: either picture files, whose folders may be classes, or arrays (IDX,
            .npz, .npy). Splits as in `find_documents` and by the arrays' names, otherwise by a hash of the name.
            Where there is training and test only, a part of training becomes validation.
        out: Where the store shall be.
        size: Rows and columns; a picture is resized so that it covers them, and its middle is taken. None where all
            have one size already.
        choices: How pictures are split.
        overwrite: Replace the store that is there.
        progress: Show a bar with the time left, on a terminal.
        command: Noted in the store.

    Raises:
        FileNotFoundError: A source does not exist.
        FileExistsError: Something is at `out`.
        ValueError: There are no pictures, none can be read, or they differ in size and `size` is None.
        OSError: The disk is full.
    """
    started = time.perf_counter()
    if size is not None and min(size) < 1:
        raise ValueError(f"size={size} must be rows and columns, each at least 1 pixel")
    PictureWriter(out, shape=(1, 1, 1), overwrite=overwrite)  # refuses the place before the work
    pictures, skipped, notes = _find(sources, choices, progress=progress)
    if not pictures:
        raise ValueError(_none_usable(skipped))
    chosen, size_notes = _common_size(pictures, size)
    duplicates: list[tuple[str, str]] = []
    digests: list[bytes] | None = None
    while True:
        splits, split_notes, given = _choose_splits(pictures, choices, digests)
        classes = _classes(pictures)
        writer = PictureWriter(
            out,
            shape=(*chosen, 1 if all(picture.grey for picture in pictures) else 3),
            classes=None if classes is None else list(map(str, classes)),
            overwrite=overwrite,
            source=", ".join(source.name for source in sources),
            command=command,
        )
        usable = _write(
            writer, pictures, splits, classes, skipped, None if not given else duplicates, progress=progress
        )
        if usable is None:
            break
        pictures, digests = usable  # some splits lost all their pictures: they are chosen anew
    store = PictureStore.open(writer.path)  # and so it was read back once
    counts = {split: len(store.split(split)) for split in SPLITS if split in store.splits}
    split_notes += [f"no picture is left for {split}" for split in SPLITS if split in splits and split not in counts]
    return PictureSummary(
        path=writer.path,
        fingerprint=store.fingerprint,
        shape=store.shape,
        classes=store.classes,
        splits=counts,
        skipped=skipped,
        duplicates=duplicates,
        notes=notes + size_notes + split_notes + few_documents(counts, "pictures") + _missing_classes(store),
        elapsed_s=time.perf_counter() - started,
    )


def _find(
    sources: Sequence[Path], choices: Choices, *, progress: bool
) -> tuple[list[Picture], list[tuple[str, str]], list[str]]:
    """Pictures, what could not be used and why, and notes."""
    documents, notes = choices.find(sources, ARRAY_ENDINGS + PICTURE_ENDINGS + PICKLE_ENDINGS)
    arrays = [document for document in documents if document.name.lower().endswith(ARRAY_ENDINGS)]
    files = [document for document in documents if document.name.lower().endswith(PICTURE_ENDINGS)]
    damaged = _damaged(arrays) if files else []  # one that nothing can be read from keeps no picture back
    if files and len(damaged) < len(arrays):
        readable = next(array for array in arrays if array.name not in dict(damaged))
        raise ValueError(
            f"there are both arrays ({readable.name}) and picture files ({files[0].name}); name those to prepare"
        )
    if left_out := len(documents) - len(arrays) - len(files):
        notes.append(f"pickles were left out: {left_out}, no program opens one here")
    if files:
        pictures, skipped = files_as_pictures(files, progress=progress)
        lost = {document.split for document in files} - {picture.split for picture in pictures}
        notes += [f"no picture is left for {split}" for split in SPLITS if split in lost]
        return pictures, damaged + skipped, notes + without_class(files)
    if arrays:
        pictures, skipped, more = arrays_as_pictures(arrays)
        return pictures, skipped, notes + more
    raise ValueError(
        f"{documents[0].name}: a pickle, which can run any program when it is opened; if you trust it, load it "
        "yourself and write numpy.savez(file, x_train=..., y_train=..., x_test=..., y_test=...)"
    )


def _damaged(arrays: Sequence[Document]) -> list[tuple[str, str]]:
    """Files of arrays that nothing can be read from, and why."""
    found: list[tuple[str, str]] = []
    for array in arrays:
        try:
            read_arrays(array)
        except (ValueError, OSError) as error:
            found.append((array.name, reason(error, array.name)))
    return found


def _common_size(pictures: Sequence[Picture], size: tuple[int, int] | None) -> tuple[tuple[int, int], list[str]]:
    """Rows and columns of all pictures, and a note where some are made larger."""
    first = pictures[0]
    if size is None:
        for picture in pictures:
            if picture.size != first.size:
                raise ValueError(
                    f"pictures differ in size: {first.name} has {first.size[0]} x {first.size[1]} pixels, "
                    f"{picture.name} {picture.size[0]} x {picture.size[1]}; give --size ROWS COLUMNS, and each is "
                    "resized to cover that and its middle taken"
                )
        return first.size, []
    smaller = sum(picture.size[0] < size[0] or picture.size[1] < size[1] for picture in pictures)
    return size, [f"{smaller} pictures are smaller than {size[0]} x {size[1]} and were enlarged"] if smaller else []


def _choose_splits(
    pictures: Sequence[Picture], choices: Choices, digests: Sequence[bytes] | None
) -> tuple[list[str], list[str], bool]:
    """Where each picture goes: as its place says, else by its name; what was decided; whether splits were given.

    Raises:
        ValueError: Some have a split and others have none.
    """
    known = {None} if choices.split_by in ("piece", "hash") else {picture.split for picture in pictures}
    if known == {None}:
        splits, note = chosen_splits([picture.name for picture in pictures], choices.split_by, digests)
        if splits is None:
            return ["train"] * len(pictures), ["fewer than 3 different pictures, so all are for training"], False
        return splits, [note], False
    if None in known:
        free = next(picture.name for picture in pictures if picture.split is None)
        raise ValueError(
            f"{free} has no split, others have: name folders or arrays for train, validation and test, or pass over "
            "these names with --split-by hash"
        )
    splits = [str(picture.split) for picture in pictures]
    train = [index for index, split in enumerate(splits) if split == "train"]
    if "validation" in known or len(train) < 2:
        return splits, [], True
    held_out = max(1, len(train) // VALIDATION_SHARE)
    train.sort(key=lambda index: hashlib.sha256(pictures[index].name.encode(errors="surrogateescape")).digest())
    for index in train[-held_out:]:
        splits[index] = "validation"
    note = f"there was no validation split: {held_out:,} of {len(train):,} training pictures, by a hash, are it now"
    return splits, [note], True


def _classes(pictures: Sequence[Picture]) -> list[str] | list[int] | None:
    """All labels in order, or None."""
    labels = {picture.label for picture in pictures}
    if None in labels:
        return None
    numbers = [label for label in labels if isinstance(label, int)]
    if len(numbers) == len(labels):
        return sorted(numbers)
    return sorted(map(str, labels))


def _missing_classes(store: PictureStore) -> list[str]:
    """Notes on classes that cannot be learnt."""
    labels = store.split("train").labels if "train" in store.splits else None
    if labels is None or store.classes is None:
        return []
    missing = [name for index, name in enumerate(store.classes) if not (labels == index).any()]
    return [f"class {name!r} has no training picture" for name in missing]


def _write(
    writer: PictureWriter,
    pictures: Sequence[Picture],
    splits: Sequence[str],
    classes: list[str] | list[int] | None,
    skipped: list[tuple[str, str]],
    duplicates: list[tuple[str, str]] | None,
    *,
    progress: bool,
) -> tuple[list[Picture], list[bytes]] | None:
    """Bring pictures into their splits, those that are held out first; note what cannot be read.

    What is held out and elsewhere too is left out there, and noted in `duplicates`; without these it joins the other.

    Returns:
        None; or, with nothing written, the pictures that can be used and their digests, where a split lost all of its.
    """
    rows, columns, channels = writer.shape
    places: dict[str | int | None, int] = {label: index for index, label in enumerate(classes or [])}
    held_out: dict[bytes, tuple[str, str]] = {}
    used: dict[int, tuple[str, bytes]] = {}
    order = sorted(range(len(pictures)), key=lambda index: (-SPLITS.index(splits[index]), index))
    bar = tqdm(order, desc="preparing", unit="picture", disable=None if progress else True)
    with contextlib.suppress(_PlanAnewError), writer, contextlib.closing(bar):
        for index in bar:
            picture, split = pictures[index], splits[index]
            try:
                pixels = fitted(picture.read(), (rows, columns), channels=channels)
            except Exception as error:  # decoders raise all sorts of things, and one file must not stop the others
                skipped.append((picture.name, reason(error, picture.name)))
                continue
            digest = hashlib.sha256(np.ascontiguousarray(pixels).data).digest()
            if split != "train":
                held_out.setdefault(digest, (picture.name, split))
            name, first_split = held_out.get(digest, (picture.name, split))
            if first_split != split and duplicates is not None:
                duplicates.append((f"{name} ({first_split})", f"{picture.name} ({split})"))
                continue
            writer.append(first_split, pixels[None], np.array([places[picture.label]]) if places else None)
            used[index] = first_split, digest
        if not used:
            raise ValueError(_none_usable(skipped))
        left = {split for split, _ in used.values()}
        if "train" in splits and "train" not in left and duplicates is not None:
            raise ValueError("nothing is left for training: its pictures cannot be used, or are held out too")
        if set(splits) == left or duplicates is not None:
            return None
        raise _PlanAnewError
    return [pictures[index] for index in sorted(used)], [used[index][1] for index in sorted(used)]


class _PlanAnewError(Exception):
    """Nothing is to be written, because a split lost all its pictures."""


def _none_usable(skipped: list[tuple[str, str]]) -> str:
    name, reason = skipped[0]
    return f"none of {len(skipped)} pictures could be used; the first, {name}: {reason}"
