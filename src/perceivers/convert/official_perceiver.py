"""Weights of the official Perceiver and Perceiver IO (deepmind-research, JAX and Haiku) to ours.

Checked against parameters that the official code made, and against the names and shapes of its published models.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from perceivers.convert.parameters import Names, linear, misnamed, norms, numbered, refuse
from perceivers.models.feature_config import (
    Conv1x1Features,
    ConvFeatures,
    FlowFeatures,
    PatchFeatures,
    TokenFeatures,
)
from perceivers.models.input_config import InputConfig, LearnedPositions, MultimodalInputConfig
from perceivers.models.output_config import (
    AudioHead,
    AverageOutputConfig,
    ClassHead,
    GridHead,
    GridQueries,
    LinearHead,
    MultimodalOutputConfig,
    QueryOutputConfig,
    TiedHead,
)
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig
from perceivers.models.perceiver_io import build_perceiver_io

__all__ = ["convert_params", "official_names"]


def convert_params(
    params: Mapping[str, np.ndarray | Tensor],
    config: PerceiverIOConfig,
    *,
    state: Mapping[str, np.ndarray | Tensor] | None = None,
) -> dict[str, Tensor]:
    """Our `state_dict` for official parameters, named `<Haiku module path>/<name>`.

    Linear weights are transposed, convolutions permuted; key and value projections become one layer.

    Args:
        params: Official parameters; of tensors on the meta device only names and shapes are checked.
        config: Of the model.
        state: Haiku's state, named likewise: running averages of batch norm. Its debiasing counters are left.

    Raises:
        ValueError: Lists parameters that are missing, unknown or of another shape; or the config has a part that the
            official code has not.
    """
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in build_perceiver_io(config).state_dict().items()}
    counters = {name for name in shapes if name.endswith("num_batches_tracked")}
    averages = {name: value for name, value in (state or {}).items() if name.endswith("_ema/average")}
    given = {**params, **averages}
    sources = official_names(config)
    assert sources.keys() == shapes.keys() - counters
    wanted = {name for names in sources.values() for name in names}
    problems = misnamed(given, wanted)
    converted = {}
    for ours, names in sources.items():
        if all(name in given for name in names):
            parts = [_ours(name, given[name], dim=len(shapes[ours])) for name in names]
            if not _fits([part.shape for part in parts], shapes[ours]):
                found = ", ".join(f"{name} {list(given[name].shape)}" for name in names)
                problems.append(f"{found} does not fit {ours} {list(shapes[ours])}")
            else:
                converted[ours] = torch.cat(parts)
    refuse(problems)
    return converted | {name: torch.tensor(0) for name in counters}


def _ours(name: str, value: np.ndarray | Tensor, *, dim: int) -> Tensor:
    """An official parameter in our layout, for a parameter of `dim` axes."""
    tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    if name.endswith("/w"):
        if tensor.ndim == 4 and dim == 2:  # a 1 x 1 convolution is a linear layer here
            tensor = tensor.flatten(0, -2)
        return tensor.T if tensor.ndim == 2 else tensor.permute(3, 2, 0, 1)
    return tensor.flatten() if dim == 1 else tensor


def _fits(parts: list[torch.Size], shape: torch.Size) -> bool:
    same = {part[1:] for part in parts} == {shape[1:]}
    return same and sum(part[0] for part in parts) == shape[0]


def official_names(config: PerceiverIOConfig) -> Names:
    """For each name of our `state_dict` the official parameters that it is made of, joined along the first axis."""
    if isinstance(config.input, MultimodalInputConfig):
        names = _multimodal_input(config.input) | _encoder(config.encoder, "encoder/~")
    else:
        names = _input("input", config.input) | _encoder(config.encoder, "perceiver_encoder/~")
    match config.output:
        case AverageOutputConfig():
            return names | linear("output.linear", "projection_decoder/~/logits")
        case MultimodalOutputConfig():
            return names | _multimodal_output(config.output)
        case _:
            return names | _query_output(config.output)


def _input(ours: str, config: InputConfig) -> Names:
    """One modality; a text model's embedding stands outside any module."""
    root = "audio_preprocessor" if config.features.kind == "audio" else "image_preprocessor"
    positions = f"{root}/~_build_network_inputs/"
    names: Names = {}
    match config.features:
        case TokenFeatures():
            names[f"{ours}.features.table"] = ("embed/embeddings",)
            positions = ""
        case PatchFeatures(channels=int()) | FlowFeatures():
            names |= linear(f"{ours}.features.linear", f"{root}/patches_linear")
        case Conv1x1Features():
            names |= linear(f"{ours}.features.linear", f"{root}/~/conv2_d")
        case ConvFeatures():
            names |= _convolutions(f"{ours}.features", f"{root}/~/conv2_d_downsample/~", config.features)
    return names | _positions(f"{ours}.positions", positions, config)


def _convolutions(ours: str, root: str, config: ConvFeatures) -> Names:
    names: Names = {}
    for i in range(config.stages):
        names[f"{ours}.convs.{i}.weight"] = (f"{root}/{numbered('conv', i)}/w",)
        if config.batch_norm:
            norm = f"{root}/{numbered('batchnorm', i)}"
            names |= norms(f"{ours}.norms.{i}", norm)
            names[f"{ours}.norms.{i}.running_mean"] = (f"{norm}/~/mean_ema/average",)
            names[f"{ours}.norms.{i}.running_var"] = (f"{norm}/~/var_ema/average",)
    return names


