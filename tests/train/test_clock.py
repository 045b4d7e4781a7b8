"""A clock that ends a run: what it counts, and that a run that was killed is told again what it was told."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from perceivers.data.tokens import TokenStore
from perceivers.train import clock
from perceivers.train.checkpoint import checkpoints
from perceivers.train.clock import TICK, Clock
from perceivers.train.config import TrainConfig
from perceivers.train.loop import train
from perceivers.train.metrics import read_metrics
from perceivers.train.run import CLOCK

Tiny = Callable[..., TrainConfig]
Times = Callable[[Iterator[int]], None]

SECOND = 10**9


class Killed(BaseException):
    """As a SIGKILL: nobody catches it."""


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    """Let the clock read these nanoseconds, one after the other."""

    def use(values: Iterator[int]) -> None:
        monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic_ns=lambda: next(values)))

    return use


def uneven(seed: int) -> Iterator[int]:
    """Moments between which there are no two equal spans, another series for each seed."""
    now = seed
    while True:
        now += 1 + (now * 6_364_136_223 + seed) % (7 * SECOND)
        yield now


def clocked(tiny: Tiny, **changes: Any) -> TrainConfig:
    return tiny(max_steps=1000, max_minutes=2.0, eval_every=1, optim={"warmup_steps": 1000}, **changes)


def killer(at: int) -> Any:
    def hook(model: torch.nn.Module, step: int) -> dict[str, float]:
        if step == at:
            raise Killed
        return {}

    return hook


def left_in(run: Path) -> tuple[list[bytes], list[dict[str, Any]]]:
    names = ["model.safetensors", *(f"{path.relative_to(run)}/model.safetensors" for path in checkpoints(run)), CLOCK]
    return [(run / name).read_bytes() for name in names], read_metrics(run)


def test_whole_ticks_are_noted(times: Times, tmp_path: Path) -> None:
    times(iter([0, 60 * SECOND, 60 * SECOND, 60 * SECOND + 57_200]))
    running = Clock(tmp_path / "clock")
    for expected in (2**20, 1):
        running.start()
        assert running.read() == expected
    assert (tmp_path / "clock").read_text() == "1048576\n1\n"
    assert 2**20 * TICK == 1


def test_what_stops_the_clock_does_not_count(times: Times) -> None:
    times(iter([0, 10, 10 + 90 * SECOND, 10 + 150 * SECOND]))
    running = Clock(None)
    running.start()
    running.stop()
    running.go_on()
    assert running.read() == 2**20


@pytest.mark.parametrize("torn", ["", "7", "7\n12x\n9\n"])
def test_it_says_again_what_it_said(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "clock"
    path.write_text("3\n1\n4\n1\n5\n" + torn.removeprefix("7\n"))
    running = Clock(path, step=2, minutes=4 * TICK, resume=True)
    assert [running.read() for _ in range(3)] == [4, 1, 5]
    running.start()
    assert 0 <= running.read() < 2**20
    assert path.read_text().splitlines()[:5] == ["3", "1", "4", "1", "5"]
    assert len(path.read_text().splitlines()) == 6


def test_a_run_that_is_begun_anew_and_one_older_than_its_record(tmp_path: Path) -> None:
    path = tmp_path / "clock"
    Clock(path, step=5, minutes=9 * TICK, resume=True)
    assert path.read_text() == "0\n0\n0\n0\n9\n"
    Clock(path)
    assert path.read_text() == ""


RECORD = "30\n1\n40\n1\n5\n"


@pytest.mark.parametrize("cut", range(len(RECORD) + 1))
def test_a_record_that_is_cut_anywhere(tmp_path: Path, cut: int) -> None:
    """Nothing is said again that the clock had not said."""
    path = tmp_path / "clock"
    path.write_text(RECORD[:cut])
    whole = RECORD[:cut].count("\n")
    if cut and whole < 2:
        with (
            pytest.warns(UserWarning, match="clock does not say what the first 2 updates took")
            if whole
            else nullcontext()
        ):
            running = Clock(path, step=2, minutes=31 * TICK, resume=True)
        said = []
    else:
        running = Clock(path, step=2, minutes=31 * TICK, resume=True)
        said = [40, 1, 5][: max(whole - 2, 0)]
    assert [running.read() for _ in said] == said
    lines = [int(line) for line in path.read_text().splitlines()]
    assert (sum(lines[:2]), lines[2:]) == (31, said)
    running.start()
    assert 0 <= running.read() < 2**20


@pytest.mark.parametrize("other", ["31\n1\n40\n", "30\n2\n40\n", f"{10**30}\n1\n40\n", "9" * 5000 + "\n", "\0\0", "{}"])
def test_a_record_of_another_run(tmp_path: Path, other: str) -> None:
    path = tmp_path / "clock"
    path.write_text(other)
    says = "\n" in other and len(other) < 20
    with pytest.warns(UserWarning, match="timed anew") if says else nullcontext():
        running = Clock(path, step=2, minutes=31 * TICK, resume=True)
    assert path.read_text() == "0\n31\n"
    running.start()
    assert 0 <= running.read() < 2**20


@pytest.mark.parametrize("killed_at", [2, 5, 13])
def test_killed_under_a_clock_and_resumed(
    tiny: Tiny, store: TokenStore, tmp_path: Path, times: Times, killed_at: int
) -> None:
    """Whatever the clock says to the process that goes on, nothing of what was done ends otherwise."""
    config = clocked(tiny)
    times(uneven(1))
    train(config, tmp_path / "whole", store=store, evaluate=killer(-1))
    times(uneven(1))
    with pytest.raises(Killed):
        train(config, tmp_path / "cut", store=store, evaluate=killer(killed_at))
    before = read_metrics(tmp_path / "cut")
    times(uneven(2))
    train(config, tmp_path / "cut", store=store, evaluate=killer(-1), resume=True)
    after = read_metrics(tmp_path / "cut")
    assert after[:killed_at] == before == read_metrics(tmp_path / "whole")[:killed_at]
    assert len({row["train/lr"] for row in after}) > killed_at
    assert after != read_metrics(tmp_path / "whole")  # later steps follow the other clock
    # The uninterrupted run whose clock said the same.
    (tmp_path / "same").mkdir()
    (tmp_path / "same" / CLOCK).write_bytes((tmp_path / "cut" / CLOCK).read_bytes())
    times(uneven(3))
    train(config, tmp_path / "same", store=store, evaluate=killer(-1), resume=True)
    assert left_in(tmp_path / "same") == left_in(tmp_path / "cut")


def test_evaluation_and_samples_take_no_training_time(
    tiny: Tiny, store: TokenStore, tmp_path: Path, times: Times
) -> None:
    now = [0]

    def tick() -> Iterator[int]:
        while True:
            now[0] += 15 * SECOND
            yield now[0]

    def slow(model: torch.nn.Module, step: int) -> dict[str, float]:
        now[0] += 3600 * SECOND
        return {}

    times(tick())
    run = train(clocked(tiny, sample_every=1), tmp_path / "run", store=store, evaluate=slow, sample=slow)
    assert (run.state.step, run.state.minutes) == (8, 2.0)
    assert [row["minutes"] for row in read_metrics(tmp_path / "run")] == [0.25 * step for step in range(1, 9)]


def test_no_clock_leaves_no_record(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    train(tiny(max_steps=1), tmp_path / "run", store=store)
    assert not (tmp_path / "run" / CLOCK).exists()


@pytest.mark.parametrize(("max_minutes", "reached"), [(0.4, False), (20.0, True)])
def test_whether_warm_up_ended(
    tiny: Tiny, store: TokenStore, tmp_path: Path, times: Times, max_minutes: float, reached: bool
) -> None:
    times(iter(range(0, 10_000 * SECOND, 30 * SECOND)))
    run = train(tiny(max_minutes=max_minutes, optim={"warmup_steps": 7}), tmp_path / "run", store=store)
    assert run.reached_lr is reached
    again = train(tiny(max_minutes=max_minutes), tmp_path / "run", store=store, resume=True)
    assert again.reached_lr is None
