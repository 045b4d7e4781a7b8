"""Arguments of the official Perceiver and Perceiver IO, as their notebooks give them, to our config."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from perceivers.convert.official_perceiver_arguments import (
    DECODERS,
    ENCODER,
    MULTIMODAL,
    PERCEIVER,
    TEXT,
    arguments,
    check_choice,
    of_type,
)
from perceivers.convert.official_perceiver_parts import audio_features, head_config, input_config, positions_config
from perceivers.models.feature_config import PatchFeatures, TokenFeatures, VectorFeatures
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

__all__ = ["config_from_official"]


def config_from_official(
    kwargs: Mapping[str, Any], *, kind: str = "perceiver", shape: tuple[int, ...] = ()
) -> PerceiverIOConfig:
    """Our config for the official model that a notebook builds of `kwargs`; what is left out has the official default.

    Args:
        kwargs: For "perceiver" the arguments of `input_preprocessor`, `encoder` and `decoder`; for "mlm" those of the
            masked language model; for "multimodal" those of the video autoencoder.
        kind: One of these.
        shape: Of one input, for "perceiver"; of the sound, for "multimodal", which has one channel without.

    Raises:
        ValueError: An unknown kind or argument, a missing one, or one that this package does not build.
    """
    match kind:
        case "perceiver":
            o = arguments("model", kwargs, PERCEIVER)
            return PerceiverIOConfig(input=input_config(o, shape), encoder=_encoder(o["encoder"]), output=_output(o))
        case "mlm":
            return _text(arguments("model", kwargs, TEXT))
        case "multimodal":
            return _multimodal(arguments("model", kwargs, MULTIMODAL), channels=shape[1] if shape else 1)
        case _:
            raise ValueError(f"kind {kind!r} is not one of 'perceiver', 'mlm', 'multimodal'")


def _encoder(kwargs: Mapping[str, Any]) -> EncoderConfig:
    e = arguments("PerceiverEncoder", kwargs, ENCODER)
    check_choice(e, "cross_attention_shape_for_attn", "kv", "q")
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
    d = of_type("decoder", o["decoder"], DECODERS, "basic")
    kind = d["type"]
    if kind != "flow" and o["output_scale"] != 1:
        raise ValueError(f"output_scale={o['output_scale']} is for a flow decoder, not for {kind!r}")
    if kind != "basic" and o["output_postprocessor"] is not None:
        raise ValueError(f"output_postprocessor is built after a decoder of type 'basic', not after {kind!r}")
    if kind == "projection":
        return AverageOutputConfig(classes=d["num_classes"])
    check_choice(d, "output_w_init", None, "zeros")
    if d["concat_preprocessed_input"] and o["input_preprocessor"] is None:
        raise ValueError("concat_preprocessed_input needs an input_preprocessor")
    channels = d["num_classes"] if kind == "classification" else d["output_num_channels"]
    match kind:
        case "basic":
            queries, head = _grid_queries(d, d["output_index_dims"]), head_config(o["output_postprocessor"])
        case "classification":
            queries, head = _grid_queries(d, 1), ClassHead()
        case _:  # as in the reference: a flow decoder's own positions and input features are not used
            queries = InputQueries()
            head = GridHead(shape=tuple(d["output_image_shape"]), scale=o["output_scale"] / d["rescale_factor"])
    return QueryOutputConfig(
        queries=queries,
        channels=channels if d["final_project"] else None,
        head=head,
        heads=d["num_heads"],
        qk_dim=d["qk_channels"],
        value_dim=d["v_channels"],
        query_residual=d["use_query_residual"],
        zero_channels=d["output_w_init"] == "zeros",
    )


def _grid_queries(d: Mapping[str, Any], dims: int | Sequence[int]) -> GridQueries:
    if d["position_encoding_type"] == "none":
        raise ValueError("position_encoding_type='none' leaves no queries; choose 'fourier' or 'trainable'")
    shape = (dims,) if isinstance(dims, int) else tuple(dims)
    return GridQueries(shape=shape, positions=positions_config(d), features=d["concat_preprocessed_input"])


def _text(o: Mapping[str, Any]) -> PerceiverIOConfig:
    d = of_type("decoder", o["decoder"], {"basic": DECODERS["basic"]}, "basic")
    if d["final_project"]:
        raise ValueError("a masked language model's decoder has final_project=False: its results meet the embedding")
    if d["concat_preprocessed_input"]:
        raise ValueError("concat_preprocessed_input=True: a masked language model's queries are positions alone")
    output = _output({**PERCEIVER, "decoder": d})
    assert isinstance(output, QueryOutputConfig)
    return PerceiverIOConfig(
        input=InputConfig(
            features=TokenFeatures(vocab_size=o["vocab_size"], seq_len=o["max_seq_len"], dim=o["d_model"]),
            positions=LearnedPositions(channels=o["d_model"]),
            combine="add",
        ),
        encoder=_encoder(o["encoder"]),
        output=dataclasses.replace(output, head=TiedHead(vocab_size=o["vocab_size"])),
    )


def _multimodal(o: Mapping[str, Any], *, channels: int) -> PerceiverIOConfig:
    """The video autoencoder; pictures have `img_sz` patches a side, sound has `channels`."""
    size = o["img_sz"] * o["spatial_downsample"]
    samples = o["num_frames"] * o["audio_samples_per_frame"]
    audio = audio_features((samples, channels), o["samples_per_patch"])
    audio_positions = FourierPositions(bands=o["audio_bands"], max_resolution=(samples,))
    image = PatchFeatures(
        shape=(o["num_frames"], size, size, 3), patch=o["spatial_downsample"], time_patch=o["temporal_downsample"]
    )
    image_positions = FourierPositions(
        bands=o["image_bands"], max_resolution=(o["num_frames"], o["img_sz"], o["img_sz"])
    )
    layers = o["n_extra_pos_mlp"]
    inputs = {
        "audio": InputConfig(features=audio, positions=dataclasses.replace(audio_positions, layers=layers)),
        "image": InputConfig(features=image, positions=dataclasses.replace(image_positions, layers=layers)),
        "label": InputConfig(features=VectorFeatures(dim=o["num_classes"])),
    }
    shares = o["mask_probs"] or dict.fromkeys(inputs)
    if wrong := sorted(shares.keys() ^ inputs.keys()):
        raise ValueError(f"mask_probs must name exactly {', '.join(inputs)}; {wrong[0]!r} is missing or too many")
    label = LearnedPositions(channels=o["label_query_channels"])
    return PerceiverIOConfig(
        input=MultimodalInputConfig(
            modalities=tuple(Modality(name=n, input=i, mask_share=shares[n]) for n, i in inputs.items()),
            padding=o["min_padding_size"],
        ),
        encoder=_encoder(o["encoder"]),
        output=MultimodalOutputConfig(
            modalities=(
                OutputModality(
                    name="audio",
                    queries=GridQueries(shape=(samples // o["samples_per_patch"],), positions=audio_positions),
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
