"""A store's directory, which appears whole or not at all: what writers of stores write into."""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from perceivers.data.header import FileRecord
from perceivers.writing import Lock, explained, swap
from perceivers.writing import sync_directory as _sync_directory

__all__ = ["HashedFile", "NewDirectory", "restore", "write_synced"]


class NewDirectory:
    """A hidden directory beside `path`, which takes its name only with `commit`.

    An exception, Ctrl-C or a kill before that leaves nothing at `path`, and an older store there as it was. What a
    killed writer left behind is removed by the next one. The caller must call `discard` at the end in any case.

    One process writes at a time: the lock lies beside the directory, because that is renamed.

        place = NewDirectory(path, kind="token store", files=("header.json", ".tokens"), overwrite=False)
        place.open()
        try:
            ... (place.partial / "header.json").write_text(...)
            place.commit()
        finally:
            place.discard()
    """

    def __init__(self, path: str | Path, *, kind: str, files: Sequence[str], overwrite: bool) -> None:
        """Check the target; nothing is written yet.

        Args:
            path: Where the directory shall be; its parent is made if need be.
            kind: What it will be, for messages: "token store".
            files: Names, or endings with their dot, of the files that such a directory has; one with any other file is
                never replaced.
            overwrite: Replace a directory of the same kind.

        Raises:
            FileExistsError: Something is at `path`.
        """
        self.path = Path(path).resolve()
        self.partial = self.path.with_name(f".{self.path.name}.partial")
        """Where files go until the commit."""
        self._kind, self._files, self._overwrite = kind, files, overwrite
        self._lock: Lock | None = None
        self._check_target()

    @property
    def is_open(self) -> bool:
        """Whether files may be written."""
        return self._lock is not None

    def open(self) -> None:
        """Make the hidden directory, in place of one that a killed writer left.

        Raises:
            FileExistsError: Another process is writing there.
        """
        with self.explained():
            self._lock = _lock(self.path)
            try:
                _give_back(self.path)
                shutil.rmtree(_replaced(self.path), ignore_errors=True)
                shutil.rmtree(self.partial, ignore_errors=True)
                self.partial.mkdir()
            except BaseException:
                self.discard()
                raise

    def commit(self) -> None:
        """Give the directory its name; its files must be closed and on the disk.

        Raises:
            FileExistsError: Something appeared at `path` meanwhile.
        """
        self._check_target()  # again: hours may have passed
        _sync_directory(self.partial)
        try:
            os.rename(self.partial, self.path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not swap(self.partial, self.path):  # with the old store
                self._replace()
        _sync_directory(self.path.parent)

    def _replace(self) -> None:
        """Rename both, where names can't be exchanged; `restore` mends what a kill in between leaves."""
        os.rename(self.path, _replaced(self.path))
        try:
            os.rename(self.partial, self.path)
        except OSError:
            _give_back(self.path)
            raise

    def discard(self) -> None:
        """Remove what was not committed, or was replaced, and let go of the lock."""
        if self._lock is None:  # nothing here is ours
            return
        shutil.rmtree(self.partial, ignore_errors=True)
        if self.path.exists():
            shutil.rmtree(_replaced(self.path), ignore_errors=True)
        self._lock.release()
        self._lock = None

    def explained(self) -> contextlib.AbstractContextManager[None]:
        """Say what a full disk means here."""
        return explained(self.path)

    def _check_target(self) -> None:
        if self.path.is_mount():
            raise FileExistsError(f"{self.path}: a mount point cannot be replaced; choose a directory inside it")
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not self.path.is_dir() or any(
            entry.name not in self._files and entry.suffix not in self._files for entry in self.path.iterdir()
        ):
            raise FileExistsError(f"{self.path}: exists and is not a {self._kind}; choose another place")
        if not self._overwrite:
            raise FileExistsError(f"{self.path}: a {self._kind} is there already; choose another place or --overwrite")


class HashedFile:
    """A file that grows, and at the end is on the disk with a record of what it must be."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb")
        self._hash, self._num_bytes = hashlib.sha256(), 0

    def write(self, data: bytes | memoryview) -> None:
        """Add to its end."""
        self._stream.write(data)
        self._hash.update(data)
        self._num_bytes += memoryview(data).nbytes

    def finish(self) -> FileRecord:
        """Bring everything to the disk."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        return FileRecord(num_bytes=self._num_bytes, sha256=self._hash.hexdigest())

    def close(self) -> None:
        """Let go of the file, finished or not."""
        with contextlib.suppress(OSError):  # a full disk fails again when buffers are flushed
            self._stream.close()


def write_synced(path: Path, data: bytes) -> FileRecord:
    """Write a file and bring it to the disk."""
    file = HashedFile(path)
    try:
        file.write(data)
        return file.finish()
    finally:
        file.close()


def restore(path: Path) -> None:
    """Give a store back its name, which a writer that was killed had taken from it to give it to a new one."""
    if path.exists() or not _replaced(path).exists():
        return
    with contextlib.suppress(FileExistsError):  # a writer is about to give the new one its name
        held = _lock(path)
        try:
            _give_back(path)
        finally:
            held.release()


def _replaced(path: Path) -> Path:
    """Where the old store is between two renames."""
    return path.with_name(f".{path.name}.replaced")


def _give_back(path: Path) -> None:
    if not path.exists() and _replaced(path).exists():
        os.rename(_replaced(path), path)


def _lock(path: Path) -> Lock:
    busy = f"{path}: another process is writing this store; wait for it or stop it"
    return Lock(path.with_name(f".{path.name}.lock"), busy)
