"""Arguments of the official Perceiver and Perceiver IO, as their notebooks give them, to our config."""

from collections.abc import Mapping
from typing import Any

from perceivers.convert.parameters import nearest
from perceivers.models.feature_config import (
    AudioFeatures,
    Conv1x1Features,
    ConvFeatures,
    Features,
    FlowFeatures,
    PatchFeatures,
    PixelFeatures,
    TokenFeatures,
    VectorFeatures,
)
from perceivers.models.input_config import (
    FourierPositions,
    InputConfig,
    LearnedPositions,
    Modality,
    MultimodalInputConfig,
)
from perceivers.models.output_config import (
    AudioHead,
    AverageOutputConfig,
    ClassHead,
    GridHead,
    GridQueries,
    InputQueries,
    LinearHead,
    MultimodalOutputConfig,
    OutputModality,
    QueryOutputConfig,
    TiedHead,
)
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig

__all__ = ["config_from_official", "image_features", "positions_config"]

_NEEDED = object()

_POSITIONS: dict[str, Any] = {
    "position_encoding_type": "fourier",
    "fourier_position_encoding_kwargs": None,
    "trainable_position_encoding_kwargs": None,
    "project_pos_dim": -1,
}
_INPUT: dict[str, Any] = _POSITIONS | {
    "type": "image",
    "prep_type": "conv",
    "spatial_downsample": 4,
    "temporal_downsample": 1,
    "n_extra_pos_mlp": 0,
    "num_channels": 64,
    "conv_after_patching": False,
    "conv2d_use_batchnorm": True,
    "concat_or_add_pos": "concat",
    "samples_per_patch": 96,
}
_ENCODER: dict[str, Any] = {
    "num_self_attends_per_block": 6,
    "num_blocks": 8,
    "z_index_dim": 512,
    "num_z_channels": 1024,
    "qk_channels": None,
    "v_channels": None,
    "num_cross_attend_heads": 1,
    "num_self_attend_heads": 8,
    "cross_attend_widening_factor": 1,
    "self_attend_widening_factor": 1,
    "dropout_prob": 0.0,
    "z_pos_enc_init_scale": 0.02,
    "cross_attention_shape_for_attn": "kv",
    "use_query_residual": True,
}
_DECODER: dict[str, Any] = _POSITIONS | {
    "type": "basic",
    "position_encoding_type": "trainable",
    "num_classes": None,
    "output_num_channels": None,
    "output_index_dims": None,
    "output_image_shape": None,
    "output_w_init": None,
    "rescale_factor": 100.0,
    "num_z_channels": None,
    "qk_channels": None,
    "v_channels": None,
    "num_heads": 1,
    "widening_factor": 1,
    "use_query_residual": False,
    "concat_preprocessed_input": False,
    "final_project": True,
}
_PERCEIVER = {
    "input_preprocessor": _NEEDED,
    "encoder": _NEEDED,
    "decoder": _NEEDED,
    "patches_for_flow": False,
    "output_scale": 1,
}
_TEXT = {"vocab_size": _NEEDED, "d_model": _NEEDED, "max_seq_len": _NEEDED, "encoder": _NEEDED, "decoder": _NEEDED}
_MULTIMODAL: dict[str, Any] = dict.fromkeys(
    (
        "num_frames",
        "audio_samples_per_frame",
        "samples_per_patch",
        "num_classes",
        "img_sz",
        "audio_bands",
        "image_bands",
        "min_padding_size",
        "spatial_downsample",
        "temporal_downsample",
        "mask_probs",
        "decoder_num_z_channels",
        "output_num_channels",
        "label_query_channels",
        "encoder",
    ),
    _NEEDED,
)


def config_from_official(
    kwargs: Mapping[str, Any], *, kind: str = "perceiver", shape: tuple[int, ...] = ()
) -> PerceiverIOConfig:
    """Our config for the official model that a notebook builds of `kwargs`; what is left out has the official default.

    Args:
        kwargs: For "perceiver" the arguments of `input_preprocessor`, `encoder` and `decoder`; for "mlm" those of the
            masked language model; for "multimodal" those of the video autoencoder.
        kind: One of these.
        shape: Of one input, for "perceiver".

    Raises:
        ValueError: An unknown kind or argument, a missing one, or one that this package does not build.
    """
    match kind:
        case "perceiver":
            o = _arguments("model", kwargs, _PERCEIVER)
            source = _image(o, shape) if o["input_preprocessor"].get("type") != "audio" else _audio(o, shape)
            return PerceiverIOConfig(input=source, encoder=_encoder(o["encoder"]), output=_output(o))
        case "mlm":
            return _text(_arguments("model", kwargs, _TEXT))
        case "multimodal":
            return _multimodal(_arguments("model", kwargs, _MULTIMODAL))
        case _:
            raise ValueError(f"kind {kind!r} is not one of 'perceiver', 'mlm', 'multimodal'")


