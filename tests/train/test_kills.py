"""Real training is killed at random moments, and goes on as if nothing had happened."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from perceivers.train.checkpoint import checkpoints
from perceivers.train.metrics import read_metrics

KILLS, STEPS = 20, 1200
SMALL = ["--model.dim", "16", "--model.heads", "2", "--model.cross-heads", "2", "--data.batch-size", "4"]
FAST = ["--save-every", "2", "--eval-every", "0", "--log-every", "5", "--precision", "float32", "--device", "cpu"]


def command(out: Path, *more: str, max_steps: int = STEPS) -> list[str]:
    steps = ["--max-steps", str(max_steps), "--optim.warmup-steps", "7"]
    return [sys.executable, "-m", "perceivers", "train", "copy_tiny", "--out", str(out), *SMALL, *FAST, *steps, *more]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"} | more


def newest(out: Path) -> int:
    return max((int(path.name.removeprefix("step-")) for path in checkpoints(out)), default=0)


def wait_beyond(step: int, out: Path, process: subprocess.Popen[bytes]) -> None:
    """Until a later checkpoint than that of `step` is there."""
    limit = time.monotonic() + 120
    while newest(out) <= step:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < limit, "no checkpoint in two minutes"
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_kills_change_no_bit(tmp_path: Path) -> None:
    """A checkpoint is written every second step, so that many kills come while one is."""
    calm, troubled = tmp_path / "calm", tmp_path / "troubled"
    subprocess.run(command(calm), env=environment(), check=True, capture_output=True)
    rng, unfinished = random.Random(0), 0
    for _ in range(KILLS):
        before = newest(troubled)
        process = subprocess.Popen(command(troubled, "--resume"), env=environment(), stderr=subprocess.PIPE)
        wait_beyond(before, troubled, process)
        time.sleep(rng.random() / 5)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        unfinished += any(troubled.glob("checkpoints/.*partial"))
        assert before < newest(troubled) < STEPS
        for path in [troubled, *checkpoints(troubled)]:  # whatever has its name is whole
            load_file(path / "model.safetensors")
    subprocess.run(command(troubled, "--resume"), env=environment(), check=True, capture_output=True)
    assert unfinished
    assert (troubled / "model.safetensors").read_bytes() == (calm / "model.safetensors").read_bytes()
    assert not any(troubled.glob("checkpoints/.*"))

    def rows(run: Path) -> list[dict[str, float]]:
        return [{name: value for name, value in row.items() if name != "minutes"} for row in read_metrics(run)]

    assert rows(troubled) == rows(calm)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kills_under_a_clock(tmp_path: Path) -> None:
    """What is left is what the uninterrupted run leaves whose clock said the same."""
    troubled, calm = tmp_path / "troubled", tmp_path / "calm"
    clocked = ["--resume", "--max-minutes", "0.02"]
    rng = random.Random(1)
    for _ in range(3):
        before = newest(troubled)
        process = subprocess.Popen(command(troubled, *clocked), env=environment(), stderr=subprocess.PIPE)
        limit = time.monotonic() + 120
        while newest(troubled) <= before and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.002)
        time.sleep(rng.random() / 20)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    subprocess.run(command(troubled, *clocked), env=environment(), check=True, capture_output=True)
    calm.mkdir()
    (calm / "clock.txt").write_bytes((troubled / "clock.txt").read_bytes())
    subprocess.run(command(calm, *clocked), env=environment(), check=True, capture_output=True)
    assert (calm / "model.safetensors").read_bytes() == (troubled / "model.safetensors").read_bytes()
    assert read_metrics(calm) == read_metrics(troubled)
    assert len({row.get("train/lr") for row in read_metrics(calm)}) > 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_of_two_processes_is_killed(tmp_path: Path) -> None:
    """The other one says so and ends; started again, they go on."""

    def start(max_steps: int) -> list[subprocess.Popen[bytes]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        args = command(tmp_path / "run", "--parallel.fsdp", "2", "--resume", max_steps=max_steps)
        return [
            subprocess.Popen(
                args,
                env=environment(RANK=str(r), LOCAL_RANK=str(r), **shared),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for r in range(2)
        ]

    first, second = start(STEPS)
    wait_beyond(0, tmp_path / "run", first)
    second.send_signal(signal.SIGKILL)
    second.communicate()
    _, said = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "another process of this run has ended at step" in said.decode()
    reached = newest(tmp_path / "run")
    for process in start(reached + 4):
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said.decode()
    assert newest(tmp_path / "run") == reached + 4
