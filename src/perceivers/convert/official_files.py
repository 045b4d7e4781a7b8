"""Files of the official Perceiver IO (pickles of Haiku parameters and state) to config and weights.

Checked on pickles and safetensors written here of the official code's parameters; the published checkpoints were not at
hand. They are pickles of `params`, or of a dictionary with `params` and `state`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from perceivers.convert.inert_pickle import as_array, as_mapping, read_pickle
from perceivers.convert.official_perceiver import convert_params
from perceivers.convert.official_perceiver_config import config_from_official
from perceivers.models.perceiver_config import PerceiverIOConfig

__all__ = ["convert"]

Arrays = dict[str, np.ndarray]


def convert(path: str | Path) -> tuple[PerceiverIOConfig, dict[str, Tensor]]:
    """Config and weights for `build_perceiver_io` from the official weights at `path`.

    Args:
        path: Either a safetensors file with names `params/...` and `state/...`, or a pickle, of which no code is run.
            A JSON file of the same name beside it says what was built, as arguments of `config_from_official`:
            `{"model": {...}, "kind": "perceiver", "shape": [224, 224, 3]}`.

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
        values = json.loads(described.read_text(encoding="utf-8"))
        kwargs, kind, shape = values["model"], values.get("kind", "perceiver"), tuple(values.get("shape", ()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{described} must hold the official arguments as {{'model': {{...}}, 'kind': ..., 'shape': [...]}}: "
            f"{error!r}"
        ) from error
    config = config_from_official(kwargs, kind=kind, shape=shape)
    params, state = _from_safetensors(path) if path.suffix == ".safetensors" else _from_pickle(path)
    if not params:
        raise ValueError(f"{path} holds no Haiku parameters (params/...)")
    return config, convert_params(params, config, state=state)


def _from_safetensors(path: Path) -> tuple[Arrays, Arrays]:
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    params, state = (
        {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        for prefix in ("params/", "state/")
    )
    return params, state


def _from_pickle(path: Path) -> tuple[Arrays, Arrays]:
    tree = as_mapping(read_pickle(path)) or {}
    return _arrays(as_mapping(tree.get("params", tree)) or {}), _arrays(as_mapping(tree.get("state")) or {})


def _arrays(modules: Mapping[Any, Any]) -> Arrays:
    """Arrays of a Haiku dictionary of modules, by `<module path>/<name>`."""
    arrays = {}
    for module, values in modules.items():
        for name, value in (as_mapping(values) or {}).items():
            if (array := as_array(value)) is not None:
                arrays[f"{module}/{name}"] = array
    return arrays
