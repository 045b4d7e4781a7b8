"""A store is the old one or the new one, whatever fails or dies on the way, and one process writes it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from perceivers.data import new_directory
from perceivers.data.picture_store import PictureStore, PictureWriter
from perceivers.data.tokens import StoreWriter, TokenStore

from ..faults import Dead, faulty


def write(path: Path, count: int) -> None:
    with StoreWriter(path, tokenizer="bytes", vocab_size=256, overwrite=True) as writer:
        writer.append("train", np.arange(count), name=str(count))


def tokens(path: Path) -> int:
    return TokenStore.open(path).header.splits["train"].tokens


@pytest.fixture(params=["exchanged", "renamed"])
def naming(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems that exchange names, and others."""
    if request.param == "renamed":
        monkeypatch.setattr(new_directory, "swap", lambda first, second: False)


@pytest.mark.usefixtures("naming")
@pytest.mark.parametrize("dies", [False, True])
def test_the_old_store_or_the_new_one_stands(tmp_path: Path, dies: bool) -> None:
    at, came = 0, True
    while came:
        write(tmp_path / "s", 3)
        came = faulty(lambda: write(tmp_path / "s", 5), at, dies=dies)
        assert tokens(tmp_path / "s") in ((3, 5) if came else (5,))
        write(tmp_path / "s", 7)
        assert tokens(tmp_path / "s") == 7
        assert os.listdir(tmp_path) == ["s"]
        at += 1
    assert at > 10


def test_pictures_come_back_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_directory, "swap", lambda first, second: False)

    def save(shade: int) -> None:
        with PictureWriter(tmp_path / "s", shape=(1, 1, 1), overwrite=True) as writer:
            writer.append("train", np.full((1, 1, 1, 1), shade, np.uint8))

    def die(source: Path, target: Path) -> None:
        if target == tmp_path / "s" and not source.name.endswith("replaced") and not target.exists():
            raise Dead
        rename(source, target)

    save(3)
    rename = os.rename
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", die)
        patch.setattr(new_directory.NewDirectory, "discard", lambda self: self._lock.release())
        with pytest.raises(Dead):
            save(5)
    assert not (tmp_path / "s").exists()
    assert PictureStore.is_at(tmp_path / "s")
    assert PictureStore.open(tmp_path / "s").split("train").pixels.max() == 3


def test_a_second_writer_at_any_step_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "s", 3)
    tried = 0
    real = {name: getattr(os, name) for name in ("rename", "fsync")}

    def meanwhile(name: str) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            nonlocal tried
            with monkeypatch.context() as patch:
                for other, function in real.items():
                    patch.setattr(os, other, function)
                with pytest.raises(FileExistsError, match="another process is writing this store; wait for it or stop"):
                    write(tmp_path / "s", 7)
                tried += 1
                return real[name](*args, **options)

        return call

    with monkeypatch.context() as patch:
        for name in real:
            patch.setattr(os, name, meanwhile(name))
        write(tmp_path / "s", 5)
    assert tried > 5
    assert tokens(tmp_path / "s") == 5
    assert os.listdir(tmp_path) == ["s"]


def test_where_the_system_has_no_locks_of_its_own(tmp_path: Path) -> None:
    code = (
        "import sys, warnings; sys.modules['fcntl'] = None; warnings.simplefilter('ignore')\n"
        "import numpy as np; from perceivers.data.tokens import StoreWriter\n"
        "def writer(): return StoreWriter(sys.argv[1], tokenizer='bytes', vocab_size=256, overwrite=True)\n"
        "for _ in range(2):\n"
        "    with writer() as first:\n"
        "        first.append('train', np.arange(3), name='x')\n"
        "        try: writer().__enter__()\n"
        "        except FileExistsError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s")], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.count("another process is writing this store") == 2
    assert os.listdir(tmp_path) == ["s"]
    assert tokens(tmp_path / "s") == 3
