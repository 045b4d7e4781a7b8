"""A run that was killed and resumed is the run that was not."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from perceivers.data.loader import TokenLoader
from perceivers.data.tokens import TokenStore
from perceivers.hub import read_model
from perceivers.records import to_dict
from perceivers.train import loop
from perceivers.train import run as run_module
from perceivers.train.checkpoint import checkpoints
from perceivers.train.config import TrainConfig
from perceivers.train.loop import train
from perceivers.train.metrics import read_metrics

Tiny = Callable[..., TrainConfig]


class Killed(BaseException):
    """As a SIGKILL: nobody catches it."""


def killer(at: int) -> Any:
    def hook(model: torch.nn.Module, step: int) -> dict[str, float]:
        if step == at:
            raise Killed
        return {"validation/nats": float(step)}

    return hook


def left_in(run: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """Files and numbers of a run, without the clock's."""
    files = {
        str(file.relative_to(run)): file.read_bytes()
        for file in run.rglob("*")
        if file.suffix in (".safetensors", ".yaml") or file.name == "config.json"
    }
    rows = [{name: value for name, value in row.items() if name != "minutes"} for row in read_metrics(run)]
    return files, rows


@pytest.mark.parametrize("killed_at", [2, 5, 9])
def test_killed_and_resumed(tiny: Tiny, store: TokenStore, tmp_path: Path, killed_at: int) -> None:
    config = tiny(eval_every=1)
    train(config, tmp_path / "whole", store=store, evaluate=killer(-1))
    with pytest.raises(Killed):
        train(config, tmp_path / "cut", store=store, evaluate=killer(killed_at))
    assert len(checkpoints(tmp_path / "cut")) == (killed_at - 1) // 3
    train(config, tmp_path / "cut", store=store, resume=True, evaluate=killer(-1))
    whole, cut = left_in(tmp_path / "whole"), left_in(tmp_path / "cut")
    assert whole == cut
    assert len(whole[1]) == 20
    assert sorted(whole[0]) == [
        "checkpoints/step-00000009/model.safetensors",
        "checkpoints/step-00000009/optimizer.safetensors",
        "checkpoints/step-00000010/model.safetensors",
        "checkpoints/step-00000010/optimizer.safetensors",
        "config.json",
        "config.yaml",
        "model.safetensors",
    ]


def test_the_copy_task_resumes(copying: TrainConfig, tmp_path: Path) -> None:
    train(copying, tmp_path / "whole")
    with pytest.raises(Killed):
        train(copying, tmp_path / "cut", evaluate=killer(10))
    train(copying, tmp_path / "cut", resume=True)
    assert left_in(tmp_path / "whole") == left_in(tmp_path / "cut")


def test_dropout_differs_from_step_to_step_and_follows_the_seed() -> None:
    assert len({loop.step_seed(seed, step) for seed in range(7) for step in range(11)}) == 77
    assert loop.step_seed(3, 5) == 9791734468858838757  # the same in every process, on every machine


