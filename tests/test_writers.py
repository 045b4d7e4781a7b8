"""Every file that a command or a function leaves is the old one or the new one, whatever fails or dies on the way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perceivers.cli.predict_pictures import _write_flow
from perceivers.data.music import write_midi
from perceivers.data.render import piano_roll, write_wav
from perceivers.evaluate.flow import plot_flow
from perceivers.evaluate.plots import plot_training
from perceivers.generate.files import write_output
from perceivers.train.metrics import MetricsLog

from .faults import faulty

resource = pytest.importorskip("resource", reason="systems without limits on files")

NONE = np.empty(0, np.int32)


def piece(size: int) -> np.ndarray:
    """So many notes, of a tenth of a second each."""
    return np.array([event for pitch in range(size) for event in (60 + pitch, 265, 188 + pitch, 265)], np.int32)


def output(tokenizer: str) -> Callable[[Path, int], object]:
    return lambda path, size: write_output(path, NONE, piece(size) % 256, tokenizer)


def flow(size: int) -> Any:
    return np.random.default_rng(size).standard_normal((1, 7 * size, 11, 2)).astype(np.float32)


def flow_plot(path: Path, size: int) -> None:
    plot_flow(np.zeros((1, 2, 7 * size, 11, 3), np.float32), flow(size), -flow(size), path)


def metrics(path: Path, size: int) -> None:
    """A run that is resumed at this step, and loses the lines of later ones."""
    path.write_text("".join(f'{{"step": {step}, "loss": {step}.5}}\n' for step in range(1, 30)))
    MetricsLog(path.parent, step=size).close()


def curve(path: Path, size: int) -> None:
    plot_training([{"step": step, "train/nats": step**0.5} for step in range(size)], path, title="x" * size)


WRITERS: dict[str, Callable[[Path, int], object]] = {
    "a.mid": lambda path, size: write_midi(piece(size), path),
    "a.wav": lambda path, size: write_wav(piece(size), path, sample_rate_hz=8000),
    "a.png": lambda path, size: piano_roll(path, NONE, piece(size)),
    "a.npy": output("performance"),
    "a.txt": output("bytes"),
    "ids.txt": output("ids"),
    "flow.png": lambda path, size: _write_flow(flow(size)[0], path),
    "flow plot.png": flow_plot,
    "training.png": curve,
}
SMALL, LARGE = 3, 17


@pytest.mark.parametrize("dies", [False, True])
@pytest.mark.parametrize("name", ["a.mid", "a.npy", "a.txt", "ids.txt"])  # the others are slow
def test_the_old_file_or_the_new_one(tmp_path: Path, name: str, dies: bool) -> None:
    write, path = WRITERS[name], tmp_path / name
    write(path, LARGE)
    new = path.read_bytes()
    write(path, SMALL)
    old = path.read_bytes()
    assert old != new
    at, came = 0, True
    while came:
        path.write_bytes(old)
        came = faulty(lambda: write(path, LARGE), at, dies=dies)
        assert path.read_bytes() in ((old, new) if came else (new,))
        at += 1
    assert at > 3
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", WRITERS)
def test_half_of_a_file_is_none(tmp_path: Path, name: str) -> None:
    """A limit that the system sets on files, in place of a disk that is full in the middle of one."""
    path = tmp_path / name
    path.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, before[1]))
    try:
        with pytest.raises(OSError):  # noqa: PT011 which says it in the words of the system
            WRITERS[name](path, LARGE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    WRITERS[name](path, LARGE)
    assert path.stat().st_size > 40


@pytest.mark.parametrize("dies", [False, True])
def test_numbers_of_a_resumed_run(tmp_path: Path, dies: bool) -> None:
    path, at, came = tmp_path / "metrics.jsonl", 0, True
    while came:
        came = faulty(lambda: metrics(path, 7), at, dies=dies)
        lines = path.read_text().splitlines()
        assert len(lines) in ((7, 29) if came else (7,))
        assert lines[6] == '{"step": 7, "loss": 7.5}'
        metrics(path, 7)
        at += 1
    assert at > 3
