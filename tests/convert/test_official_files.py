import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from perceivers.convert import official_hip
from perceivers.convert.official_ecp import convert_params
from perceivers.convert.official_files import convert

from .test_official_ar import MODEL, REFERENCE, reference_params
from .test_official_ecp import COMMON, ECP_CLASS, OWN, config_of, official_params
from .test_official_hip import DATA, MINI
from .test_official_hip import official as hip_params
from .test_official_perceiver import CONFIG, KWARGS, official


def nested(arrays: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """As Haiku keeps them: by module, then by name."""
    tree: dict[str, dict[str, np.ndarray]] = {}
    for path, value in arrays.items():
        module, _, name = path.rpartition("/")
        tree.setdefault(module, {})[name] = value
    return tree


def described(path: Path, values: Any) -> Path:
    path.with_suffix(".json").write_text(json.dumps(values))
    return path


def write_pickle(path: Path, value: Any, values: Any) -> Path:
    path.write_bytes(pickle.dumps(value))
    return described(path, values)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_pickle_gives_the_same_as_safetensors(tmp_path: Path, wrapped: bool) -> None:
    params = nested(reference_params())
    saved = {"global_step": 5, "params": params, "state": {}, "opt_state": (1, [2])} if wrapped else params
    config, weights = convert("ar", write_pickle(tmp_path / "checkpoint.dill", saved, {"model": MODEL}))
    wanted_config, wanted = convert("ar", str(REFERENCE))
    assert config == wanted_config
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


def test_perceiver_io_with_its_state(tmp_path: Path) -> None:
    params, state = official()
    values = {"model": KWARGS, "shape": [9, 13, 3]}
    tensors = {f"params/{name}": value for name, value in params.items()}
    save_file(tensors | {f"state/{name}": value for name, value in state.items()}, tmp_path / "io.safetensors")
    config, weights = convert("io", described(tmp_path / "io.safetensors", values))
    saved = {"params": nested(params), "state": nested(state)}
    other, again = convert("io", write_pickle(tmp_path / "io.pystate", saved, values))
    assert config == other == CONFIG
    assert weights.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in weights.items())


def test_hip(tmp_path: Path) -> None:
    modalities = {one.name: [one.positions, one.channels] for one in DATA[0].modalities}
    values = {"model": MINI, "kind": "HiP", "data_sets": {"pictures": modalities}}
    path = described(tmp_path / "hip.pkl", values)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"hip\.pkl"):
        convert("hip", path)
    expected = official_hip.config_from_official("HiP", MINI, DATA)
    params = hip_params(expected)
    config, weights = convert("hip", write_pickle(path, nested(params), values))
    assert config == expected
    wanted = official_hip.convert_params(params, expected)
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("form", ["plain", "wrapped", "safetensors"])
def test_ecp(form: str, tmp_path: Path) -> None:
    """The training script's wrapper puts `model.` before names."""
    arrays = official_params(ECP_CLASS)
    path = tmp_path / ("ecp.safetensors" if form == "safetensors" else "ecp.pt")
    if form == "safetensors":
        save_file(arrays, path)
    else:
        tensors = {f"model.{name}": torch.from_numpy(value) for name, value in arrays.items()}
        torch.save({"model_state_dict": tensors, "epoch": 3} if form == "wrapped" else tensors, path)
    values = {"kind": ECP_CLASS, "model": {**COMMON, **OWN[ECP_CLASS]}}
    config, weights = convert("ecp", described(path, values))
    assert config == config_of(ECP_CLASS)
    wanted = convert_params(arrays, config_of(ECP_CLASS)).state
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


class Runs:
    """Is made by calling a function."""

    def __reduce__(self) -> Any:
        return print, ("this must not be printed",)


def test_code_of_a_pytorch_pickle_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = described(tmp_path / "ecp.pt", {"kind": ECP_CLASS, "model": {**COMMON, **OWN[ECP_CLASS]}})
    torch.save({"a": Runs()}, path)
    with pytest.raises(ValueError, match=r"ecp\.pt is damaged, or holds more than tensors"):
        convert("ecp", path)
    assert not capsys.readouterr().out
    torch.save([1], path)
    with pytest.raises(ValueError, match=r"ecp\.pt holds no tensors"):
        convert("ecp", path)


def test_files_without_parameters(tmp_path: Path) -> None:
    values = {"model": MODEL}
    for saved in ({"params": {"module": {"w": "text"}}}, [1, 2]):
        with pytest.raises(ValueError, match=r"checkpoint\.dill holds no Haiku parameters"):
            convert("ar", write_pickle(tmp_path / "checkpoint.dill", saved, values))
    path = write_pickle(tmp_path / "a.safetensors", None, values)
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged"):
        convert("ar", path)
    save_file({"w": np.ones(3)}, path)
    with pytest.raises(ValueError, match="wanted are names params/"):
        convert("ar", path)


@pytest.mark.parametrize(
    ("family", "wrong", "form"),
    [
        ("ar", "no json", "arguments of PerceiverAR"),
        ("ar", "[]", "arguments of PerceiverAR"),
        ("io", "{}", "'shape'"),
        ("hip", json.dumps({"model": MINI, "kind": "HiP"}), "MODALITY"),
        ("hip", json.dumps({"model": MINI, "kind": "HiP", "data_sets": {"a": {"b": 3}}}), "MODALITY"),
        ("hip", json.dumps({"model": MINI, "kind": "HiP", "data_sets": {"a": {"b": [3]}}}), "MODALITY"),
        ("ecp", json.dumps({"model": COMMON}), "ECPAttentionTransformer"),
    ],
)
def test_the_arguments_must_stand_beside_the_weights(family: str, wrong: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pickle"
    with pytest.raises(FileNotFoundError, match=r"a\.pickle does not exist"):
        convert(family, path)
    path.write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"need a\.pickle and a\.json"):
        convert(family, path)
    path.with_suffix(".json").write_text(wrong)
    with pytest.raises(ValueError, match=rf"a\.json must hold .*{form}"):
        convert(family, path)
