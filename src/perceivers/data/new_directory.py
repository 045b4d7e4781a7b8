"""A directory that appears whole or not at all: what writers of stores write into."""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from perceivers.data.header import FileRecord

__all__ = ["HashedFile", "NewDirectory", "write_synced"]

LOCK = "lock"


class NewDirectory:
    """A hidden directory beside `path`, which takes its name only with `commit`.

    An exception, Ctrl-C or a kill before that leaves nothing at `path`, and an older store there as it was. What a
    killed writer left behind is removed by the next one. The caller must call `discard` at the end in any case.

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
        self._replaced = self.path.with_name(f".{self.path.name}.replaced")
        self._kind, self._files, self._overwrite = kind, files, overwrite
        self._lock: BinaryIO | None = None
        self._check_target()

    @property
    def is_open(self) -> bool:
        """Whether files may be written."""
        return self._lock is not None

    def open(self) -> None:
        """Make the hidden directory, or empty the one that a killed writer left.

        Raises:
            FileExistsError: Another process is writing there.
        """
        with self.explained():
            self.partial.mkdir(parents=True, exist_ok=True)
            lock = (self.partial / LOCK).open("wb")
        if not _lock_now(lock):
            lock.close()
            raise FileExistsError(f"{self.path}: another process is writing this store; wait for it or stop it")
        self._lock = lock
        for leftover in self.partial.iterdir():  # of a writer that was killed
            if leftover.name != LOCK:
                leftover.unlink()
        shutil.rmtree(self._replaced, ignore_errors=True)

    def commit(self) -> None:
        """Give the directory its name; its files must be closed and on the disk.

        Raises:
            FileExistsError: Something appeared at `path` meanwhile.
        """
        self._check_target()  # again: hours may have passed
        (self.partial / LOCK).unlink()
        _sync_directory(self.partial)
        if self.path.exists():
            os.rename(self.path, self._replaced)
        try:
            os.rename(self.partial, self.path)
        except OSError:
            if self._replaced.exists():
                os.rename(self._replaced, self.path)
            raise
        _sync_directory(self.path.parent)
        shutil.rmtree(self._replaced, ignore_errors=True)

    def discard(self) -> None:
        """Remove what was not committed, and let go of the lock; after a commit only the latter."""
        shutil.rmtree(self.partial, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Say what a full disk means here."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(
                error.errno,
                f"the disk is full: {self.path} was not written and nothing of it is left; "
                f"free some space in {self.path.parent} or choose another place",
            ) from error

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


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock_now(stream: BinaryIO) -> bool:
    """Lock the file for this process alone; when the process dies, however it dies, the lock is gone."""
    import fcntl  # POSIX only, and only writers need it

    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
