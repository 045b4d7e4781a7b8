"""Which document is for training, validation or test: as names and tables say, or by a hash."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Literal

__all__ = [
    "SPLITS",
    "SplitBy",
    "chosen_splits",
    "few_documents",
    "given_splits",
    "grouped_splits",
    "hashed_splits",
    "pieces_apart",
    "split_in",
    "split_named",
    "words_of",
]

SPLITS = ("train", "validation", "test")
SplitBy = Literal["piece", "folder", "hash"]
"""What stays together where nothing says who goes where: recordings whose names are alike, folders, or nothing."""
HELD_OUT = 0.05
"""Share of documents that goes to validation, and as much again to test, where nothing else says who goes where."""
FEW = 10
"""A split of fewer documents says little about others."""

WORDS = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "trainval": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "validate": "validation",
    "validating": "validation",
    "dev": "validation",
    "devel": "validation",
    "development": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "test": "test",
    "testing": "test",
    "tst": "test",
    "holdout": "test",
    "heldout": "test",
    "t10k": "test",  # MNIST's ten thousand
}
WORD = re.compile(rf"([xy])?({'|'.join(sorted(WORDS, key=len, reverse=True))})(set|data|[xy]|\d+)?")
"""A word with what may cling to it: trainset, train2017, xtrain, testy."""

TAKE = re.compile(
    r"""(?: (?:^|[\W_]+) (?:take|copy|version|ver|rec|recording|perf|performance|performer|player|pianist|live|alt
                           |mix|remix|edit|session) [\W_]* (?:\d+|[a-z])? (?![a-z0-9])
          | (?:^|[\W_]+) v \d+
          | \s* [(\[] \d+ [)\]]
        ) [\W_]* $""",
    re.VERBOSE,
)
"""What tells recordings of one piece apart, at the end of their names."""
NUMBER = re.compile(r"(?<=[a-z0-9])[\W_]+\d{1,2}[\W_]*$")
GENERIC = re.compile(
    r"""[a-z]? | (?: track | song | piece | music | midi | mid | audio | file | document | doc | text | txt | page
                   | part | chunk | clip | sample | item | example | data | untitled | unnamed | unknown | output | seq
                   | sequence | number | no | nr | id )? [\W_]* \d* [\W_]*""",
    re.VERBOSE,
)
"""Names that say nothing of a piece: 0, a, track1, song 02. Each counts in its folder alone."""
CATALOGUE = re.compile(r"(?:^|[\W_])(?:op|opus|no|nr|bwv|kv|k|d|hob|rv|hwv|woo|s)$")
"""A number after one of these is the piece's."""


def split_named(name: str, *, exact: bool = False) -> str | None:
    """The split that a folder's or a file's name says: Train, testing, val2017, mnist_train, x_test, ...

    Args:
        name: Without its suffix.
        exact: The whole name must be the word; otherwise it may stand among others, if no word says another split.
    """
    if exact:
        found = WORD.fullmatch(re.sub(r"[\W_]+", "", name.lower()))
        return WORDS[found[2]] if found and not found[1] and found[3] not in ("x", "y") else None
    known = {WORDS[word] for word in words_of(name) if word in WORDS}
    return known.pop() if len(known) == 1 else None


def split_in(name: str, splits: Sequence[str]) -> str:
    """The one of `splits` that a user means: "val" and "dev" are validation, unless one has that very name."""
    word = split_named(name, exact=True)
    return word if word is not None and word in splits and name not in splits else name


def words_of(name: str) -> set[str]:
    """The words of a name in lower case, also those that are written together: xTrain, X_train, trainx all have x."""
    name = re.sub(r"(?i)(held|hold)[\W_]out", r"\1out", name)
    name = re.sub(r"(?i)(?<![a-z])train[\W_]*(and)?[\W_]*val(?![a-z])", "trainval", name)  # validation is taken from it
    camel = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    words = {word for part in (name.lower(), camel) for word in re.split(r"[^a-z0-9]+", part)}
    return words | {group for word in words if (found := WORD.fullmatch(word)) for group in found.groups() if group}


