"""Checkpoints: weights, optimiser and one integer, each whole or absent.

A checkpoint is a directory `checkpoints/step-00000500` with model.safetensors, optimizer.safetensors and state.json. It
is written under a hidden name, flushed to disk and renamed, so a name that exists is complete; the newest two are kept.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from perceivers.hub import load_weights
from perceivers.records import to_dict


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


def save_checkpoint(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState) -> Path:
    """Write a checkpoint under `run` and remove all but the newest two."""
    parent = run / "checkpoints"
    final = parent / f"step-{state.step:08d}"
    partial = parent / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_file(
            {name: value.contiguous() for name, value in model.state_dict().items()}, partial / "model.safetensors"
        )
        save_file(_moments(optimizer), partial / "optimizer.safetensors")
        (partial / "state.json").write_text(json.dumps(to_dict(state)), encoding="utf-8")
        for file in partial.iterdir():
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in checkpoints(run)[:-2]:
        shutil.rmtree(old)
    return final


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
    """Put a checkpoint's weights and moments in place and return where the run was.

    Raises:
        ValueError: A file is damaged or belongs to another model.
    """
    try:
        weights = load_file(path / "model.safetensors")
        moments = load_file(path / "optimizer.safetensors")
        state = TrainState(**json.loads((path / "state.json").read_text(encoding="utf-8")))
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ValueError(f"checkpoint {path} is damaged ({error}); remove it to go on from the one before") from error
    load_weights(model, weights, source=str(path))
    _load_moments(optimizer, moments, path)
    return state


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's tensors, named by the parameter's index and their own name."""
    return {
        f"{index}.{name}": value.clone()
        for index, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state[parameter].items()
    }


def _load_moments(optimizer: torch.optim.Optimizer, moments: dict[str, torch.Tensor], path: Path) -> None:
    parameters = _parameters(optimizer)
    for key, value in moments.items():
        index, name = key.split(".", 1)
        if int(index) >= len(parameters):
            raise ValueError(
                f"checkpoint {path} has optimiser state for {index} parameters or more, not {len(parameters)}"
            )
        parameter = parameters[int(index)]
        device = torch.device("cpu") if name == "step" and not parameter.is_cuda else parameter.device
        optimizer.state[parameter][name] = value.to(device)
