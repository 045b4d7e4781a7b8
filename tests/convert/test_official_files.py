import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from perceivers.convert.official_perceiver_files import convert

from .test_official_perceiver import CONFIG, KWARGS, official


def nested(arrays: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """As Haiku keeps them: by module, then by name."""
    tree: dict[str, dict[str, np.ndarray]] = {}
    for path, value in arrays.items():
        module, _, name = path.rpartition("/")
        tree.setdefault(module, {})[name] = value
    return tree


def described(directory: Path, values: Any) -> None:
    (directory / "io.json").write_text(json.dumps(values))


def test_a_pickle_gives_the_same_as_safetensors(tmp_path: Path) -> None:
    params, state = official()
    described(tmp_path, {"model": KWARGS, "shape": [9, 13, 3]})
    tensors = {f"params/{name}": value for name, value in params.items()}
    save_file(tensors | {f"state/{name}": value for name, value in state.items()}, tmp_path / "io.safetensors")
    (tmp_path / "io.pystate").write_bytes(pickle.dumps({"params": nested(params), "state": nested(state)}))
    (config, weights), (other, again) = convert(tmp_path / "io.safetensors"), convert(tmp_path / "io.pystate")
    assert config == other == CONFIG
    assert weights.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in weights.items())


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"io.pickle does not exist; official weights need io.pickle and io"):
        convert(tmp_path / "io.pickle")
    (tmp_path / "io.pickle").write_bytes(pickle.dumps({"params": {}}))
    described(tmp_path, ["model"])
    with pytest.raises(ValueError, match=r"io.json must hold the official arguments"):
        convert(tmp_path / "io.pickle")
    described(tmp_path, {"model": KWARGS, "shape": [9, 13, 3]})
    with pytest.raises(ValueError, match=r"io.pickle holds no Haiku parameters"):
        convert(tmp_path / "io.pickle")
    (tmp_path / "io.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"io.safetensors is damaged"):
        convert(tmp_path / "io.safetensors")
