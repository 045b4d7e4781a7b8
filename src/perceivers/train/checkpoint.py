"""Checkpoints: weights, optimiser and one integer, each whole or absent.

A checkpoint is a directory `checkpoints/step-00000500` with model.safetensors, optimizer.safetensors and state.json. It
is written under a hidden name, flushed to disk and renamed, and hidden again before it is removed: what has the name is
complete. The newest two are kept.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perceivers.hub import load_weights, read_tensors, write_tensors
from perceivers.records import from_dict, parse_json, to_dict
from perceivers.train.parallel import part
from perceivers.writing import new_directory, remove_directory


@dataclass
class TrainState:
    """Where a run is. Data order and dropout follow from `step`; the learning rate too, or from `minutes`."""

    step: int = 0
    """Updates done."""
    minutes: float = 0.0
    """Time that updates took so far, a multiple of `clock.TICK`."""
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
    _remove_hidden(final.parent)
    if final.exists():
        return final
    with new_directory(final) as partial:
        write_tensors(weights, partial / "model.safetensors")
        write_tensors(moments, partial / "optimizer.safetensors")
        (partial / "state.json").write_text(_with_checksum(to_dict(state)), encoding="utf-8")
    for old in checkpoints(run)[:-2]:
        remove_directory(old)
    return final


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
    """Put a checkpoint's weights and moments in place and return where the run was.

    Raises:
        ValueError: A file is damaged or belongs to another model.
    """
    try:
        weights = read_tensors(path / "model.safetensors")
        moments = read_tensors(path / "optimizer.safetensors")
        state = from_dict(TrainState, _checked((path / "state.json").read_text(encoding="utf-8")))
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


def _with_checksum(values: dict[str, Any]) -> str:
    """Values as JSON that says what they were when they were written."""
    return json.dumps(values | {"sha256": _sha256(values)})


def _checked(text: str) -> Any:
    """The values in such a text, or in one without a checksum, as checkpoints of old have it.

    Raises:
        ValueError: They are others now.
    """
    values = parse_json(text)
    if isinstance(values, dict) and values.pop("sha256", _sha256(values)) != _sha256(values):
        raise ValueError("the content of state.json does not match its checksum")
    return values


def _sha256(values: dict[str, Any]) -> str:
    kept = {name: value for name, value in values.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _remove_hidden(directory: Path) -> None:
    """Remove what a kill left of any checkpoint; nobody else writes here."""
    for path in directory.glob(".step-*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def _load_moments(model: nn.Module, optimizer: torch.optim.Optimizer, moments: dict[str, Tensor], path: Path) -> None:
    parameters = dict(model.named_parameters())
    for key, value in moments.items():
        name, moment = key.rsplit(".", 1)
        if name not in parameters:
            raise ValueError(f"checkpoint {path} has optimiser state for {name}, which the model doesn't train")
        parameter = parameters[name]
        optimizer.state[parameter][moment] = part(value, parameter) if value.ndim else value.to(parameter.device)