def given_splits(paths: Sequence[str]) -> tuple[list[str] | None, list[str]]:
    """Splits by the folders at one depth, or by the names of the files; None where they say nothing; and notes.

    Raises:
        ValueError: Some say a split, and others do not.
    """
    folders = [PurePosixPath(path).parts[:-1] for path in paths]
    depths = range(max(map(len, folders), default=0))
    at_depth = [[parts[depth] if len(parts) > depth else "" for parts in folders] for depth in depths]  # "": none
    for names in at_depth:
        splits = [split_named(name) for name in names]
        if None not in splits and len(set(splits)) > 1:
            return [str(split) for split in splits], [_given("folders", names)]
    for names in at_depth:
        if len(set(names)) > 1:
            break
        if split := split_named(names[0], exact=True):
            return [split] * len(paths), [_given("folders", names)]
    _check_one_depth(paths)
    for names in at_depth:
        if note := _beside(paths, names, "folders"):
            return None, [note]

    stems = [PurePosixPath(path).stem for path in paths]
    splits = [split_named(stem) for stem in stems]
    several = len(set(splits)) > 1 or all(split_named(stem, exact=True) for stem in stems)
    if None not in splits and "train" in splits and several:
        return [str(split) for split in splits], ["splits as the names of the files say"]
    note = _beside(paths, stems, "files") if "train" in splits else None
    return None, [note] if note else []


def _check_one_depth(paths: Sequence[str]) -> None:
    """Refuse splits that are named at different depths: one of the words may be a class."""
    named: dict[str, str] = {}
    for path in paths:
        parts = PurePosixPath(path).parts[:-1]
        depth = next((depth for depth, part in enumerate(parts) if split_named(part, exact=True)), None)
        if depth is None:
            return
        named.setdefault(str(split_named(parts[depth], exact=True)), "/".join(parts[: depth + 1]))
    if len(named) > 1:
        raise ValueError(
            f"the folders {', '.join(sorted(named.values()))} name splits at different depths; put them beside each "
            "other, or pass over these names with --split-by hash"
        )


def _given(what: str, names: Sequence[str]) -> str:
    shown = sorted(set(names))
    return f"splits as the {what} say: {', '.join(shown[:6])}{', ...' if len(shown) > 6 else ''}"


def _beside(paths: Sequence[str], names: Sequence[str], what: str) -> str | None:
    """Refuse names of splits beside others; a note where one alone is taken for a class, or for a name."""
    splits = {name: split_named(name, exact=True) for name in names}
    named = sorted(name for name, split in splits.items() if split)
    if not named or None not in splits.values():
        return None
    alone = len({splits[name] for name in named}) == 1
    if alone and "" not in splits:
        return f"the {what[:-1]} {named[0]} lies beside others that name no split, so it is taken for none"
    outside = next(path for path, name in sorted(zip(paths, names, strict=True)) if not splits[name])
    raise ValueError(
        f"{outside} lies beside the {what} {', '.join(named)}; move it into one of them, or elsewhere, "
        "or pass over these names with --split-by hash"
    )


def hashed_splits(names: Sequence[str]) -> list[str]:
    """A split for each name, by its hash: 90 % train, 5 % validation, 5 % test, each at least one of three names.

    A document stays where it is when others come or go, but for the odd one that fills an empty split.
    """
    # Names of files need not be UTF-8, and come with surrogates then.
    hashes = [hashlib.sha256(name.encode(errors="surrogateescape")).digest() for name in names]
    shares = [int.from_bytes(digest[:6]) / 2**48 for digest in hashes]
    splits = [SPLITS[(share >= 1 - 2 * HELD_OUT) + (share >= 1 - HELD_OUT)] for share in shares]
    if len(names) >= 3:
        ranked = sorted(range(len(names)), key=shares.__getitem__)
        for split, index in (("train", ranked[0]), ("test", ranked[-1]), ("validation", ranked[-2])):
            if split not in splits:
                splits[index] = split
    return splits


