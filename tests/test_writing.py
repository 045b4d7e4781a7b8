import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perceivers import writing
from perceivers.writing import (
    Lock,
    check_file,
    finish_files,
    new_directory,
    remove_directory,
    replace_file,
    replace_files,
    swap,
    sync_directory,
    write_text,
)

from .faults import faulty


def texts(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


@pytest.mark.parametrize("dies", [False, True])
def test_a_file_is_the_old_or_the_new_one(tmp_path: Path, dies: bool) -> None:
    at, came = 0, True
    while came:
        write_text(tmp_path / "file", "old")
        came = faulty(lambda: write_text(tmp_path / "file", "new"), at, dies=dies)
        assert (tmp_path / "file").read_text() in (("old", "new") if came else ("new",))
        write_text(tmp_path / "file", "third")
        assert texts(tmp_path) == {"file": "third"}
        at += 1
    assert at > 3


def test_what_is_no_file_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taking a name needs rights in the directory alone: a device or a protected file would go."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "keep").write_text("kept")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "to folder").symlink_to("folder")
    (tmp_path / "to nothing").symlink_to("nowhere/file")
    (tmp_path / "protected").write_text("old")
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("folder", "a directory has this name"),
        ("to folder", "a directory has this name"),
        ("circle", "what has this name is no file"),
        ("pipe", "what has this name is no file"),
        ("to nothing", "there is no directory .*nowhere"),
        ("protected/x", "there is no directory"),
        ("protected", "this file is protected from writing"),
    ):
        if name == "protected":  # also where a superuser runs this
            monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "protected")
        with pytest.raises(OSError, match=message):
            check_file(tmp_path / name)
        with pytest.raises(OSError, match=message):
            write_text(tmp_path / name, "new")
    assert (tmp_path / "protected").read_text() == "old"
    assert (tmp_path / "folder" / "keep").read_text() == "kept"
    assert not list(tmp_path.rglob(".*"))


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    for text in ("first", "second"):
        write_text(tmp_path / "a", text)
        assert (tmp_path / "b").read_text() == text
    assert (tmp_path / "a").is_symlink()


@pytest.mark.parametrize("dies", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_files_that_belong_together(tmp_path: Path, dies: bool, there: bool) -> None:
    def write(text: str) -> None:
        names = ("weights", "config")
        replace_files(tmp_path / "model", {name: lambda path: path.write_text(text) for name in names})

    old, new = ({"weights": text, "config": text} for text in ("old", "new"))
    at, came = 0, True
    while came:
        if there:
            write("old")
        came = faulty(lambda: write("new"), at, dies=dies)
        if (tmp_path / "model").exists():
            finish_files(tmp_path / "model")
            now = {path.name: path.read_text() for path in (tmp_path / "model").glob("[!.]*")}
            assert now == new or (came and now == (old if there else {}))
        write("third")
        assert texts(tmp_path / "model") == {"weights": "third", "config": "third"}
        remove_directory(tmp_path / "model")
        at += 1
    assert os.listdir(tmp_path) == []
    assert at > 5


@pytest.mark.parametrize("dies", [False, True])
def test_a_directory_is_whole_or_absent(tmp_path: Path, dies: bool) -> None:
    def write() -> None:
        with new_directory(tmp_path / "a" / "d") as partial:
            for name in ("one", "two"):
                (partial / name).write_text(name)

    at, came = 0, True
    while came:
        came = faulty(write, at, dies=dies)
        assert not (tmp_path / "a" / "d").exists() or texts(tmp_path / "a" / "d") == {"one": "one", "two": "two"}
        remove_directory(tmp_path / "a" / "d")
        with new_directory(tmp_path / "a" / "d"):
            pass
        assert os.listdir(tmp_path / "a") == ["d"]
        remove_directory(tmp_path / "a" / "d")
        at += 1


@pytest.mark.parametrize("dies", [False, True])
def test_no_half_of_a_removed_directory_has_its_name(tmp_path: Path, dies: bool) -> None:
    at, came = 0, True
    while came:
        with new_directory(tmp_path / "d") as partial:
            for name in ("one", "two"):
                (partial / name).write_text(name)
        came = faulty(lambda: remove_directory(tmp_path / "d"), at, dies=dies)
        assert not (tmp_path / "d").exists() or len(texts(tmp_path / "d")) == 2
        remove_directory(tmp_path / "d")
        at += 1
    remove_directory(tmp_path / "d")
    assert at > 1


def test_a_file_stays_when_its_writer_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(partial: Path) -> None:
        partial.write_text("half of the n")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        OSError, match=r"the disk is full: .*file is as it was; free some space in .* or choose"
    ) as caught:
        replace_file(path, write)
    assert caught.value.errno == errno.ENOSPC
    assert texts(tmp_path) == {"file": "old"}
    path.unlink()
    with pytest.raises(OSError, match="file was not written and nothing of it is left"):
        replace_file(path, write)


