"""Perceivers of Hugging Face `transformers` to ours, and back: a directory with config.json and the weights.

`transformers` itself is needed for neither. Checked against it both ways, see tests/parity/test_huggingface.py, and
docs/weights.md for what differs from the official code.
"""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perceivers.convert.huggingface_config import FLOW_SCALE, MODEL_TYPE, SIZE, config_from_huggingface
from perceivers.convert.huggingface_export import config_to_huggingface
from perceivers.convert.huggingface_names import Part, huggingface_names
from perceivers.convert.huggingface_pictures import (
    entries_of_reading,
    picture_size,
    processor_of_reading,
    reading_from_huggingface,
)
from perceivers.convert.parameters import check_fit
from perceivers.device import seeded
from perceivers.hub import CONFIG, OLD_WEIGHTS, PREPROCESSOR, WEIGHTS, read_tensors, write_config_and_weights
from perceivers.models.feature_config import FlowFeatures, TokenFeatures
from perceivers.models.input_config import MultimodalInputConfig
from perceivers.models.output_config import GridHead, TiedHead
from perceivers.models.perceiver_config import PerceiverIOConfig
from perceivers.models.perceiver_io import PerceiverIO, build_perceiver_io
from perceivers.picture_reading import PictureReading
from perceivers.records import parse_json
from perceivers.writing import Lock, finish_files, write_text

__all__ = [
    "is_huggingface",
    "read_huggingface",
    "read_huggingface_pictures",
    "weights_from_huggingface",
    "weights_to_huggingface",
    "write_huggingface",
]


