"""A command line that runs in this process, and small things to run it on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from perceivers.cli.main import main
from perceivers.data.tokens import StoreWriter

SMALL_MODEL = [
    "--model.num-latents",
    "5",
    "--model.dim",
    "8",
    "--model.depth",
    "1",
    "--model.heads",
    "2",
    "--model.cross-heads",
    "2",
]
QUICK = ["--data.batch-size", "2", "--device", "cpu", "--precision", "float32", "--eval-tokens", "20"]
TINY = ["--model.max-seq-len", "13", *SMALL_MODEL, *QUICK]
"""Flags that make a run take a blink; for any preset that reads a store."""


@dataclass(frozen=True)
class Outcome:
    """What a command line did."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `perceivers` with some arguments."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args: object) -> Outcome:
        capfd.readouterr()
        code = main([str(arg) for arg in args])
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return run


@pytest.fixture(scope="session")
def text_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of bytes."""
    path = tmp_path_factory.mktemp("text") / "store"
    write_store(path, tokenizer="bytes", vocab_size=256)
    return path


@pytest.fixture(scope="session")
def music_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of events: keys pressed for a tenth of a second."""
    path = tmp_path_factory.mktemp("music") / "store"
    with StoreWriter(path, tokenizer="performance", vocab_size=388) as writer:
        for split, count in (("train", 3), ("validation", 2), ("test", 2)):
            for index in range(count):
                keys = range(60 + index, 67 + index)
                ids = [event for key in keys for event in (key, 256 + 9, 128 + key)]
                writer.append(split, np.array([356 + 20, *ids]), name=f"{split}-{index}")
    return path


def write_store(path: Path, *, tokenizer: str, vocab_size: int, splits: str = "train validation test") -> None:
    """Two documents a split, of 29 and 31 tokens."""
    generator = np.random.default_rng(len(splits))
    with StoreWriter(path, tokenizer=tokenizer, vocab_size=vocab_size, overwrite=True) as writer:
        for split in splits.split():
            for length in (29, 31):
                ids = generator.integers(97, 123, size=length)
                writer.append(split, ids, name=f"{split}-{length}")


@pytest.fixture(scope="session")
def text_run(tmp_path_factory: pytest.TempPathFactory, text_store: Path) -> Path:
    """A model of bytes after 3 steps; tests leave it as it is."""
    out = tmp_path_factory.mktemp("runs") / "text"
    assert main(["train", "text_small", "--data", str(text_store), "--out", str(out), "--max-steps", "3", *TINY]) == 0
    return out


@pytest.fixture(scope="session")
def music_run(tmp_path_factory: pytest.TempPathFactory, music_store: Path) -> Path:
    """A model of events after 3 steps; tests leave it as it is."""
    out = tmp_path_factory.mktemp("runs") / "music"
    args = ["train", "music_small", "--data", str(music_store), "--out", str(out), "--max-steps", "3", *TINY]
    assert main(args) == 0
    return out