def _positions(ours: str, root: str, config: InputConfig) -> Names:
    positions = config.positions
    if positions is None:
        return {}
    names: Names = {}
    projected = positions.project_dim is not None or positions.layers > 0
    if isinstance(positions, LearnedPositions):
        table = f"{ours}.base.table" if projected else f"{ours}.table"
        names[table] = (f"{root}trainable_position_encoding/pos_embs",)
    if positions.project_dim is not None:
        names |= linear(f"{ours}.project", f"{root}position_encoding_projector/linear")
    for i in range(positions.layers):
        names |= linear(f"{ours}.layers.{i}", f"{root}{numbered('linear', i)}")
    return names


def _multimodal_input(config: MultimodalInputConfig) -> Names:
    names: Names = {}
    for modality in config.modalities:
        root = f"multimodal_preprocessor/{modality.name}"
        names |= _input(f"input.inputs.{modality.name}", modality.input)
        names[f"input.padding.{modality.name}"] = (f"{root}_padding/pos_embs",)
        if modality.mask_share is not None:
            names[f"input.mask_tokens.{modality.name}"] = (f"{root}_mask_token/pos_embs",)
    return names


def _encoder(config: EncoderConfig, root: str) -> Names:
    if config.cross_attends > 1 or (config.blocks > 1 and config.block_sharing != "all"):
        raise ValueError(
            f"the official encoder reads its input once and repeats one block; cross_attends={config.cross_attends}, "
            f"blocks={config.blocks}, block_sharing={config.block_sharing!r} has no official weights"
        )
    names = {"encoder.latents": (f"{root}/trainable_position_encoding/pos_embs",)}
    names |= cross_attention("encoder.cross_attends.0", f"{root}/cross_attention")
    for i in range(config.depth):
        names |= self_attention(f"encoder.blocks.0.{i}", f"{root}/{numbered('self_attention', i)}")
    return names


def _query_output(config: QueryOutputConfig) -> Names:
    match config.head:
        case ClassHead():
            root = "classification_decoder/~/basic_decoder"
        case GridHead():
            root = "flow_decoder/~/basic_decoder"
        case None | TiedHead():
            root = "basic_decoder"
        case head:
            raise ValueError(f"the official code has no head {head.kind!r} for one modality")
    names = cross_attention("output.cross_attend", f"{root}/cross_attention")
    if isinstance(config.queries, GridQueries):
        names |= _query_table("output.queries", root, config.queries)
    if config.channels is not None:
        names |= linear("output.linear", f"{root}/output")
    if isinstance(config.head, TiedHead):
        names["output.head.bias"] = ("embedding_decoder/bias",)
    return names


def _multimodal_output(config: MultimodalOutputConfig) -> Names:
    root = "multimodal_decoder/~/basic_decoder"
    names = cross_attention("output.cross_attend", f"{root}/cross_attention") | linear(
        "output.linear", f"{root}/output"
    )
    for modality in config.modalities:
        names[f"output.padding.{modality.name}"] = (
            f"multimodal_decoder/~decoder_query/{modality.name}_padding/pos_embs",
        )
        names |= _query_table(
            f"output.queries.{modality.name}", "classification_decoder/~/basic_decoder", modality.queries
        )
        match modality.head:
            case AudioHead():
                head = "audio_postprocessor"
            case ClassHead():
                head = "classification_postprocessor"
            case LinearHead():
                head = "projection_postprocessor"
            case other:
                raise ValueError(f"the official code has no head {other.kind!r} for {modality.name}")
        inner = "" if isinstance(modality.head, LinearHead) else ".linear"
        names |= linear(f"output.heads.{modality.name}{inner}", f"{head}/linear")
    return names


def _query_table(ours: str, root: str, queries: GridQueries) -> Names:
    if not isinstance(queries.positions, LearnedPositions):
        return {}
    return {f"{ours}.table": (f"{root}/~/trainable_position_encoding/pos_embs",)}


def cross_attention(ours: str, official: str) -> Names:
    """Names of a `CrossAttention`."""
    return _block(ours, official, ("norm_latents", "norm_context", "norm"))


def self_attention(ours: str, official: str) -> Names:
    """Names of a `SelfAttention`."""
    return _block(ours, official, ("norm_attention", "norm"))


def _block(ours: str, official: str, norm_names: tuple[str, ...]) -> Names:
    names = attention(f"{ours}.attention", f"{official}/attention")
    names |= feed_forward(f"{ours}.feed_forward", f"{official}/mlp")
    for i, norm in enumerate(norm_names):
        names |= norms(f"{ours}.{norm}", f"{official}/{numbered('layer_norm', i)}")
    return names


def attention(ours: str, official: str) -> Names:
    """Names of an `Attention`."""
    names = linear(f"{ours}.to_q", f"{official}/linear")
    names |= linear(f"{ours}.to_kv", f"{official}/linear_1", f"{official}/linear_2")
    return names | linear(f"{ours}.to_out", f"{official}/linear_3")


def feed_forward(ours: str, official: str) -> Names:
    """Names of an `MLP`."""
    return linear(f"{ours}.up", f"{official}/linear") | linear(f"{ours}.down", f"{official}/linear_1")
