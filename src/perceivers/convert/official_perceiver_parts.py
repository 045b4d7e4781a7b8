"""Inputs and heads of the official Perceiver IO: arguments of its pre- and postprocessors to parts of our config."""

from collections.abc import Mapping
from typing import Any, Literal

from perceivers.convert.official_perceiver_arguments import (
    FOURIER,
    POSTPROCESSORS,
    PREPROCESSORS,
    TRAINABLE,
    arguments,
    check_choice,
    of_type,
)
from perceivers.models.feature_config import (
    AudioFeatures,
    Conv1x1Features,
    ConvFeatures,
    Features,
    FlowFeatures,
    PatchFeatures,
    PixelFeatures,
    VectorFeatures,
)
from perceivers.models.input_config import FourierPositions, InputConfig, LearnedPositions
from perceivers.models.output_config import (
    AudioHead,
    ClassHead,
    GridHead,
    Head,
    LinearHead,
    PatchHead,
    UpsampleHead,
)


def input_config(o: Mapping[str, Any], shape: tuple[int, ...]) -> InputConfig:
    """What a model of the arguments `o` reads, whose inputs have `shape`."""
    if o["input_preprocessor"] is None:
        _check_axes("without an input_preprocessor an input is", shape, "tokens", "channels")
        return InputConfig(features=VectorFeatures(vectors=shape[0], dim=shape[1]))
    p = of_type("preprocessor", o["input_preprocessor"], PREPROCESSORS, "image")
    if o["patches_for_flow"] and p["type"] != "image":
        raise ValueError(f"patches_for_flow is for pictures, not for a preprocessor of type {p['type']!r}")
    match p["type"]:
        case "onehot":
            _check_axes("a onehot preprocessor reads", shape, "classes")
            return InputConfig(features=VectorFeatures(dim=shape[0]))
        case "audio":
            features = _audio(p, shape)
        case _:
            features = _flow_features(p, shape) if o["patches_for_flow"] else image_features(p, shape)
    check_choice(p, "concat_or_add_pos", "concat", "add")
    return InputConfig(features=features, positions=positions_config(p), combine=p["concat_or_add_pos"])


def _check_axes(what: str, shape: tuple[int, ...], *axes: str) -> None:
    if len(shape) != len(axes):
        raise ValueError(f"{what} ({', '.join(axes)}), not of shape {shape}")


def _flow_features(p: Mapping[str, Any], shape: tuple[int, ...]) -> FlowFeatures:
    settings = (p["prep_type"], p["spatial_downsample"], p["temporal_downsample"], p["conv_after_patching"])
    if settings != ("patches", 1, 2, True):
        raise ValueError("patches_for_flow is built with prep_type='patches', 1 x 1 in space, 2 frames and a linear")
    return FlowFeatures(shape=shape, channels=p["num_channels"])


def image_features(kwargs: Mapping[str, Any], shape: tuple[int, ...]) -> Features:
    """Features as the official `ImagePreprocessor` makes them of inputs of `shape`."""
    p = {**PREPROCESSORS["image"], **kwargs}
    check_choice(p, "prep_type", "conv", "patches", "pixels", "conv1x1")
    stride, time_stride = p["spatial_downsample"], p["temporal_downsample"]
    if p["prep_type"] in ("conv", "conv1x1") and time_stride != 1:
        raise ValueError(f"temporal_downsample={time_stride} must be 1 for prep_type={p['prep_type']!r}")
    if len(shape) == 3:  # a picture has no time
        time_stride = 1
    match p["prep_type"]:
        case "pixels":
            return PixelFeatures(shape=shape, stride=stride, time_stride=time_stride)
        case "patches":
            channels = p["num_channels"] if p["conv_after_patching"] else None
            return PatchFeatures(shape=shape, patch=stride, time_patch=time_stride, channels=channels)
        case "conv1x1":
            return Conv1x1Features(shape=shape, channels=p["num_channels"], stride=stride)
    stages = (stride.bit_length() - 1) // 2
    if stride != 4**stages:
        raise ValueError(f"spatial_downsample={stride} must be a power of 4 for prep_type='conv'")
    if stages == 0:  # no convolution
        return PixelFeatures(shape=shape)
    return ConvFeatures(shape=shape, channels=p["num_channels"], stages=stages, batch_norm=p["conv2d_use_batchnorm"])


