import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from perceivers.convert.official_ar import config_from_official, official_names
from perceivers.generate.loaded import load
from perceivers.models.build import build

from .conftest import Command

ARGUMENTS = {
    "num_classes": 31,
    "input_idx_size": [13],
    "max_context_length": 13,
    "position_encoding_type": "rotary",
    "z_index_dim": 5,
    "num_z_channels": 8,
    "input_embed_dim": 8,
    "num_transformers_per_block": 1,
    "num_transformer_heads": 2,
    "num_cross_attend_heads": 2,
}


def write_official(directory: Path) -> Path:
    """Weights as the official code names them, all of them 0.5."""
    config = config_from_official(ARGUMENTS)
    params = {}
    for ours, names in official_names(config).items():
        shape = build(config).state_dict()[ours].shape
        for name in names:
            part = (shape[0] // len(names), *shape[1:])
            params[f"params/{name}"] = np.full(part[::-1] if name.endswith("/w") else part, 0.5, np.float32)
    save_file(params, directory / "official.safetensors")
    (directory / "official.json").write_text(json.dumps({"model": ARGUMENTS}))
    return directory / "official.safetensors"


def test_converted_model_opens(command: Command, tmp_path: Path) -> None:
    source, out = write_official(tmp_path), tmp_path / "model"
    done = command("convert", "official-ar", source, out)
    assert done.code == 0
    assert f"next: perceivers show {out}" in done.out
    loaded = load(out)
    assert loaded.tokenizer == "ids"
    assert loaded.config == config_from_official(ARGUMENTS)
    assert all((tensor == 0.5).all() for tensor in loaded.model.state_dict().values())
    again = command("convert", "official-ar", source, out)
    assert (again.code, "holds a model already" in again.err) == (2, True)


def test_mistakes(command: Command, tmp_path: Path) -> None:
    assert "only official-ar" in command("convert", "official", "a", "b").err
    missing = command("convert", "official-ar", tmp_path / "a.safetensors", tmp_path / "b")
    assert (missing.code, "a.safetensors does not exist" in missing.err) == (2, True)
    assert "usage: perceivers convert official-ar" in command("convert").out
