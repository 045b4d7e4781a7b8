"""Reference cases of transformers' Perceivers, and their models as files."""

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from perceivers.convert.huggingface_config import ARCHITECTURES
from perceivers.models.feature_config import FlowFeatures, PatchFeatures
from perceivers.models.input_config import InputConfig
from perceivers.models.perceiver_io import PerceiverIO, build_perceiver_io

from .compared import check_found
from .io_cases import DIRECTORY
from .official import Case


def cases(kind: str) -> list[Case]:
    """All cases of transformers of a kind."""
    found = [Case(path) for path in sorted(DIRECTORY.glob("*.json"))]
    found = [case for case in found if case.info["family"] == "hf_transformers"]
    if unknown := {case.kind for case in found} - {"hf", "hf_tokenizer"}:
        raise AssertionError(f"cases of an unknown kind: {unknown}")
    chosen = [case for case in found if case.kind == kind]
    check_found(chosen, DIRECTORY, f"transformers of kind {kind}")
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


READS = dict.fromkeys(ARCHITECTURES, "pictures") | {
    "PerceiverForMaskedLM": "masked_bytes",
    "PerceiverForSequenceClassification": "labelled_bytes",
    "PerceiverForOpticalFlow": "frames",
    "PerceiverForMultimodalAutoencoding": "films",
}


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
