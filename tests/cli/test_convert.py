import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from perceivers.convert.huggingface_config import config_from_huggingface
from perceivers.convert.official_ar import config_from_official, official_names
from perceivers.convert.official_perceiver_config import config_from_official as io_config
from perceivers.convert.official_perceiver_names import official_names as io_names
from perceivers.generate.loaded import load
from perceivers.hub import write_model
from perceivers.models.build import build
from perceivers.models.perceiver_config import PerceiverIOConfig
from perceivers.models.perceiver_io import build_perceiver_io

from .conftest import Command

ARGUMENTS = {
    "num_classes": 31,
    "input_idx_size": [13],
    "max_context_length": 13,
    "position_encoding_type": "rotary",
    "fraction_to_rotate": 0.5,
    "z_index_dim": 5,
    "num_z_channels": 8,
    "input_embed_dim": 8,
    "num_transformers_per_block": 1,
    "num_transformer_heads": 2,
    "num_cross_attend_heads": 2,
}

CLASSIFIER = config_from_huggingface(
    {
        "architectures": ["PerceiverForImageClassificationFourier"],
        "num_latents": 3,
        "d_latents": 8,
        "num_self_attends_per_block": 1,
        "num_cross_attention_heads": 1,
    },
    size=(5, 7),
)


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
    assert (
        "only official-ar, official-io, official-hip, official-ecp, huggingface"
        in command("convert", "official", "a", "b").err
    )
    missing = command("convert", "official-ar", tmp_path / "a.safetensors", tmp_path / "b")
    assert (missing.code, "a.safetensors does not exist" in missing.err) == (2, True)
    assert "usage: perceivers convert KIND" in command("convert").out


def test_to_transformers_and_back(command: Command, tmp_path: Path) -> None:
    model = build_perceiver_io(CLASSIFIER)
    write_model(model.state_dict(), CLASSIFIER, "pictures", tmp_path / "ours")
    there = command("convert", "to-huggingface", tmp_path / "ours", tmp_path / "there")
    assert there.code == 0
    assert "PerceiverForImageClassificationFourier.from_pretrained" in there.out

    back = command("convert", "huggingface", tmp_path / "there", tmp_path / "back", "--size", 5, 7)
    assert (back.code, "'pictures' tokens" in back.out) == (0, True)
    loaded = load(tmp_path / "back")
    assert isinstance(loaded.config, PerceiverIOConfig)
    assert loaded.config.input.features.shape == (5, 7, 3)  # pyright: ignore[reportAttributeAccessIssue]
    assert all(torch.equal(value, loaded.model.state_dict()[name]) for name, value in model.state_dict().items())

    again = command("convert", "huggingface", tmp_path / "there", tmp_path / "back")
    assert (again.code, "holds a model already" in again.err) == (2, True)
    ours = command("convert", "huggingface", tmp_path / "ours", tmp_path / "other")
    assert (ours.code, "is not of a Perceiver of transformers" in ours.err) == (2, True)


def test_official_perceiver_io(command: Command, tmp_path: Path) -> None:
    arguments = {
        "input_preprocessor": {"prep_type": "pixels", "fourier_position_encoding_kwargs": {"num_bands": 2}},
        "encoder": {"num_blocks": 1, "num_self_attends_per_block": 1, "z_index_dim": 3, "num_z_channels": 8},
        "decoder": {"type": "projection", "num_classes": 5},
    }
    arguments["input_preprocessor"]["spatial_downsample"] = 1
    config = io_config(arguments, shape=(5, 7, 3))
    params = {}
    for ours, value in build(config).state_dict().items():
        for name in (sources := io_names(config)[ours]):
            shape = (value.shape[0] // len(sources), *value.shape[1:])
            params[f"params/{name}"] = np.full(shape[::-1] if name.endswith("/w") else shape, 0.5, np.float32)
    save_file(params, tmp_path / "io.safetensors")
    (tmp_path / "io.json").write_text(json.dumps({"model": arguments, "shape": [5, 7, 3]}))
    done = command("convert", "official-io", tmp_path / "io.safetensors", tmp_path / "a", "--tokenizer", "pictures")
    assert done.code == 0
    loaded = load(tmp_path / "a")
    assert (loaded.tokenizer, loaded.config) == ("pictures", config)
    assert all((tensor == 0.5).all() for tensor in loaded.model.state_dict().values())