def _audio(p: Mapping[str, Any], shape: tuple[int, ...]) -> AudioFeatures:
    check_choice(p, "prep_type", "patches")
    _check_axes("an audio preprocessor reads", shape, "samples", "channels")
    return audio_features(shape, p["samples_per_patch"])


def audio_features(shape: tuple[int, ...], samples_per_patch: int) -> AudioFeatures:
    """Sound of `shape` (samples, channels) as the official `AudioPreprocessor` cuts it."""
    tokens: Literal["moments", "numbers"] = "moments" if shape[1] == 1 else "numbers"
    return AudioFeatures(samples=shape[0], samples_per_patch=samples_per_patch, channels=shape[1], tokens=tokens)


def positions_config(kwargs: Mapping[str, Any]) -> FourierPositions | LearnedPositions:
    """Positions as the official `build_position_encoding` makes them."""
    kind = kwargs["position_encoding_type"]
    if kind not in ("fourier", "trainable"):
        raise ValueError(f"position_encoding_type={kind!r} is not 'fourier' or 'trainable'")
    name = f"{kind}_position_encoding_kwargs"
    if kwargs.get(name) is None:
        raise ValueError(f"position_encoding_type={kind!r} needs {name}")
    project_dim = kwargs.get("project_pos_dim", -1)
    shared: dict[str, Any] = {
        "project_dim": project_dim if project_dim > 0 else None,
        "layers": kwargs.get("n_extra_pos_mlp", 0),
    }
    if kind == "trainable":
        p = arguments(name, kwargs[name], TRAINABLE)
        return LearnedPositions(channels=p["num_channels"], init_std=p["init_scale"], **shared)
    p = arguments(name, kwargs[name], FOURIER)
    return FourierPositions(
        bands=p["num_bands"],
        max_resolution=tuple(p["max_resolution"]) if p["max_resolution"] else None,
        cosines=not p["sine_only"],
        coordinates=p["concat_pos"],
        **shared,
    )


def head_config(kwargs: Mapping[str, Any] | None) -> Head | None:
    """Results as the official postprocessor of a single modality shapes them."""
    if kwargs is None:
        return None
    p = of_type("output_postprocessor", kwargs, POSTPROCESSORS, "image")
    match p["type"]:
        case "identity":
            return None
        case "projection":
            return LinearHead(channels=p["num_outputs"])
        case "classification":
            return ClassHead(classes=p["num_classes"])
        case "audio":
            check_choice(p, "postproc_type", "patches")
            return AudioHead(samples_per_patch=p["samples_per_patch"])
    check_choice(p, "postproc_type", "pixels", "patches", "conv")
    kind, shape = p["postproc_type"], p["input_reshape_size"]
    if kind == "pixels":
        check_choice(p, "spatial_upsample", 1)
        check_choice(p, "temporal_upsample", 1)
        return None if shape is None else GridHead(shape=tuple(shape))
    if shape is None:
        raise ValueError(f"postproc_type={kind!r} needs input_reshape_size: the decoder's results are in a row")
    space, time = p["spatial_upsample"], p["temporal_upsample"]
    if kind == "patches":
        return PatchHead(shape=tuple(shape), patch=space, time_patch=time if len(shape) == 3 else 1)
    if p["n_outputs"] == -1:
        raise ValueError("postproc_type='conv' needs n_outputs")
    # As in the reference: without temporal_upsample, pictures are enlarged 4 times whatever spatial_upsample says.
    factor = 4 if time == 1 else space
    return UpsampleHead(shape=tuple(shape), channels=p["n_outputs"], factor=factor, time_factor=time)