def is_huggingface(directory: Path) -> bool:
    """Whether `directory` holds a Perceiver of transformers, by its config.json."""
    finish_files(directory)
    try:
        values = parse_json((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("model_type") == MODEL_TYPE


def read_huggingface(
    directory: Path, *, size: tuple[int, int] | None = None, flow_scale: float = FLOW_SCALE
) -> tuple[PerceiverIO, str]:
    """The model in `directory`, in float32, and the name of what it reads.

    That is "masked_bytes", "labelled_bytes" (text classifiers), "pictures", "frames" (flow) or "films".

    Args:
        directory: With config.json and model.safetensors or, of old, pytorch_model.bin. Of that, tensors are read
            and no code is run.
        size: See `config_from_huggingface`; None for what preprocessor_config.json says, or 224 x 224 without one.
        flow_scale: Likewise.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, the files don't fit each other, or the model is none that this package builds.
    """
    config, reads = read_huggingface_config(directory, size=size, flow_scale=flow_scale)
    weights = next((directory / name for name in (WEIGHTS, OLD_WEIGHTS) if (directory / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"{directory} has neither {WEIGHTS} nor {OLD_WEIGHTS}: its weights are missing")
    tensors = read_tensors(weights) if weights.name == WEIGHTS else _read_old(weights)
    try:
        state = weights_from_huggingface(tensors, config)
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from error
    with seeded(0):  # weights are drawn and replaced
        model = build_perceiver_io(config)
    model.load_state_dict(state)
    return model, reads


def read_huggingface_config(
    directory: Path, *, size: tuple[int, int] | None = None, flow_scale: float = FLOW_SCALE
) -> tuple[PerceiverIOConfig, str]:
    """The same without weights: config, and what the model reads."""
    path = directory / CONFIG
    size = size or picture_size(directory) or SIZE
    try:
        config = config_from_huggingface(parse_json(path.read_text(encoding="utf-8")), size=size, flow_scale=flow_scale)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return config, _reads(config)


def read_huggingface_pictures(directory: Path, *, flow_scale: float = FLOW_SCALE) -> PictureReading:
    """How the model in `directory` wants pictures, and what its classes are called.

    Raises:
        ValueError: A file is damaged, or asks for what this package does not do.
    """
    path = directory / CONFIG
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return reading_from_huggingface(directory, values, flow_scale=flow_scale)


def _reads(config: PerceiverIOConfig) -> str:
    """What a model reads, in the words of training here."""
    if isinstance(config.input, MultimodalInputConfig):
        return "films"
    match config.input.features:
        case TokenFeatures():
            tied = isinstance(getattr(config.output, "head", None), TiedHead)
            return "masked_bytes" if tied else "labelled_bytes"
        case FlowFeatures():
            return "frames"
        case _:
            return "pictures"


def _read_old(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise ValueError(f"{path} is damaged, or holds more than tensors, which is not read: {line}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{path} holds {type(tensors).__name__}, not tensors by name")
    return tensors


def weights_from_huggingface(tensors: Mapping[str, Tensor], config: PerceiverIOConfig) -> dict[str, Tensor]:
    """Our `state_dict` for that of transformers; floats become float32.

    Key and value projections become one layer, and the 1 x 1 convolution a linear layer.

    Args:
        tensors: Of the meta device only names and shapes are checked.
        config: Of the model.

    Raises:
        ValueError: Lists tensors that are missing, unknown or of another shape.
    """
    parts = huggingface_names(config)
    shapes = _their_shapes(parts, _shapes(config))
    check_fit(tensors, shapes)
    state = {}
    for ours, theirs in parts.items():
        given = [tensors[part.name].flatten(1) if part.pixel else tensors[part.name] for part in theirs]
        joined = torch.cat(given) if len(given) > 1 else given[0].clone()
        state[ours] = joined.float() if joined.is_floating_point() else joined
    return state


def weights_to_huggingface(state: Mapping[str, Tensor], config: PerceiverIOConfig) -> dict[str, Tensor]:
    """What `weights_from_huggingface` makes `state` of.

    As in transformers: flow is divided by 100, whatever `GridHead.scale` says; another scale goes into the weights.

    Raises:
        ValueError: `state` is not of a model that `config` describes.
    """
    parts = huggingface_names(config)
    if wrong := sorted(parts.keys() ^ state.keys()):
        raise ValueError(
            f"the weights are not those of the config ({wrong[0]}); 8-bit ones can't be exported: load them as float32"
        )
    shapes = _their_shapes(parts, _shapes(config))
    tensors = {}
    for ours, theirs in parts.items():
        rows = [part.rows or len(state[ours]) for part in theirs] if state[ours].ndim else []
        pieces = state[ours].split(rows) if rows else [state[ours]]
        for part, piece in zip(theirs, pieces, strict=True):
            tensors[part.name] = piece.reshape(shapes[part.name])
    head = getattr(config.output, "head", None)
    if isinstance(head, GridHead) and head.scale != FLOW_SCALE:
        for part in [*parts["output.linear.weight"], *parts["output.linear.bias"]]:
            tensors[part.name] = tensors[part.name] * (head.scale / FLOW_SCALE)
    return tensors


def _shapes(config: PerceiverIOConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: value.shape for name, value in build_perceiver_io(config).state_dict().items()}


def _their_shapes(
    parts: Mapping[str, tuple[Part, ...]], shapes: Mapping[str, torch.Size]
) -> dict[str, tuple[int, ...]]:
    assert parts.keys() == shapes.keys()
    return {
        part.name: (*(shape if part.rows is None else (part.rows, *shape[1:])), *((1, 1) if part.pixel else ()))
        for ours, theirs in parts.items()
        for shape in [tuple(shapes[ours])]
        for part in theirs
    }


def write_huggingface(model: nn.Module, directory: Path, pictures: PictureReading | None = None) -> dict[str, Any]:
    """Write config.json and model.safetensors, from which transformers' class opens the model; returns the config.

    Of a classifier of colour pictures also preprocessor_config.json, where transformers can read pictures as it does.

    Args:
        model: Made of a `PerceiverIOConfig`.
        directory: Made if it is not there.
        pictures: How it reads pictures, and what its classes are called; None for what training here does.

    Raises:
        ValueError: No class of transformers is this model.
        FileExistsError: Another process is writing there.
        OSError: The disk is full or not writable.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, PerceiverIOConfig):
        raise ValueError(
            f"transformers has Perceiver and Perceiver IO, but no {getattr(config, 'kind', 'such model')!r}"
        )
    pictures = pictures or PictureReading()
    if pictures.permutation is not None:
        raise ValueError(
            f"it reads pixels in an order of its own (seed {pictures.permutation}), which transformers can't"
        )
    values = config_to_huggingface(config) | entries_of_reading(pictures, config)
    tensors = weights_to_huggingface(model.state_dict(), config)
    with Lock.of_directory(directory):
        write_config_and_weights(values, tensors, directory)
        if (processor := processor_of_reading(pictures, config)) is not None:
            write_text(directory / PREPROCESSOR, json.dumps(processor, indent=2) + "\n")
    return values