def test_resuming_without_a_checkpoint_starts(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    assert train(tiny(max_steps=1), tmp_path / "run", store=store, resume=True).state.step == 1


def test_a_finished_run_stays_as_it_is(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    train(tiny(max_steps=3), tmp_path / "run", store=store)
    before = left_in(tmp_path / "run")
    assert train(tiny(max_steps=3), tmp_path / "run", store=store, resume=True).state.step == 3
    assert left_in(tmp_path / "run") == before


def test_a_run_can_be_made_longer(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    train(tiny(max_steps=2), tmp_path / "run", store=store)
    run = train(tiny(max_steps=5), tmp_path / "run", store=store, resume=True)
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5]
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["max_steps"] == 5
    assert run.state.tokens == read_metrics(tmp_path / "run")[-1]["tokens"]


def test_a_kill_between_model_and_checkpoint(
    tiny: Tiny, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, written = tiny(max_steps=3), []
    train(config, tmp_path / "whole", store=store)

    def killing_after_one(write: Callable[..., None]) -> Callable[..., None]:
        def write_or_die(*args: Any, **options: Any) -> None:
            if written:
                raise Killed
            written.append(write)
            write(*args, **options)

        return write_or_die

    with monkeypatch.context() as patch:
        for name in ("write_model", "save_checkpoint"):
            patch.setattr(run_module, name, killing_after_one(getattr(run_module, name)))
        with pytest.raises(Killed):
            train(config, tmp_path / "cut", store=store)
    train(config, tmp_path / "cut", store=store, resume=True)
    assert left_in(tmp_path / "whole") == left_in(tmp_path / "cut")


def test_ctrl_c_saves_and_is_raised(
    tiny: Tiny, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(max_steps=7)
    train(config, tmp_path / "whole", store=store)
    make = TokenLoader.batch

    def interrupted(self: TokenLoader, step: int) -> Any:
        if step == 5:
            raise KeyboardInterrupt
        return make(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(TokenLoader, "batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "cut", store=store)
    assert [path.name for path in checkpoints(tmp_path / "cut")] == ["step-00000003", "step-00000005"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
    train(config, tmp_path / "cut", store=store, resume=True)
    assert left_in(tmp_path / "whole")[1] == left_in(tmp_path / "cut")[1]
    assert left_in(tmp_path / "whole")[0]["model.safetensors"] == left_in(tmp_path / "cut")[0]["model.safetensors"]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C works, even where tests run in the background of a shell that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_does_not_cut_an_update(
    tiny: Tiny, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(max_steps=5)
    train(config, tmp_path / "whole", store=store)
    start = loop.start

    def start_interrupted(*args: Any, **kwargs: Any) -> Any:
        run = start(*args, **kwargs)
        update = run.optimizer.step

        def step() -> None:
            update()
            signal.raise_signal(signal.SIGINT)

        run.optimizer.step = step
        return run

    with monkeypatch.context() as patch:
        patch.setattr(loop, "start", start_interrupted)
        for done in (1, 2):
            with pytest.raises(KeyboardInterrupt):
                train(config, tmp_path / "cut", store=store, resume=True)
            assert checkpoints(tmp_path / "cut")[-1].name == f"step-0000000{done}"
    train(config, tmp_path / "cut", store=store, resume=True)
    model = "model.safetensors"
    assert left_in(tmp_path / "whole")[0][model] == left_in(tmp_path / "cut")[0][model]


def test_ctrl_c_before_the_first_step(
    tiny: Tiny, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: TokenLoader, step: int) -> Any:
        raise KeyboardInterrupt

    config = tiny(max_steps=3)
    train(config, tmp_path / "whole", store=store)
    with monkeypatch.context() as patch:
        patch.setattr(TokenLoader, "batch", interrupted)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                train(config, tmp_path / "cut", store=store, resume=True)
    train(config, tmp_path / "cut", store=store, resume=True)
    model = "model.safetensors"
    assert left_in(tmp_path / "whole")[0][model] == left_in(tmp_path / "cut")[0][model]


def test_training_in_another_thread(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    thread = threading.Thread(target=train, args=(tiny(max_steps=2), tmp_path / "run"), kwargs={"store": store})
    thread.start()
    thread.join()
    assert checkpoints(tmp_path / "run")[-1].name == "step-00000002"


SCRIPT = """
import json, sys
from pathlib import Path
from perceivers.data.tokens import TokenStore
from perceivers.records import from_dict
from perceivers.train.config import TrainConfig
from perceivers.train.loop import train

config, store, out = json.loads(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
train(from_dict(TrainConfig, config), out, store=TokenStore.open(store), resume=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system kills in another way")
def test_sigkill_at_any_moment(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    config, cut = tiny(max_steps=24, save_every=1), tmp_path / "cut"
    train(config, tmp_path / "whole", store=store)
    arguments = [sys.executable, "-c", SCRIPT, json.dumps(to_dict(config)), str(store.path), str(cut)]
    # Seven lines after it began, and then a little later each time: while it computes, and while it saves.
    for delay in (0.0, 0.004, 0.011, None):
        log = cut / "metrics.jsonl"
        wanted = (len(log.read_text().splitlines()) if log.exists() else 0) + 7
        process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
        while delay is not None and process.poll() is None:
            if log.exists() and len(log.read_text().splitlines()) >= wanted:
                time.sleep(delay)
                process.kill()
                break
        assert process.wait() == (0 if delay is None else -signal.SIGKILL)
        for path in checkpoints(cut)[-2:]:
            assert len(list(path.iterdir())) == 3
    assert left_in(tmp_path / "whole") == left_in(cut)
    assert read_model(cut)[1] == "ids"
