"""Names of parameters in `transformers`' Perceivers, for those of ours."""

from typing import NamedTuple

from perceivers.models.feature_config import Conv1x1Features, ConvFeatures, FlowFeatures, TokenFeatures
from perceivers.models.input_config import InputConfig, MultimodalInputConfig
from perceivers.models.output_config import AverageOutputConfig, LinearHead, MultimodalOutputConfig, TiedHead
from perceivers.models.perceiver_config import PerceiverIOConfig

__all__ = ["Part", "huggingface_names"]

INPUT, OUTPUT = "perceiver.input_preprocessor", "perceiver.decoder"


class Part(NamedTuple):
    """A tensor there, which is all of one of ours or some of its rows."""

    name: str
    rows: int | None = None
    """So many of ours; None for all."""
    pixel: bool = False
    """It is a convolution of 1 x 1 pixel, ours a linear layer."""


Names = dict[str, tuple[Part, ...]]
"""For a name of our `state_dict` what it is made of, joined along the first axis."""


def huggingface_names(config: PerceiverIOConfig) -> Names:
    """For each name of our `state_dict` the tensors that it is made of.

    Args:
        config: Of a kind that transformers has, see `config_to_huggingface`.
    """
    encoder = config.encoder
    names: Names = {"encoder.latents": (Part("perceiver.embeddings.latents"),)}
    names |= _layer(
        "encoder.cross_attends.0",
        "perceiver.encoder.cross_attention",
        *encoder.cross_dims(config.input.dim),
        cross=True,
    )
    qk_dim = encoder.dim if encoder.qk_dim is None else encoder.qk_dim
    for i in range(encoder.depth):
        names |= _layer(f"encoder.blocks.0.{i}", f"perceiver.encoder.self_attends.{i}", qk_dim, encoder.dim)
    if isinstance(config.input, MultimodalInputConfig):
        for modality in config.input.modalities:
            names[f"input.padding.{modality.name}"] = (Part(f"{INPUT}.padding.{modality.name}"),)
            names[f"input.mask_tokens.{modality.name}"] = (Part(f"{INPUT}.mask.{modality.name}"),)
    else:
        names |= _input(config.input)
    return names | _output(config)


def _input(config: InputConfig) -> Names:
    names: Names = {}
    match config.features:
        case TokenFeatures():
            names["input.features.table"] = (Part(f"{INPUT}.embeddings.weight"),)
            names["input.positions.table"] = (Part(f"{INPUT}.position_embeddings.weight"),)
        case Conv1x1Features():
            names["input.features.linear.weight"] = (Part(f"{INPUT}.convnet_1x1.weight", pixel=True),)
            names["input.features.linear.bias"] = (Part(f"{INPUT}.convnet_1x1.bias"),)
            names["input.positions.base.table"] = (Part(f"{INPUT}.position_embeddings.position_embeddings"),)
            names |= _module("input.positions.project", f"{INPUT}.positions_projection")
        case ConvFeatures():
            names["input.features.convs.0.weight"] = (Part(f"{INPUT}.convnet.conv.weight"),)
            names |= _module("input.features.norms.0", f"{INPUT}.convnet.batchnorm")
            for buffer in ("running_mean", "running_var", "num_batches_tracked"):
                names[f"input.features.norms.0.{buffer}"] = (Part(f"{INPUT}.convnet.batchnorm.{buffer}"),)
        case FlowFeatures():
            names |= _module("input.features.linear", f"{INPUT}.conv_after_patches")
    return names


def _output(config: PerceiverIOConfig) -> Names:
    output = config.output
    if isinstance(output, AverageOutputConfig):
        raise ValueError("no class of transformers averages the latents")
    tied = not isinstance(output, MultimodalOutputConfig) and isinstance(output.head, TiedHead)
    root = OUTPUT if tied else f"{OUTPUT}.decoder"
    names = _layer(
        "output.cross_attend", f"{root}.decoding_cross_attention", *output.dims(config.encoder.dim), cross=True
    )
    if not tied:
        names |= _module("output.linear", f"{root}.final_layer")
    if isinstance(output, MultimodalOutputConfig):
        for modality in output.modalities:
            inner = "" if isinstance(modality.head, LinearHead) else ".linear"
            names[f"output.padding.{modality.name}"] = (Part(f"{OUTPUT}.padding.{modality.name}"),)
            names |= _module(
                f"output.heads.{modality.name}{inner}",
                f"perceiver.output_postprocessor.modalities.{modality.name}.classifier",
            )
        root, queries = f"{OUTPUT}.modalities.label.decoder", "output.queries.label"
    else:
        queries = "output.queries"
    if tied:
        names["output.head.bias"] = (Part("embedding_decoder.bias"),)
    if isinstance(output, MultimodalOutputConfig) or output.queries.kind == "grid":
        names[f"{queries}.table"] = (Part(f"{root}.output_position_encodings.position_embeddings"),)
    return names


def _layer(ours: str, theirs: str, qk_dim: int, value_dim: int, *, cross: bool = False) -> Names:
    """A `PerceiverLayer`."""
    attention = f"{theirs}.attention.self"
    names = _module(f"{ours}.attention.to_q", f"{attention}.query")
    for kind in ("weight", "bias"):
        names[f"{ours}.attention.to_kv.{kind}"] = (
            Part(f"{attention}.key.{kind}", qk_dim),
            Part(f"{attention}.value.{kind}", value_dim),
        )
    names |= _module(f"{ours}.attention.to_out", f"{theirs}.attention.output.dense")
    names |= _module(f"{ours}.{'norm_latents' if cross else 'norm_attention'}", f"{attention}.layernorm1")
    if cross:
        names |= _module(f"{ours}.norm_context", f"{attention}.layernorm2")
    names |= _module(f"{ours}.norm", f"{theirs}.layernorm")
    return (
        names
        | _module(f"{ours}.feed_forward.up", f"{theirs}.mlp.dense1")
        | _module(f"{ours}.feed_forward.down", f"{theirs}.mlp.dense2")
    )


def _module(ours: str, theirs: str) -> Names:
    """A weight and a bias."""
    return {f"{ours}.{kind}": (Part(f"{theirs}.{kind}"),) for kind in ("weight", "bias")}