def _arguments(name: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := sorted(given.keys() - defaults.keys()):
        raise ValueError(f"the official {name} has no argument {unknown[0]!r}{nearest(unknown[0], defaults)}")
    missing = [key for key, value in defaults.items() if value is _NEEDED and key not in given]
    if missing:
        raise ValueError(f"arguments of the official {name}: {', '.join(missing)} missing")
    return {**defaults, **given}


def _image(o: Mapping[str, Any], shape: tuple[int, ...]) -> InputConfig:
    p = _arguments("ImagePreprocessor", o["input_preprocessor"], _INPUT)
    features = _flow_features(p, shape) if o["patches_for_flow"] else image_features(p, shape)
    return InputConfig(features=features, positions=positions_config(p), combine=p["concat_or_add_pos"])


def _flow_features(p: Mapping[str, Any], shape: tuple[int, ...]) -> FlowFeatures:
    settings = (p["prep_type"], p["spatial_downsample"], p["temporal_downsample"], p["conv_after_patching"])
    if settings != ("patches", 1, 2, True):
        raise ValueError("patches_for_flow is built with prep_type='patches', 1 x 1 in space, 2 frames and a linear")
    return FlowFeatures(shape=shape, channels=p["num_channels"])


def image_features(kwargs: Mapping[str, Any], shape: tuple[int, ...]) -> Features:
    """Features as the official `ImagePreprocessor` makes them of inputs of `shape`."""
    p = {**_INPUT, **kwargs}
    stride, time_stride = p["spatial_downsample"], p["temporal_downsample"]
    match p["prep_type"]:
        case "pixels":
            return PixelFeatures(shape=shape, stride=stride, time_stride=time_stride)
        case "patches":
            channels = p["num_channels"] if p["conv_after_patching"] else None
            return PatchFeatures(shape=shape, patch=stride, time_patch=time_stride, channels=channels)
        case "conv1x1":
            return Conv1x1Features(shape=shape, channels=p["num_channels"], stride=stride)
        case "conv":
            stages = (stride.bit_length() - 1) // 2
            if stride != 4**stages or stages < 1:
                raise ValueError(f"spatial_downsample={stride} must be a power of 4 for prep_type='conv'")
            return ConvFeatures(
                shape=shape, channels=p["num_channels"], stages=stages, batch_norm=p["conv2d_use_batchnorm"]
            )
        case other:
            raise ValueError(f"prep_type={other!r} is not one of 'conv', 'patches', 'pixels', 'conv1x1'")


def _audio(o: Mapping[str, Any], shape: tuple[int, ...]) -> InputConfig:
    p = _arguments("AudioPreprocessor", o["input_preprocessor"], _INPUT)
    features = AudioFeatures(samples=shape[0], samples_per_patch=p["samples_per_patch"], channels=shape[1])
    return InputConfig(features=features, positions=positions_config(p), combine=p["concat_or_add_pos"])


def positions_config(kwargs: Mapping[str, Any]) -> FourierPositions | LearnedPositions:
    """Positions as the official `build_position_encoding` makes them."""
    p = {**_POSITIONS, **kwargs}
    project_dim = p["project_pos_dim"] if p["project_pos_dim"] > 0 else None
    layers = p.get("n_extra_pos_mlp", 0)
    if p["position_encoding_type"] == "trainable":
        kwargs = p["trainable_position_encoding_kwargs"] or {}
        return LearnedPositions(
            channels=kwargs.get("num_channels", 128),
            init_std=kwargs.get("init_scale", 0.02),
            project_dim=project_dim,
            layers=layers,
        )
    if p["position_encoding_type"] != "fourier":
        raise ValueError(f"position_encoding_type={p['position_encoding_type']!r} is not 'fourier' or 'trainable'")
    kwargs = p["fourier_position_encoding_kwargs"] or {}
    return FourierPositions(
        bands=kwargs["num_bands"],
        max_resolution=tuple(kwargs["max_resolution"]) if kwargs.get("max_resolution") else None,
        cosines=not kwargs.get("sine_only", False),
        coordinates=kwargs.get("concat_pos", True),
        project_dim=project_dim,
        layers=layers,
    )


def _encoder(kwargs: Mapping[str, Any]) -> EncoderConfig:
    e = _arguments("PerceiverEncoder", kwargs, _ENCODER)
    if e["v_channels"] not in (None, e["num_z_channels"]):
        raise ValueError(
            f"v_channels={e['v_channels']} must be num_z_channels={e['num_z_channels']}: the official self-attention "
            "adds its values to the latents"
        )
    return EncoderConfig(
        num_latents=e["z_index_dim"],
        dim=e["num_z_channels"],
        blocks=e["num_blocks"],
        depth=e["num_self_attends_per_block"],
        heads=e["num_self_attend_heads"],
        cross_heads=e["num_cross_attend_heads"],
        widening=e["self_attend_widening_factor"],
        cross_widening=e["cross_attend_widening_factor"],
        cross_channels="input" if e["cross_attention_shape_for_attn"] == "kv" else "latent",
        qk_dim=e["qk_channels"],
        value_dim=e["v_channels"],
        query_residual=e["use_query_residual"],
        dropout=float(e["dropout_prob"]),
        init_std=e["z_pos_enc_init_scale"],
    )


def _output(o: Mapping[str, Any]) -> AverageOutputConfig | QueryOutputConfig:
    d = _arguments("decoder", o["decoder"], _DECODER)
    if d["type"] == "projection":
        return AverageOutputConfig(classes=d["num_classes"])
    shared: dict[str, Any] = {
        "heads": d["num_heads"],
        "widening": d["widening_factor"],
        "qk_dim": d["qk_channels"],
        "value_dim": d["v_channels"],
        "query_residual": d["use_query_residual"],
        "zero_channels": d["output_w_init"] == "zeros",
    }
    match d["type"]:
        case "basic":
            dims = d["output_index_dims"]
            shape = (dims,) if isinstance(dims, int) else tuple(dims)
            queries = GridQueries(shape=shape, positions=positions_config(d), features=d["concat_preprocessed_input"])
            channels = d["output_num_channels"] if d["final_project"] else None
            return QueryOutputConfig(queries=queries, channels=channels, **shared)
        case "classification":
            queries = GridQueries(shape=(1,), positions=positions_config(d))
            return QueryOutputConfig(queries=queries, channels=d["num_classes"], head=ClassHead(), **shared)
        case "flow":
            head = GridHead(shape=tuple(d["output_image_shape"]), scale=o["output_scale"] / d["rescale_factor"])
            return QueryOutputConfig(queries=InputQueries(), channels=d["output_num_channels"], head=head, **shared)
        case other:
            raise ValueError(f"decoder {other!r} is not one of 'projection', 'basic', 'classification', 'flow'")


def _text(o: Mapping[str, Any]) -> PerceiverIOConfig:
    output = _output({"decoder": o["decoder"] | {"type": "basic"}, "output_scale": 1})
    assert isinstance(output, QueryOutputConfig)
    if output.channels is not None:
        raise ValueError("a masked language model's decoder has final_project=False: its results meet the embedding")
    return PerceiverIOConfig(
        input=InputConfig(
            features=TokenFeatures(vocab_size=o["vocab_size"], seq_len=o["max_seq_len"], dim=o["d_model"]),
            positions=LearnedPositions(channels=o["d_model"]),
            combine="add",
        ),
        encoder=_encoder(o["encoder"]),
        output=QueryOutputConfig(
            queries=output.queries,
            channels=None,
            head=TiedHead(vocab_size=o["vocab_size"]),
            heads=output.heads,
            widening=output.widening,
            qk_dim=output.qk_dim,
            value_dim=output.value_dim,
            query_residual=output.query_residual,
        ),
    )


def _multimodal(o: Mapping[str, Any]) -> PerceiverIOConfig:
    """The video autoencoder; pictures have `img_sz` patches a side."""
    size = o["img_sz"] * o["spatial_downsample"]
    samples = o["num_frames"] * o["audio_samples_per_frame"]
    audio = AudioFeatures(samples=samples, samples_per_patch=o["samples_per_patch"])
    audio_positions = FourierPositions(bands=o["audio_bands"], max_resolution=(samples,))
    image = PatchFeatures(
        shape=(o["num_frames"], size, size, 3), patch=o["spatial_downsample"], time_patch=o["temporal_downsample"]
    )
    image_positions = FourierPositions(
        bands=o["image_bands"], max_resolution=(o["num_frames"], o["img_sz"], o["img_sz"])
    )
    inputs = {
        "audio": InputConfig(features=audio, positions=audio_positions),
        "image": InputConfig(features=image, positions=image_positions),
        "label": InputConfig(features=VectorFeatures(dim=o["num_classes"])),
    }
    shares = o["mask_probs"]
    label = LearnedPositions(channels=o["label_query_channels"])
    return PerceiverIOConfig(
        input=MultimodalInputConfig(
            modalities=tuple(Modality(name=n, input=i, mask_share=shares.get(n)) for n, i in inputs.items()),
            padding=o["min_padding_size"],
        ),
        encoder=_encoder(o["encoder"]),
        output=MultimodalOutputConfig(
            modalities=(
                OutputModality(
                    name="audio",
                    queries=GridQueries(shape=audio.grid, positions=audio_positions),
                    head=AudioHead(samples_per_patch=o["samples_per_patch"]),
                ),
                OutputModality(
                    name="image",
                    queries=GridQueries(shape=(o["num_frames"], size, size), positions=image_positions),
                    head=LinearHead(channels=3),
                ),
                OutputModality(
                    name="label", queries=GridQueries(positions=label), head=ClassHead(classes=o["num_classes"])
                ),
            ),
            channels=o["output_num_channels"],
        ),
    )
