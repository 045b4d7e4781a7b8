"""Documents in files, directories and zip archives, and the split to which each belongs."""

import csv
import io
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from perceivers.data.splits import given_splits, split_named
from perceivers.records import parse_json

__all__ = ["UNPACKED_MB", "Document", "check_unpacked", "find_documents"]

UNPACKED_MB = 1024
"""Largest size to which a file may unpack: a few MB can become terabytes."""


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
    unpacked_mb: int = UNPACKED_MB
    """Largest size to which it may unpack."""

    def read(self) -> bytes:
        """The file's content.

        Raises:
            OSError: It cannot be read.
            ValueError: Its archive is damaged there, encrypted, or it is too large.
        """
        if self.member is None:
            return self.file.read_bytes()
        try:
            archive = _archive(self.file, self.file.stat().st_mtime_ns)
            check_unpacked(archive.getinfo(self.member).file_size, self.unpacked_mb)
            return archive.read(self.member)
        except OSError:
            raise
        except Exception as error:  # damaged archives raise all sorts of things
            raise ValueError(f"cannot be unpacked: {error}") from error


def check_unpacked(num_bytes: int, most_mb: int) -> None:
    """Refuse what would unpack to more.

    Raises:
        ValueError: It would.
    """
    if num_bytes > most_mb * 2**20:
        needed = -(-num_bytes // 2**20)
        raise ValueError(f"it unpacks to {needed:,} MB, more than {most_mb:,}; --unpacked-mb {needed} reads it")


def find_documents(
    sources: Sequence[Path], suffixes: Sequence[str], *, splits: bool = True, unpacked_mb: int = UNPACKED_MB
) -> tuple[list[Document], list[str]]:
    """Find the files whose names end in one of `suffixes`, in order of their names.

    A document's split is known if MAESTRO's own table (`maestro-*.csv` or `.json`) lies beside the data, or if all
    folders at one depth have names of splits (train, Training, val, dev, testing, ...), or all files, or all sources.

    Args:
        sources: Directories, which are searched through with the folders that they link to, zip archives, or single
            files.
        suffixes: Endings in lower case, with their dot if they have one.
        splits: Look for splits; otherwise no document has one.
        unpacked_mb: Largest size to which a file in an archive may unpack.

    Returns:
        The documents, and notes for the user: what was left out, and how splits were given.

    Raises:
        FileNotFoundError: A source does not exist.
        ValueError: There is no such file, a source is something else, or splits are contradictory.
    """
    documents: list[Document] = []
    notes: list[str] = []
    given: list[str | None] = []
    others: Counter[str] = Counter()
    for source in sources:
        try:
            files, skipped = _files_of(source)
        except ValueError as error:  # a damaged archive keeps none of the others back
            if len(sources) == 1:
                raise
            notes.append(f"left out: {error}")
            continue
        found = {path: place for path, place in files.items() if path.lower().endswith(tuple(suffixes))}
        table = _table(files) if splits else None
        others.update(PurePosixPath(path).suffix.lower() for path in files.keys() - found.keys() - {table})
        table_splits, table_notes = _table_splits(source, table, files, found) if table else ({}, [])
        notes += skipped + table_notes
        prefix = _prefix(source) if len(sources) > 1 else ""
        for path, (file, member) in sorted(found.items()):
            given.append(table_splits.get(path))
            documents.append(Document(name=prefix + path, file=file, member=member, unpacked_mb=unpacked_mb))
    if not documents:
        there = f"; there are {_counted(others)}" if others else ""
        there += "".join(f"; {note}" for note in notes)
        raise ValueError(f"{', '.join(map(str, sources))}: no file there ends in {' or '.join(suffixes)}{there}")
    if others:
        notes.append(f"files of other kinds were left out: {_counted(others)}")
    if splits and None in given:
        if any(given):
            name = documents[given.index(None)].name
            raise ValueError(f"{name} is not in the table that gives other splits; prepare it alone, or take it out")
        named, more = given_splits([document.name for document in documents])
        given, notes = list(named) if named else given, notes + more
    return [
        Document(**{**vars(document), "split": split}) for document, split in zip(documents, given, strict=True)
    ], notes


def _prefix(source: Path) -> str:
    """What keeps the names of several sources apart."""
    if source.is_dir():
        return f"{source.name}/"
    return f"{source.stem}/" if source.suffix.lower() == ".zip" else ""


Place = tuple[Path, str | None]
"""A file on disk, or an archive and a path in it."""


def _counted(suffixes: Counter[str]) -> str:
    return ", ".join(f"{count:,} {suffix or 'without suffix'}" for suffix, count in suffixes.most_common(6))


def _files_of(source: Path) -> tuple[dict[str, Place], list[str]]:
    """All files of a source by their paths in it, without hidden ones; and notes on what could not be walked."""
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or directory")
    notes: list[str] = []
    if source.is_dir():
        files = dict(_walk(source, notes))
    elif source.suffix.lower() == ".zip":
        try:
            members = _archive(source, source.stat().st_mtime_ns).infolist()
        except Exception as error:  # damaged archives raise all sorts of things
            raise ValueError(f"{source}: damaged, or not a zip archive ({error})") from error
        paths = {member.filename: _path_in(member.filename) for member in members}
        files = {path: (source, member) for member, path in paths.items() if not path.endswith("/")}
    else:
        files: dict[str, Place] = {source.name: (source, None)}
    return {path: place for path, place in files.items() if not _is_hidden(path)}, notes


def _path_in(member: str) -> str:
    r"""A member's path with slashes: tools of Windows write a\b.png."""
    return member if "/" in member else member.replace("\\", "/")


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(path).parts)


