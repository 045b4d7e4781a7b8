"""Checkpoints: weights, optimiser and one integer, each whole or absent.

A checkpoint is a directory `checkpoints/step-00000500` with model.safetensors, optimizer.safetensors and state.json. It
is written under a hidden name, flushed to disk and renamed, and hidden again before it is removed: what has the name is
complete. The newest two are kept.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from perceivers.hub import load_weights, read_tensors, write_tensors
from perceivers.records import from_dict, to_dict
from perceivers.train.parallel import part


@dataclass
class TrainState:
    """Where a run is. Data order, dropout and learning rate follow from `step` (and `minutes`, if a clock ends it)."""

    step: int = 0
    """Updates done."""
    minutes: float = 0.0
    """Training time so far."""
    tokens: int = 0
    """Targets seen."""
    store: str = ""
    """Fingerprint of the data."""


def save_checkpoint(run: Path, weights: dict[str, Tensor], moments: dict[str, Tensor], state: TrainState) -> Path:
    """Write a checkpoint under `run`, unless there is one of this step, and remove all but the newest two.

    Args:
        run: Directory.
        weights: Whole tensors, whatever the number of processes, so that any number of them resumes.
        moments: Likewise, see `optimizer_tensors`.
        state: Where the run is.

    Raises:
        OSError: The disk is full or not writable; older checkpoints are as they were.
    """
    final = checkpoint_path(run, state.step)
    _remove_hidden(final.parent)  # what a kill left
    if final.exists():
        return final
    partial = _hidden(final)
    partial.mkdir(parents=True)
    try:
        write_tensors(weights, partial / "model.safetensors")
        write_tensors(moments, partial / "optimizer.safetensors")
        (partial / "state.json").write_text(json.dumps(to_dict(state)), encoding="utf-8")
        for file in partial.iterdir():
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())
        os.rename(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in checkpoints(run)[:-2]:
        os.rename(old, _hidden(old))
    _remove_hidden(final.parent)
    return final


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
    """Put a checkpoint's weights and moments in place and return where the run was.

    Raises:
        ValueError: A file is damaged or belongs to another model.
    """
    try:
        weights = read_tensors(path / "model.safetensors")
        moments = read_tensors(path / "optimizer.safetensors")
        state = from_dict(TrainState, json.loads((path / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ValueError(f"checkpoint {path} is damaged ({error}); remove it to go on from the one before") from error
    own = model.state_dict()
    fitting = {name for name, x in weights.items() if name in own and own[name].shape == x.shape}
    load_weights(model, weights | {name: part(weights[name], own[name]) for name in fitting}, source=str(path))
    _load_moments(model, optimizer, moments, path)
    return state


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint of `step` is, if there is one."""
    return run / "checkpoints" / f"step-{step:08d}"


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors, named by their parameter and their own name: "norm.bias.exp_avg"."""
    return {
        f"{name}.{moment}": value
        for name, parameter in model.named_parameters()
        for moment, value in optimizer.state.get(parameter, {}).items()
    }


def _hidden(checkpoint: Path) -> Path:
    return checkpoint.with_name(f".{checkpoint.name}.partial")


def _remove_hidden(directory: Path) -> None:
    for path in directory.glob(_hidden(Path("step-*")).name):
        shutil.rmtree(path, ignore_errors=True)


def _load_moments(model: nn.Module, optimizer: torch.optim.Optimizer, moments: dict[str, Tensor], path: Path) -> None:
    parameters = dict(model.named_parameters())
    for key, value in moments.items():
        name, moment = key.rsplit(".", 1)
        if name not in parameters:
            raise ValueError(f"checkpoint {path} has optimiser state for {name}, which the model doesn't train")
        parameter = parameters[name]
        optimizer.state[parameter][moment] = part(value, parameter) if value.ndim else value.to(parameter.device)