def grouped_splits(names: Sequence[str], by: SplitBy) -> tuple[list[str], str]:
    """A split for each of three or more names by a hash of what stays together; and a note that says so.

    Raises:
        ValueError: They are fewer than three groups.
    """
    shares = "90 % train, 5 % validation, 5 % test"
    if by == "hash":
        return hashed_splits(names), f"splits by a hash of the name: {shares}"
    keys = [piece_of(name) if by == "piece" else str(PurePosixPath(name).parent) for name in names]
    groups = list(dict.fromkeys(keys))
    if len(groups) < 3:
        raise ValueError(
            f"--split-by {by}: the names tell {len(groups)} {by}{'s' if len(groups) > 1 else ''} apart, "
            f"three splits need 3: {names[0]}, ...; use --split-by hash, or folders train, validation and test"
        )
    split_of = dict(zip(groups, hashed_splits(groups), strict=True))
    return [split_of[key] for key in keys], f"splits by a hash of the {by}, {len(groups):,} of them: {shares}"


def chosen_splits(
    names: Sequence[str], by: SplitBy | None, digests: Sequence[bytes] | None = None
) -> tuple[list[str] | None, str]:
    """A split for each name as `grouped_splits` chooses it; None if fewer than three differ.

    Args:
        names: Of documents.
        by: What stays together; None for nothing.
        digests: Of their contents, where these are known: equal ones go to one split.
    """
    contents = list(digests or map(str, range(len(names))))
    firsts = dict(zip(reversed(contents), reversed(names), strict=True))
    if len(firsts) < 3:
        return None, ""
    splits, note = grouped_splits(list(firsts.values()), by or "hash")
    split_of = dict(zip(firsts, splits, strict=True))
    return [split_of[content] for content in contents], note


def piece_of(name: str) -> str:
    """What recordings of one piece have in common: their name without take, copy, version or number.

    Folders of splits are left out of it, unless the name is one that any piece may have.
    """
    path = PurePosixPath(name)
    if re.search(r"#\d+$", name):  # rows of one file are documents of their own
        return name
    folders = [part for part in path.parts[:-1] if not split_named(part, exact=True)]
    stem = path.stem.lower()
    while (shorter := TAKE.sub("", stem)) != stem:
        stem = shorter
    number = NUMBER.sub("", stem)
    stem = stem if CATALOGUE.search(number) or GENERIC.fullmatch(number) else number
    if GENERIC.fullmatch(stem or (folders[-1].lower() if folders else "")):
        folders = path.parts[:-1]
    return "/".join([*folders, stem])


def pieces_apart(names: Sequence[str], splits: Sequence[str]) -> list[str]:
    """A note if recordings of one piece seem to be in several splits, and one if folders are."""
    notes = []
    pieces = _apart([piece_of(name) for name in names], names, splits)
    if pieces:
        notes.append(
            f"recordings of {len(pieces)} piece{'s' if len(pieces) > 1 else ''} seem to be in several splits, so "
            f"held-out scores may flatter: {_example(pieces)}; --split-by piece keeps names that are alike together"
        )
    folders = _apart([str(PurePosixPath(name).parent) for name in names], names, splits)
    if folders and not pieces:
        notes.append(
            f"files of one folder are in several splits ({_example(folders)}); if a folder holds one piece, "
            "--split-by folder keeps it together"
        )
    return notes


def _apart(keys: Sequence[str], names: Sequence[str], splits: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Groups in several splits, with a name and its split for each of these."""
    if len(set(keys)) < 2:  # all names are alike: numbers are what tells them apart
        return {}
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for key, name, split in zip(keys, names, splits, strict=True):
        found[key].setdefault(split, name)
    return {key: [(n, s) for s, n in places.items()] for key, places in found.items() if len(places) > 1}


def _example(groups: dict[str, list[tuple[str, str]]]) -> str:
    first = next(iter(groups.values()))
    return " and ".join(f"{name} ({split})" for name, split in first[:2])


def few_documents(counts: dict[str, int], what: str = "documents") -> list[str]:
    """A note if a split is so small that it says little."""
    few = [f"{split} {count}" for split, count in counts.items() if count < FEW]
    return [f"few {what} ({', '.join(few)}): scores on fewer than {FEW} say little about others"] if few else []
