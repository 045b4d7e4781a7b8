from pathlib import Path

import numpy as np
import pytest

from perceivers.data.music import write_midi
from perceivers.data.picture_store import PictureStore
from perceivers.data.tokens import TokenStore

from .conftest import Command


def test_music(command: Command, tmp_path: Path) -> None:
    for index in range(3):
        write_midi(np.array([376, 60 + index, 256 + 9, 188 + index]), tmp_path / f"{index}.mid")
    done = command("prepare", "music", tmp_path, "--out", tmp_path / "store")
    assert done.code == 0
    assert f"next: perceivers train music_small --data {tmp_path}/store --out runs/a" in done.out
    store = TokenStore.open(tmp_path / "store")
    assert store.header.tokenizer == "performance"
    assert store.header.command == f"perceivers prepare music {tmp_path} --out {tmp_path}/store"


def test_text(command: Command, tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text(f"some words to {name} on")
    done = command("prepare", "text", tmp_path / "train.txt", tmp_path / "test.txt", "--out", tmp_path / "store")
    assert done.code == 0
    assert TokenStore.open(tmp_path / "store").header.tokenizer == "bytes"
    (tmp_path / "d" / "test").mkdir(parents=True)
    (tmp_path / "d" / "test" / "a.txt").write_text("some words to test on")
    done = command("prepare", "text", tmp_path / "d", "--out", tmp_path / "held out")
    assert (done.code, "next: perceivers train" in done.out) == (0, False)
    assert "nothing is for training; next: perceivers evaluate RUN --data '" in done.out


def test_tokens(command: Command, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(15).reshape(3, 5))
    args = ["prepare", "tokens", tmp_path / "a.npy", "--out", tmp_path / "store", "--vocab-size"]
    too_small = command(*args, 7)
    assert (too_small.code, "outside the vocabulary of 7" in too_small.err) == (2, True)
    assert command(*args, 15).code == 0
    there = command(*args, 15)
    assert (there.code, "a token store is there already" in there.err) == (2, True)
    assert command(*args, 15, "--overwrite").code == 0


def test_pictures(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    np.savez(tmp_path / "set.npz", x=np.zeros((5, 3, 7), dtype=np.uint8), y=np.arange(5))
    np.save(tmp_path / "photos.npy", np.zeros((5, 3, 7), dtype=np.uint8))
    done = command("prepare", "pictures", tmp_path / "set.npz", "--out", tmp_path / "a", "--size", 2, 5)
    assert done.code == 0
    settings = "mnist --model.input.features.shape 2 5 1 --model.output.classes 5"
    assert f"next: perceivers train {settings} --data {tmp_path}/a --out runs/a" in done.out
    assert PictureStore.open(tmp_path / "a").shape == (2, 5, 1)
    done = command("prepare", "pictures", tmp_path / "photos.npy", "--out", tmp_path / "b")
    assert f"next: perceivers train flow_small --data {tmp_path}/b --out runs/a" in done.out
    assert PictureStore.open(tmp_path / "b").classes is None


def test_copy(command: Command, tmp_path: Path) -> None:
    done = command("prepare", "copy", "--out", tmp_path / "store", "--length", 8, "--count", 5)
    assert done.code == 0
    assert TokenStore.open(tmp_path / "store").split("train").lengths.tolist() == [6, 6, 6]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["music", "nowhere", "--out", "x"], "nowhere: no such file or directory"),
        (["music", "empty", "--out", "x"], "empty: no file there ends in .mid or .midi"),
        (["text", "--out", "x"], "name the files or directories to prepare: perceivers prepare text DIR --out x"),
        (["muzak", "empty", "--out", "x"], "can't prepare 'muzak'; there are music, text, tokens, pictures, copy"),
        (["text", "empty"], "--out"),
        (["tokens", "empty", "--out", "x"], "--vocab-size"),
        (["copy", "--out", "x", "--length", "7"], "length=7 must be even"),
        (["text", "empty", "--out", "x", "--overwite"], "--overwrite"),
    ],
)
def test_mistakes(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    done = command("prepare", *args)
    assert done.code == 2
    assert said in done.err
    assert not Path("x").exists()


def test_no_kind(command: Command) -> None:
    done = command("prepare")
    assert (done.code, "usage: perceivers prepare KIND" in done.out) == (2, True)
