"""Files of the authors' weights, and the arguments that they built a model with, to configs and weights of ours.

Checked on pickles and safetensors written here of parameters that the official code made; the published checkpoints
were not at hand. Those are read by what the official code writes and how pickles of Haiku and jax look.
"""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from perceivers.convert import official_ar, official_ecp, official_hip, official_perceiver, official_perceiver_config
from perceivers.convert.inert_pickle import as_array, as_mapping, read_pickle
from perceivers.models.config import ModelConfig
from perceivers.models.hip_config import DataSet, Modality
from perceivers.records import parse_json

__all__ = ["convert"]

Arrays = dict[str, np.ndarray]
Weights = dict[str, Tensor]

FORMS = {
    "ar": "{'model': {arguments of PerceiverAR}}",
    "io": "{'model': {arguments}, 'kind': 'perceiver', 'mlm' or 'multimodal', 'shape': [of an input]}",
    "hip": "{'model': {arguments}, 'kind': 'HiP', 'data_sets': {NAME: {MODALITY: [positions, channels]}}}",
    "ecp": "{'model': {arguments}, 'kind': 'ECPAttentionTransformer'}",
}
"""What the JSON file beside the weights holds, by family."""


def convert(family: str, path: str | Path) -> tuple[ModelConfig, Weights]:
    """Config and weights of the official weights at `path`.

    Args:
        family: `ar`, `io`, `hip` or `ecp`.
        path: A safetensors file (of Haiku's with names `params/...` and `state/...`); a pickle that Haiku's code wrote,
            of which no code is run; of ECP one that PyTorch wrote, read with `weights_only`. A JSON file of the same
            name beside it says what was built: `FORMS`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, does not fit its arguments, or asks for what this package does not build.
    """
    path = Path(path)
    described = path.with_suffix(".json")
    for file in (path, described):
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist; official weights need {path.name} and {described.name}")
    try:
        config = _config(family, parse_json(described.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{described} must hold {FORMS[family]}: {error!r}") from error
    return config, _weights(family, path, config)


def _config(family: str, described: dict[str, Any]) -> ModelConfig:
    arguments = described["model"]
    match family:
        case "ar":
            return official_ar.config_from_official(arguments)
        case "io":
            kind, shape = described.get("kind", "perceiver"), tuple(described.get("shape", ()))
            return official_perceiver_config.config_from_official(arguments, kind=kind, shape=shape)
        case "hip":
            data_sets = tuple(_data_set(name, modalities) for name, modalities in described["data_sets"].items())
            return official_hip.config_from_official(described["kind"], arguments, data_sets)
        case "ecp":
            return official_ecp.config_from_official(described["kind"], arguments)
    raise ValueError(f"no family is called {family!r}: choose one of {', '.join(FORMS)}")


def _data_set(name: str, modalities: Mapping[str, list[int]]) -> DataSet:
    known = (Modality(name=one, positions=size[0], channels=size[1]) for one, size in modalities.items())
    return DataSet(name=name, modalities=tuple(known))


def _weights(family: str, path: Path, config: Any) -> Weights:
    if family == "ecp":
        return official_ecp.convert_params(torch_arrays(path), config).state
    params, state = haiku_arrays(path)
    match family:
        case "ar":
            return official_ar.convert_params(params, config)
        case "io":
            return official_perceiver.convert_params(params, config, state=state)
        case _:
            return official_hip.convert_params(params, config)


def haiku_arrays(path: Path) -> tuple[Arrays, Arrays]:
    """Parameters and state, named `<Haiku module path>/<name>`.

    Raises:
        ValueError: The file is damaged, or holds no parameters.
    """
    if path.suffix == ".safetensors":
        tensors = _safetensors(path)
        params, state = (
            {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            for prefix in ("params/", "state/")
        )
    else:
        tree = as_mapping(read_pickle(path)) or {}
        params, state = (_flat(as_mapping(part) or {}) for part in (tree.get("params", tree), tree.get("state")))
    if not params:
        raise ValueError(
            f"{path} holds no Haiku parameters: wanted are names params/... in safetensors, or a pickle of a "
            "dictionary of modules of arrays, or of one with 'params'"
        )
    return params, state


def _flat(modules: Mapping[Any, Any]) -> Arrays:
    """Arrays of a Haiku dictionary of modules, by `<module path>/<name>`."""
    arrays = {}
    for module, values in modules.items():
        for name, value in (as_mapping(values) or {}).items():
            if (array := as_array(value)) is not None:
                arrays[f"{module}/{name}"] = array
    return arrays


def torch_arrays(path: Path) -> Arrays:
    """A `state_dict`, which may lie in a checkpoint's `model` or `model_state_dict`, or what Lightning calls it.

    Raises:
        ValueError: The file is damaged, asks for code to be run, or holds no tensors.
    """
    if path.suffix == ".safetensors":
        return _safetensors(path)
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} is damaged, or holds more than tensors, which is not read: save its state_dict alone"
        ) from error
    for name in ("model", "model_state_dict", "state_dict"):
        if isinstance(saved, dict) and isinstance(saved.get(name), dict):
            saved = saved[name]
    found = saved.items() if isinstance(saved, dict) else ()
    arrays = {name: value.float().numpy() for name, value in found if isinstance(value, Tensor)}
    if not arrays:
        raise ValueError(f"{path} holds no tensors: wanted is a state_dict")
    return arrays


def _safetensors(path: Path) -> Arrays:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
