"""Perceivers of transformers: stored numbers of its models, and, where it is installed, models handed to and fro."""

import dataclasses
import json
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import perceivers
from perceivers.convert.huggingface import read_huggingface, weights_from_huggingface, write_huggingface
from perceivers.convert.huggingface_config import ARCHITECTURES, config_from_huggingface
from perceivers.convert.huggingface_names import huggingface_names
from perceivers.data.text import (
    PERCEIVER_MASK,
    PERCEIVER_PAD,
    PERCEIVER_SPECIALS,
    decode_perceiver_bytes,
    decode_perceiver_text,
    encode_perceiver_text,
)
from perceivers.models.feature_config import FlowFeatures, PatchFeatures
from perceivers.models.input_config import InputConfig
from perceivers.models.output_config import GridHead, QueryOutputConfig
from perceivers.models.perceiver_config import PerceiverIOConfig
from perceivers.models.perceiver_io import PerceiverIO, build_perceiver_io
from perceivers.nn.images import neighbourhoods

from .compared import Compared, given
from .io_cases import DIRECTORY
from .official import Case


def cases(kind: str) -> list[Case]:
    """All cases of transformers of a kind."""
    found = [Case(path) for path in sorted(DIRECTORY.glob("*.json"))]
    found = [case for case in found if case.info["family"] == "hf_transformers"]
    if unknown := {case.kind for case in found} - {"hf", "hf_tokenizer"}:
        raise AssertionError(f"cases of an unknown kind: {unknown}")
    if not (chosen := [case for case in found if case.kind == kind]):
        raise FileNotFoundError(f"{DIRECTORY} has no reference cases (*.json) of transformers of kind {kind}")
    return chosen


def saved(case: Case, directory: Path) -> Path:
    """The case's model as `save_pretrained` writes it."""
    config = case.info["config"]["hf_config"]
    values = case.info["full_hf_config"] | config | {"model_type": "perceiver", "transformers_version": "5.23.0"}
    labels = {str(i): f"LABEL_{i}" for i in range(values.pop("num_labels", 2))}
    values |= {"architectures": [case.info["config"]["class"]], "id2label": labels}
    (directory / "config.json").write_text(json.dumps(values))
    params = {name: torch.from_numpy(value.copy()) for name, value in case.tree("params/").items()}
    save_file(params, directory / "model.safetensors")
    return directory


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(-3, -1)


def reads_patches(model: PerceiverIO) -> PerceiverIO:
    """The same model of flow for what transformers reads: the 3 x 3 pixels around each pixel as 27 channels."""
    config = model.config
    assert config is not None
    assert isinstance(config.input, InputConfig)
    assert isinstance(config.input.features, FlowFeatures)
    patches = PatchFeatures(shape=(2, *config.input.features.grid, 27), patch=1, time_patch=2, channels=64)
    other = build_perceiver_io(dataclasses.replace(config, input=dataclasses.replace(config.input, features=patches)))
    other.load_state_dict(model.state_dict())
    return other.eval()


@pytest.mark.parametrize("case", cases("hf"), ids=lambda case: case.path.stem)
@torch.no_grad()
def test_numbers(case: Case, tmp_path: Path) -> None:
    """In float32, as transformers makes positions in no other."""
    kind = case.info["config"]["inputs_kind"]
    size = tuple(case.arrays["in/inputs"].shape[-2:]) if kind == "image" else (224, 224)
    model, tokenizer = read_huggingface(saved(case, tmp_path), size=size)
    assert tokenizer == {"tokens": "bytes", "multimodal": "films"}.get(kind, "pictures")
    compared, mask, points = Compared(case, torch.float32), None, None
    match kind:
        case "tokens":
            x, mask = case.tensor("in/input_ids"), case.tensor("in/attention_mask").bool()
        case "image":
            x = channels_last(given(case, "inputs", torch.float32))
        case "flow":
            x, model = channels_last(given(case, "inputs", torch.float32)), reads_patches(model)
        case "multimodal":
            x = {name: given(case, name, torch.float32) for name in ("audio", "image", "label")}
            x["image"] = channels_last(x["image"])
            points = {name: case.tensor(f"in/subsampling_{name}") for name in ("audio", "image")}
        case _:
            raise AssertionError(f"{case.path} has unknown inputs: {kind}")
    model.eval()
    encoded = model.encode(x, mask=mask)
    compared.close("preprocessed_inputs", encoded.inputs.tokens)
    compared.close("last_hidden_state", encoded.latents)
    result = model.decode(encoded, points=points)
    for name, logits in result.items() if isinstance(result, dict) else [("", result)]:
        compared.close(f"logits_{name}".rstrip("_"), logits)
    compared.maybe(
        "loss", lambda: nn.functional.cross_entropy(result.flatten(0, 1), case.tensor("in/labels").flatten())
    )
    compared.done()


@pytest.mark.parametrize("case", cases("hf_tokenizer"), ids=lambda case: case.path.stem)
def test_tokenizer(case: Case) -> None:
    for call in case.info["encode"]:
        assert encode_perceiver_text(call["text"]).tolist() == call["ids"]
    for call in case.info["decode"]:
        ids = np.array(call["ids"], np.int32)
        assert decode_perceiver_text(ids) == call["text"]
        assert decode_perceiver_bytes(ids) == call["text_skip_special"]
    assert case.info["specials"] == {name: i for i, name in enumerate(PERCEIVER_SPECIALS)}
    padded = case.info["padded"]
    ids = encode_perceiver_text(padded["text"]).tolist()
    assert ids + [PERCEIVER_PAD] * (padded["max_length"] - len(ids)) == padded["ids"]
    assert [int(i != PERCEIVER_PAD) for i in padded["ids"]] == padded["attention_mask"]
    assert case.info["specials"]["[MASK]"] == PERCEIVER_MASK
