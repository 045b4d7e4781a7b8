import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from perceivers import hub
from perceivers.train.checkpoint import TrainState, checkpoints, load_checkpoint, optimizer_tensors, save_checkpoint
from perceivers.train.config import OptimConfig
from perceivers.train.optim import build_optimizer

from ..faults import faulty

ADAM = OptimConfig(lr=0.1)
ADAMW = OptimConfig(lr=0.1, optimizer="adamw", weight_decay=0.1)

Trained = tuple[nn.Module, torch.optim.Optimizer]


def trained(steps: int, *, optim: OptimConfig = ADAM, seed: int = 0) -> Trained:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(5, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    optimizer = build_optimizer(model, optim)
    for _ in range(steps):
        update((model, optimizer))
    return model, optimizer


def update(trained: Trained) -> None:
    model, optimizer = trained
    model(torch.arange(5)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def save(run: Path, step: int, **options: Any) -> Path:
    return write(run, trained(step, **options), TrainState(step=step, minutes=0.5, tokens=7, store="abc"))


def write(run: Path, trained: Trained, state: TrainState) -> Path:
    return save_checkpoint(run, trained[0].state_dict(), optimizer_tensors(*trained), state)


@pytest.mark.parametrize("optim", [ADAM, ADAMW])
def test_a_loaded_run_goes_on_as_the_saved_one(tmp_path: Path, optim: OptimConfig) -> None:
    before, after = trained(3, optim=optim), trained(0, optim=optim, seed=1)
    path = write(tmp_path, before, TrainState(step=3, minutes=0.5, tokens=7, store="abc"))
    assert load_checkpoint(path, *after) == TrainState(step=3, minutes=0.5, tokens=7, store="abc")
    for _ in range(2):
        update(before)
        update(after)
    for a, b in zip(before[0].parameters(), after[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_moments_follow_their_parameter_to_another_optimizer(tmp_path: Path) -> None:
    """The two group parameters in another order."""
    path, after = save(tmp_path, 3), trained(0, optim=replace(ADAMW, weight_decay=0.0))
    load_checkpoint(path, *after)
    undisturbed = trained(4)
    update(after)
    for a, b in zip(undisturbed[0].parameters(), after[0].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_moments_have_their_parameters_names(tmp_path: Path) -> None:
    with safe_open(save(tmp_path, 1) / "optimizer.safetensors", "pt") as file:
        names = set(file.keys())
    assert {"0.weight.exp_avg", "1.bias.exp_avg_sq", "2.weight.step"} <= names
    assert len(names) == 5 * 3


def test_before_the_first_update(tmp_path: Path) -> None:
    after = trained(0, seed=1)
    assert load_checkpoint(save(tmp_path, 0), *after).step == 0
    assert not after[1].state


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (2, 9, 10, 99_999_999):
        write(tmp_path, trained(0), TrainState(step=step))
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000010", "step-99999999"]


def test_a_checkpoint_is_not_written_twice(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    written = (path / "model.safetensors").stat().st_mtime_ns
    assert save(tmp_path, 2) == path
    assert (path / "model.safetensors").stat().st_mtime_ns == written


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 2)
    write = hub.save_file

    def full(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        write(tensors, path, metadata)
        if path.name == "optimizer.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 4)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert load_checkpoint(checkpoints(tmp_path)[-1], *trained(0)).step == 2


def test_a_crash_before_the_rename_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*paths: Path) -> None:
        assert len(list(paths[0].iterdir())) == 3
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", crash)
        with pytest.raises(SystemExit):
            save(tmp_path, 4)
    assert checkpoints(tmp_path) == []


def test_a_kill_while_an_old_checkpoint_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half removed, it has no longer the name of a checkpoint; the next one removes the rest."""
    for step in (1, 2):
        save(tmp_path, step)

    def die(path: Path, **options: bool) -> None:
        (path / "model.safetensors").unlink()
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", die)
        with pytest.raises(SystemExit):
            save(tmp_path, 3)
    assert [load_checkpoint(path, *trained(0)).step for path in checkpoints(tmp_path)] == [2, 3]
    save(tmp_path, 4)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize("left", [".step-00000004.partial", ".step-00000002.partial"])
def test_what_a_kill_left_is_no_checkpoint_and_goes(tmp_path: Path, left: str) -> None:
    partial = tmp_path / "checkpoints" / left
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"half")
    (partial / "junk").write_bytes(b"junk")
    assert checkpoints(tmp_path) == []
    path = save(tmp_path, 4)
    assert list((tmp_path / "checkpoints").iterdir()) == [path]
    assert sorted(file.name for file in path.iterdir()) == ["model.safetensors", "optimizer.safetensors", "state.json"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("model.safetensors", cut),
        ("optimizer.safetensors", cut),
        ("state.json", cut),
        ("state.json", lambda path: path.write_text('{"stepp": 3}')),
        ("state.json", lambda path: path.write_text('{"step": "3"}')),
        ("state.json", lambda path: path.write_text(path.read_text().replace('"step": 3', '"step": 7'))),
        ("state.json", lambda path: path.write_text(path.read_text().replace("sha256", "sha257"))),
        ("model.safetensors", flip),
        ("optimizer.safetensors", flip),
        ("state.json", Path.unlink),
        ("model.safetensors", Path.unlink),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, spoil: Callable[[Path], None]) -> None:
    path = save(tmp_path, 3)
    spoil(path / name)
    with pytest.raises(ValueError, match=r"step-00000003 is damaged \(.*\); remove it to go on from the one before"):
        load_checkpoint(path, *trained(0))


def test_checkpoints_of_old_had_no_checksums(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    for name in ("model.safetensors", "optimizer.safetensors"):
        hub.save_file(hub.load_file(path / name), path / name, {"format": "pt"})
    state = json.loads((path / "state.json").read_text())
    del state["sha256"]
    (path / "state.json").write_text(json.dumps(state))
    assert load_checkpoint(path, *trained(0)).step == 3


@pytest.mark.parametrize("dies", [False, True])
def test_whatever_fails_the_newest_checkpoint_is_whole(tmp_path: Path, dies: bool) -> None:
    at, came = 0, True
    while came:
        run = tmp_path / str(at)
        for step in (1, 2):
            save(run, step)
        came = faulty(lambda run=run: save(run, 4), at, dies=dies)
        steps = [load_checkpoint(path, *trained(0)).step for path in checkpoints(run)]
        assert steps in (([1, 2], [1, 2, 4], [2, 4]) if came else ([2, 4],))
        save(run, 5)
        assert os.listdir(run / "checkpoints")
        assert not list(run.glob("checkpoints/.*"))
        at += 1
    assert at > 10


def test_another_models_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    other = nn.Sequential(nn.Embedding(5, 3), nn.LayerNorm(3))
    with pytest.raises(ValueError, match=r"step-00000003 does not fit the model: unknown 2\.bias; unknown 2\.weight"):
        load_checkpoint(path, other, build_optimizer(other, ADAM))
    (path / "model.safetensors").unlink()
    hub.write_tensors(other.state_dict(), path / "model.safetensors")
    with pytest.raises(ValueError, match=r"has optimiser state for 2\.\w+, which the model doesn't train"):
        load_checkpoint(path, other, build_optimizer(other, ADAM))