def _walk(top: Path, notes: list[str]) -> Iterator[tuple[str, Place]]:
    """The files below a directory, also below those to which it links, but never in circles."""
    seen: set[tuple[int, int]] = set()
    pending: list[tuple[Path, str, frozenset[tuple[int, int]], bool, bool]] = [(top, "", frozenset(), False, False)]
    while pending:
        folder, path, above, behind_link, only_new = pending.pop()
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            notes.append(f"the folder {path.rstrip('/')} was left out, it cannot be read: {error.strerror}")
            continue
        place = (status.st_dev, status.st_ino)
        if place in above or (only_new and place in seen):
            notes.append(f"the link {path.rstrip('/')} was left out, it leads back to a folder that is read already")
            continue
        seen.add(place)
        for entry in entries:
            inner = path + entry.name
            if _is_hidden(entry.name):
                continue
            if entry.is_dir():
                # Behind a link, further links are followed to new folders only: else many links make endless paths.
                is_link = entry.is_symlink()
                deeper = (behind_link or is_link, behind_link and is_link)
                pending.append((Path(entry.path), f"{inner}/", above | {place}, *deeper))
            elif entry.is_file():
                yield inner, (Path(entry.path), None)
            elif entry.is_symlink():
                notes.append(f"the link {inner} was left out, it leads nowhere")


@lru_cache(maxsize=8)
def _archive(path: Path, changed_ns: int) -> zipfile.ZipFile:
    """An open archive: reading its table of contents anew for each member would take most of the time."""
    del changed_ns  # only tells one state of the file from the next
    return zipfile.ZipFile(path)


def _table(files: dict[str, Place]) -> str | None:
    """MAESTRO's own table, if there is one."""
    tables = [p for p in files if PurePosixPath(p).match("maestro*.csv") or PurePosixPath(p).match("maestro*.json")]
    return min(tables, default=None)  # .csv before .json, which says the same


def _table_splits(
    source: Path, table: str, files: dict[str, Place], found: dict[str, Place]
) -> tuple[dict[str, str], list[str]]:
    """What MAESTRO's own table says of each file, and notes."""
    file, member = files[table]
    rows = _table_rows(Document(name=table, file=file, member=member))
    folder = PurePosixPath(table).parent
    splits = {(folder / name).as_posix(): split for name, split in rows}
    if unlisted := sorted(found.keys() - splits.keys()):
        raise ValueError(
            f"{source}: {unlisted[0]} is not in {table}, which gives the splits; take the file or the table out"
        )
    missing = len(splits.keys() - found.keys())
    notes = [f"splits as {table} says"]
    notes += [f"{table} lists {len(splits)} performances, {missing} of them are not there"] if missing else []
    return splits, notes


def _table_rows(table: Document) -> list[tuple[str, str]]:
    """File names and splits in MAESTRO's table, in any of its published forms."""
    try:
        text = table.read().decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text))) if table.name.endswith(".csv") else parse_json(text)
        if isinstance(rows, dict):  # version 3: a dictionary of columns
            pairs = [(name, rows["split"][key]) for key, name in rows["midi_filename"].items()]
        else:
            pairs = [(row["midi_filename"], row["split"]) for row in rows]
        splits = [split_named(split, exact=True) for _, split in pairs]
        if None in splits:
            raise ValueError(f"a split {pairs[splits.index(None)][1]!r}")
        return [(str(name), str(split)) for (name, _), split in zip(pairs, splits, strict=True)]
    except Exception as error:  # whatever a table can be: no JSON, too deep, other columns
        raise ValueError(
            f"{table.name}: not MAESTRO's table of midi_filename and split ({error!r}); --split-by hash does without"
        ) from error
