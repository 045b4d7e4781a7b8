"""Documents in files, directories and zip archives, and the split to which each belongs."""

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

__all__ = ["SPLITS", "SPLIT_FOLDERS", "Document", "find_documents", "hashed_splits"]

SPLIT_FOLDERS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation"}
SPLIT_FOLDERS |= {"dev": "validation", "test": "test"}
SPLITS = ("train", "validation", "test")
HELD_OUT = 0.05
"""Share of documents that goes to validation, and as much again to test, where nothing else says who goes where."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """One file, on disk or in a zip archive."""

    name: str
    """Its path inside what the user gave."""
    file: Path
    """The file, or the archive that it is in."""
    member: str | None = None
    """Its path in the archive."""
    split: str | None = None
    """Its split, where its place or a table says it."""

    def read(self) -> bytes:
        """The file's content.

        Raises:
            OSError: It cannot be read.
            ValueError: Its archive is damaged there, or encrypted.
        """
        if self.member is None:
            return self.file.read_bytes()
        try:
            return _archive(self.file, self.file.stat().st_mtime_ns).read(self.member)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:  # RuntimeError: encrypted
            raise ValueError(f"cannot be unpacked: {error}") from error


def find_documents(sources: Sequence[Path], suffixes: Sequence[str]) -> tuple[list[Document], list[str]]:
    """Find the files whose names end in one of `suffixes`, in order of their names.

    A document's split is known if MAESTRO's own table (`maestro-*.csv` or `.json`) lies beside the data, or if
    the folders at the top are called train, validation (valid, val, dev) and test, or all the files are, or the
    directories given.

    Args:
        sources: Directories, which are searched through, zip archives, or single files.
        suffixes: Endings in lower case, with their dot if they have one.

    Returns:
        The documents, and notes for the user.

    Raises:
        FileNotFoundError: A source does not exist.
        ValueError: There is no such file, a source is something else, or splits are contradictory.
    """
    documents: list[Document] = []
    notes: list[str] = []
    for source in sources:
        files = _files_of(source)
        found = {path: place for path, place in files.items() if path.lower().endswith(tuple(suffixes))}
        splits, note = _table_splits(source, files, found)
        splits = splits or _folder_splits(source, found)
        if not splits and len(sources) > 1 and source.is_dir() and source.name in SPLIT_FOLDERS:
            splits = dict.fromkeys(found, SPLIT_FOLDERS[source.name])
        notes += note
        prefix = f"{source.name}/" if len(sources) > 1 and not source.is_file() else ""
        documents += [
            Document(name=prefix + path, file=file, member=member, split=splits.get(path))
            for path, (file, member) in sorted(found.items())
        ]
    if not documents:
        raise ValueError(f"{', '.join(map(str, sources))}: no file there ends in {' or '.join(suffixes)}")
    return documents, notes


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


Place = tuple[Path, str | None]
"""A file on disk, or an archive and a path in it."""


def _files_of(source: Path) -> dict[str, Place]:
    """All files of a source by their paths in it, without hidden ones."""
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or directory")
    if source.is_dir():
        files: Iterable[tuple[str, Place]] = (
            (path.relative_to(source).as_posix(), (path, None)) for path in source.rglob("*") if path.is_file()
        )
    elif source.suffix.lower() == ".zip":
        try:
            members = _archive(source, source.stat().st_mtime_ns).infolist()
        except zipfile.BadZipFile as error:
            raise ValueError(f"{source}: damaged, or not a zip archive ({error})") from error
        files = ((member.filename, (source, member.filename)) for member in members if not member.is_dir())
    else:
        files = [(source.name, (source, None))]
    return {path: place for path, place in files if not _is_hidden(path)}


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(path).parts)


@lru_cache(maxsize=8)
def _archive(path: Path, changed_ns: int) -> zipfile.ZipFile:
    """An open archive: reading its table of contents anew for each member would take most of the time."""
    del changed_ns  # only tells one state of the file from the next
    return zipfile.ZipFile(path)


def _table_splits(source: Path, files: dict[str, Place], found: dict[str, Place]) -> tuple[dict[str, str], list[str]]:
    """What MAESTRO's own table says of each file, if there is one; and notes."""
    tables = [p for p in files if PurePosixPath(p).match("maestro*.csv") or PurePosixPath(p).match("maestro*.json")]
    if not tables:
        return {}, []
    table = min(tables)  # .csv before .json, which says the same
    file, member = files[table]
    rows = _table_rows(Document(name=table, file=file, member=member))
    folder = PurePosixPath(table).parent
    splits = {(folder / name).as_posix(): split for name, split in rows}
    if unlisted := sorted(found.keys() - splits.keys()):
        raise ValueError(
            f"{source}: {unlisted[0]} is not in {table}, which gives the splits; take the file or the table out"
        )
    missing = len(splits.keys() - found.keys())
    note = [f"{table} lists {len(splits)} performances, {missing} of them are not there"] if missing else []
    return splits, note


def _table_rows(table: Document) -> list[tuple[str, str]]:
    """File names and splits in MAESTRO's table, in any of its published forms."""
    try:
        text = table.read().decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text))) if table.name.endswith(".csv") else json.loads(text)
        if isinstance(rows, dict):  # version 3: a dictionary of columns
            return [(name, rows["split"][key]) for key, name in rows["midi_filename"].items()]
        return [(row["midi_filename"], row["split"]) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{table.name}: not MAESTRO's table of midi_filename and split ({error!r})") from error


def _folder_splits(source: Path, found: dict[str, Place]) -> dict[str, str]:
    """Splits by the names of the topmost folders that are not the only one, or by those of the files."""
    paths = {path: PurePosixPath(path).parts for path in found}
    depth = 0
    while paths:
        folders = {parts[depth] if len(parts) > depth + 1 else "" for parts in paths.values()}  # "": none
        if named := sorted(folders & SPLIT_FOLDERS.keys()):
            if outside := sorted(path for path, parts in paths.items() if parts[depth] not in SPLIT_FOLDERS):
                raise ValueError(
                    f"{source}: {outside[0]} lies beside the folders {', '.join(named)}; "
                    "move it into one of them, or elsewhere"
                )
            return {path: SPLIT_FOLDERS[parts[depth]] for path, parts in paths.items()}
        if len(folders) > 1 or "" in folders:
            break
        depth += 1
    stems = {path: PurePosixPath(path).stem for path in found}
    if "train" in stems.values() and set(stems.values()) <= SPLIT_FOLDERS.keys():
        return {path: SPLIT_FOLDERS[stem] for path, stem in stems.items()}
    return {}