def test_another_writer_at_any_moment(tmp_path: Path) -> None:
    """Each has a hidden file of its own; who ends last is read."""
    path = tmp_path / "file"

    def write(partial: Path) -> None:
        partial.write_text("half")
        write_text(path, "another's")
        assert path.read_text() == "another's"
        partial.write_text("whole")

    replace_file(path, write)
    assert texts(tmp_path) == {"file": "whole"}


def test_another_process_that_lives_keeps_its_hidden_file(tmp_path: Path) -> None:
    (tmp_path / f".file.{os.getppid()}-0.partial").write_text("another's")
    (tmp_path / f".file.{os.getpid()}-999999.partial").write_text("of an earlier process of this number")
    (tmp_path / ".other.1-0.partial").write_text("of another name")
    write_text(tmp_path / "file", "new")
    assert sorted(os.listdir(tmp_path)) == [f".file.{os.getppid()}-0.partial", ".other.1-0.partial", "file"]


def test_a_link_stays_and_rights_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127, "[a]*?.mid", " "])
def test_any_name(tmp_path: Path, name: str) -> None:
    for text in ("old", "new"):
        write_text(tmp_path / name, text)
    assert texts(tmp_path) == {name: "new"}


def test_a_killed_process_leaves_what_the_next_write_removes(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, pathlib\n"
        "from perceivers.writing import replace_file\n"
        "def write(partial): partial.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "replace_file(pathlib.Path(sys.argv[1]), write)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "file")], check=False, timeout=60)
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".file.")
    write_text(tmp_path / "file", "new")
    assert texts(tmp_path) == {"file": "new"}


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from perceivers.writing import Lock\n"
        "held = Lock(pathlib.Path(sys.argv[1]), 'busy'); print('locked', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"locked\n"
    with pytest.raises(FileExistsError, match=r"^busy$"):
        Lock(tmp_path / "lock", "busy")
    process.kill()
    process.communicate()
    held = Lock(tmp_path / "lock", "busy")
    held.release()
    assert os.listdir(tmp_path) == []


def test_a_lock_that_was_opened_before_it_went_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the removal of the file and its release another one takes a new file; who had the old one is refused."""
    held = Lock(tmp_path / "lock", "busy")
    taken: list[Lock] = []
    unlink = os.unlink

    def unlink_and_take(path: str) -> None:
        unlink(path)
        taken.append(Lock(tmp_path / "lock", "busy"))

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink_and_take)
        held.release()
    with pytest.raises(FileExistsError, match="busy"):
        Lock(tmp_path / "lock", "busy")
    taken[0].release()
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="other systems give no way to exchange names")
def test_names_are_exchanged(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert swap(tmp_path / "a", tmp_path / "b")
    assert os.listdir(tmp_path / "a") == ["b"]
    assert not swap(tmp_path / "a", tmp_path / "nothing")


def test_where_names_are_not_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing.sys, "platform", "darwin")
    assert not swap(tmp_path / "a", tmp_path / "b")


def test_file_systems_that_keep_no_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int) -> None:
        raise OSError(number_of_error, "no")

    monkeypatch.setattr(os, "fsync", fail)
    number_of_error = errno.EINVAL
    sync_directory(tmp_path)
    number_of_error = errno.EIO
    with pytest.raises(OSError, match="no"):
        sync_directory(tmp_path)
