"""Files and directories that appear whole or not at all, and locks: what everything that writes goes through.

What is written gets a hidden name beside its own, is brought to the disk, and takes its name in one step. A kill in
between leaves the old file as it was, and a hidden one that the next write of that name removes.
"""

import contextlib
import ctypes
import errno
import itertools
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout, UnixFileLock

__all__ = [
    "Lock",
    "Write",
    "check_file",
    "explained",
    "finish_files",
    "new_directory",
    "remove_directory",
    "replace_file",
    "replace_files",
    "swap",
    "sync_directory",
    "write_bytes",
    "write_figure",
    "write_text",
]

Write = Callable[[Path], object]
"""Fills the file at a path that it is given."""

COMMITTED = ".committed"
"""Directory of complete files that have not all got their names yet."""

_numbers = itertools.count()
_in_use: set[Path] = set()


def replace_file(path: Path, write: Write) -> None:
    """Let `write` fill a hidden file beside `path`, then put it in `path`'s place in one step.

    A link stays one: what it points to is replaced. The new file has the rights of the old one.

    Raises:
        OSError: The disk is full or not writable, or a file must not be there; `path` is as it was.
    """
    check_file(path)
    path = Path(os.path.realpath(path))
    with explained(path), _hidden(path) as partial:
        write(partial)
        _sync_file(partial)
        if path.exists():
            shutil.copymode(path, partial)
        os.replace(partial, path)
        sync_directory(path.parent)


def check_file(path: Path) -> None:
    """Refuse to put a file in place of what is no file, or is protected.

    Taking a name asks for rights in the directory alone, and would replace a protected file, a device or a pipe.

    Raises:
        FileNotFoundError: There is no directory to put it into.
        FileExistsError: A directory is there, a device, a pipe, or a link that leads in a circle.
        PermissionError: A file is there that is protected from writing.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no directory {target.parent if path.is_symlink() else path.parent}")
    if target.is_dir():
        raise FileExistsError(f"{path}: a directory has this name; choose another")
    if os.path.lexists(target) and not target.is_file():
        raise FileExistsError(f"{path}: what has this name is no file; choose another")
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(f"{path}: this file is protected from writing; choose another name, or allow it")


def write_text(path: Path, text: str) -> None:
    """Put a file of `text`, as UTF-8, in `path`'s place."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Put a file of `content` in `path`'s place."""
    replace_file(path, lambda partial: partial.write_bytes(content))


def write_figure(path: Path, figure: Any, **options: Any) -> None:
    """Put a figure of matplotlib, as what the suffix says, in `path`'s place."""
    kind = path.suffix.removeprefix(".") or "png"
    replace_file(path, lambda partial: figure.savefig(partial, format=kind, **options))


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A hidden directory to write files into, which takes the name `path` when the block ends well.

    Raises:
        OSError: Something with files in it is at `path`, or the disk is full or not writable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _hidden(path) as partial:
        partial.mkdir()
        yield partial
        for file in partial.iterdir():
            _sync_file(file)
        sync_directory(partial)
        os.rename(partial, path)
        sync_directory(path.parent)


def replace_files(directory: Path, files: Mapping[str, Write]) -> None:
    """Write files of `directory`, which is made if need be, that belong together: all are the old ones, or all the new.

    They are complete under the name `COMMITTED`, and then take their own names, in the order given. What reads them
    calls `finish_files` first, in case that a kill came in between.

    Raises:
        OSError: The disk is full or not writable; all are as they were.
    """
    directory.mkdir(parents=True, exist_ok=True)
    finish_files(directory)
    with new_directory(directory / COMMITTED) as partial:
        for name, write in files.items():
            write(partial / name)
    try:
        finish_files(directory, order=tuple(files))
    except OSError:  # they are complete: a second try costs nothing
        finish_files(directory, order=tuple(files))


def finish_files(directory: Path, *, order: tuple[str, ...] = ()) -> None:
    """Give complete files that `replace_files` left in `directory` their names; several may do so at once."""
    committed = directory / COMMITTED
    if not committed.is_dir():
        return
    for name in order or sorted(os.listdir(committed), reverse=True):  # a model's config.json last
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.replace(committed / name, directory / name)
    with contextlib.suppress(OSError):  # likewise, or it has files of another write by now
        committed.rmdir()
    sync_directory(directory)


def remove_directory(path: Path) -> None:
    """Remove a directory; a kill on the way leaves no half of it under its name."""
    if path.exists():
        with _hidden(path) as gone:
            os.rename(path, gone)


class Lock:
    """A file that this process alone has locked, until `release` or until the process dies, however it dies."""

    def __init__(self, path: Path, busy: str) -> None:
        """Lock `path`, a file that is there for nothing else.

        Raises:
            FileExistsError: It is locked already; `busy` says so.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._held = FileLock(path, timeout=0, thread_local=False)
        try:
            self._held.acquire()
        except Timeout:
            raise FileExistsError(busy) from None

    @classmethod
    def of_directory(cls, directory: Path) -> "Lock":
        """Lock a directory, which is made if need be, for what writes in it."""
        busy = "another process is writing in this directory; wait for it, stop it, or choose another place"
        return cls(directory / ".lock", f"{directory}: {busy}")

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Let go of it, as the last thing: the file goes first, and who had opened it finds that it is gone."""
        if self._held.is_locked and isinstance(self._held, UnixFileLock):  # others remove it themselves
            with contextlib.suppress(OSError):
                os.unlink(self._held.lock_file)
        self._held.release()


def swap(first: Path, second: Path) -> bool:
    """Exchange two names in one step; False where the system can't, and nothing was done."""
    if sys.platform != "linux":
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def sync_directory(path: Path) -> None:
    """Bring the names in a directory to the disk."""
    if os.name == "nt":  # which can't
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems can't either
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say what a full disk means for `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        state = "is as it was" if path.exists() else "was not written and nothing of it is left"
        raise OSError(
            error.errno,
            f"the disk is full: {path} {state}; free some space in {path.parent} or choose another place",
        ) from error


@contextlib.contextmanager
def _hidden(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` of this block alone; what has it in the end is removed."""
    stem = path.name.lstrip(".")[:60]
    _remove_leftovers(path.parent, stem)
    hidden = path.with_name(f".{stem}.{os.getpid()}-{next(_numbers)}.partial")
    _in_use.add(hidden)
    try:
        yield hidden
    finally:
        _in_use.discard(hidden)
        _remove(hidden)


def _remove_leftovers(directory: Path, stem: str) -> None:
    """Remove what a kill has left."""
    name = re.compile(rf"\.{re.escape(stem)}\.(\d{{1,9}})-\d+\.partial")
    for entry in os.listdir(directory):
        if (found := name.fullmatch(entry)) and directory / entry not in _in_use and not _lives(int(found[1])):
            _remove(directory / entry)


def _lives(process: int) -> bool:
    """Whether another process of this number is there."""
    if process == os.getpid() or os.name == "nt":  # where a file that another process has open can't be removed
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    """Remove a file or directory, if it is there and can be removed; the next write tries again."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
