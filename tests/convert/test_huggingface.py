import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from perceivers.convert.huggingface import (
    is_huggingface,
    read_huggingface,
    weights_from_huggingface,
    weights_to_huggingface,
    write_huggingface,
)
from perceivers.convert.huggingface_config import config_from_huggingface
from perceivers.convert.huggingface_names import huggingface_names
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig
from perceivers.models.perceiver_io import PerceiverIO, build_perceiver_io
from perceivers.picture_reading import PictureReading

SETTINGS: dict[str, Any] = {
    "model_type": "perceiver",
    "architectures": ["PerceiverForMaskedLM"],
    "num_latents": 3,
    "d_latents": 10,
    "d_model": 7,
    "num_self_attends_per_block": 2,
    "num_self_attention_heads": 5,
    "num_cross_attention_heads": 2,
    "qk_channels": 20,
    "v_channels": 10,
    "vocab_size": 11,
    "max_position_embeddings": 13,
}
SETTINGS["d_model"] = 8
CONFIG = config_from_huggingface(SETTINGS)


def model() -> PerceiverIO:
    torch.manual_seed(0)
    return build_perceiver_io(CONFIG)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    write_huggingface(model(), tmp_path / "there")
    return tmp_path / "there"


def test_what_is_written_is_read_again(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
    before = torch.get_rng_state()
    again, tokenizer = read_huggingface(saved)
    assert torch.equal(torch.get_rng_state(), before)
    assert (again.config, tokenizer) == (CONFIG, "masked_bytes")
    before = model().state_dict()
    assert all(torch.equal(value, before[name]) for name, value in again.state_dict().items())


def test_keys_and_values_are_two_tensors_there() -> None:
    state = model().state_dict()
    there = weights_to_huggingface(state, CONFIG)
    root = "perceiver.encoder.cross_attention.attention.self"
    joined = state["encoder.cross_attends.0.attention.to_kv.weight"]
    assert torch.equal(there[f"{root}.key.weight"], joined[:20])
    assert torch.equal(there[f"{root}.value.weight"], joined[20:])


def test_half_precision_becomes_single() -> None:
    there = {name: value.half() for name, value in weights_to_huggingface(model().state_dict(), CONFIG).items()}
    assert {value.dtype for value in weights_from_huggingface(there, CONFIG).values()} == {torch.float32}


def test_everything_that_does_not_fit_is_listed(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    tensors["perceiver.embeddings.latent"] = tensors.pop("perceiver.embeddings.latents")
    tensors["embedding_decoder.bias"] = torch.zeros(12)
    save_file(tensors, saved / "model.safetensors")
    expected = (
        f"{saved / 'model.safetensors'}: weights do not fit the config: embedding_decoder.bias has shape [12], the "
        "config asks for [11]; missing perceiver.embeddings.latents (nearest: perceiver.embeddings.latent); unknown "
        "perceiver.embeddings.latent (nearest: perceiver.embeddings.latents)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        read_huggingface(saved)


def test_a_pickle_of_tensors_is_read(saved: Path) -> None:
    torch.save(load_file(saved / "model.safetensors"), saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    assert torch.equal(read_huggingface(saved)[0].encoder.latents, model().encoder.latents)


class Runs:
    """Its pickle asks for a file to be made."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        return Path.touch, (self.proof,)


@pytest.mark.parametrize("content", [{"a": 1}, [1]], ids=["numbers", "list"])
def test_a_pickle_of_something_else_is_refused(saved: Path, content: Any) -> None:
    (saved / "model.safetensors").unlink()
    torch.save(content, saved / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin holds (dict|list), not tensors by name"):
        read_huggingface(saved)


def test_a_pickle_runs_no_code(saved: Path, tmp_path: Path) -> None:
    (saved / "model.safetensors").unlink()
    torch.save({"a": Runs(tmp_path / "ran")}, saved / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin is damaged, or holds more than tensors"):
        read_huggingface(saved)
    assert not (tmp_path / "ran").exists()
    (saved / "pytorch_model.bin").write_bytes(b"no pickle")
    with pytest.raises(ValueError, match=r"pytorch_model.bin is damaged"):
        read_huggingface(saved)


def test_missing_and_damaged_files(saved: Path, tmp_path: Path) -> None:
    assert is_huggingface(saved)
    assert not is_huggingface(tmp_path)
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has neither model.safetensors nor pytorch_model.bin"):
        read_huggingface(saved)
    (saved / "config.json").write_text("{")
    assert not is_huggingface(saved)
    with pytest.raises(ValueError, match=r"config.json: Expecting"):
        read_huggingface(saved)
    (saved / "config.json").write_text(json.dumps(SETTINGS | {"num_latents": "3"}))
    with pytest.raises(ValueError, match=r"config.json: num_latents: got '3', needs int"):
        read_huggingface(saved)


def test_what_transformers_has_not_is_not_written(tmp_path: Path) -> None:
    wrong: list[tuple[nn.Module, str]] = [
        (nn.Linear(2, 3), "transformers has Perceiver and Perceiver IO, but no 'such model'"),
        (build_perceiver_io(PerceiverIOConfig(encoder=EncoderConfig(num_latents=3, dim=8, depth=1))), "no class of"),
    ]
    for other, message in wrong:
        with pytest.raises(ValueError, match=message):
            write_huggingface(other, tmp_path / "there")
    with pytest.raises(ValueError, match=r"pixels in an order of its own \(seed 5\)"):
        write_huggingface(model(), tmp_path / "there", PictureReading(permutation=5))
    assert not (tmp_path / "there").exists()


def test_weights_of_another_model_are_not_written() -> None:
    state: dict[str, Tensor] = {**model().state_dict(), "encoder.latents.scale": torch.ones(1)}
    with pytest.raises(ValueError, match=r"not those of the config \(encoder.latents.scale\); 8-bit ones can't"):
        weights_to_huggingface(state, CONFIG)


def test_no_tensor_is_made_of_two() -> None:
    names = [part.name for parts in huggingface_names(CONFIG).values() for part in parts]
    assert len(names) == len(set(names))
