"""What the parameters of the official Perceiver and Perceiver IO are called (deepmind-research, JAX and Haiku)."""

from collections import Counter
from collections.abc import Callable

from perceivers.convert.parameters import Names, linear, norms, numbered
from perceivers.models.feature_config import (
    AudioFeatures,
    Conv1x1Features,
    ConvFeatures,
    FlowFeatures,
    PatchFeatures,
    TokenFeatures,
    VectorFeatures,
)
from perceivers.models.input_config import FourierPositions, InputConfig, LearnedPositions, MultimodalInputConfig
from perceivers.models.output_config import (
    AudioHead,
    AverageOutputConfig,
    ClassHead,
    GridHead,
    GridQueries,
    Head,
    InputQueries,
    LinearHead,
    MultimodalOutputConfig,
    OutputModality,
    QueryOutputConfig,
    TiedHead,
    UpsampleHead,
)
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig

__all__ = [
    "attention",
    "cross_attention",
    "feed_forward",
    "head_names",
    "input_names",
    "official_names",
    "self_attention",
]


class _Modules:
    """Haiku's names of modules: each further one of a class has a number."""

    def __init__(self) -> None:
        self.made: Counter[str] = Counter()

    def __call__(self, name: str) -> str:
        self.made[name] += 1
        return numbered(name, self.made[name] - 1)


def official_names(config: PerceiverIOConfig) -> Names:
    """For each name of our `state_dict` the official parameters that it is made of, joined along the first axis."""
    module = _Modules()
    if isinstance(config.input, MultimodalInputConfig):
        names = _multimodal_input(config.input, module) | _encoder(config.encoder, "encoder/~")
    else:
        names = input_names("input", config.input, module) | _encoder(config.encoder, "perceiver_encoder/~")
    match config.output:
        case AverageOutputConfig():
            return names | linear("output.linear", "projection_decoder/~/logits")
        case MultimodalOutputConfig():
            return names | _multimodal_output(config.output, module)
        case _:
            return names | _query_output(config.output)


def input_names(ours: str, config: InputConfig, module: Callable[[str], str]) -> Names:
    """Names of one modality, whose modules `module` numbers; a text model's embedding stands outside any."""
    names: Names = {}
    match config.features:
        case TokenFeatures():
            names[f"{ours}.features.table"] = ("embed/embeddings",)
            return names | _positions(f"{ours}.positions", "", config.positions)
        case VectorFeatures():
            root = "one_hot_preprocessor"
        case AudioFeatures():
            root = module("audio_preprocessor")
        case _:
            root = module("image_preprocessor")
    match config.features:
        case PatchFeatures(channels=int()) | FlowFeatures():
            names |= linear(f"{ours}.features.linear", f"{root}/patches_linear")
        case Conv1x1Features():
            names |= linear(f"{ours}.features.linear", f"{root}/~/conv2_d")
        case ConvFeatures():
            names |= _convolutions(f"{ours}.features", f"{root}/~/conv2_d_downsample/~", config.features)
    return names | _positions(f"{ours}.positions", f"{root}/~_build_network_inputs/", config.positions)


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


def _positions(ours: str, root: str, positions: FourierPositions | LearnedPositions | None) -> Names:
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


def _multimodal_input(config: MultimodalInputConfig, module: _Modules) -> Names:
    names: Names = {}
    for modality in config.modalities:
        root = f"multimodal_preprocessor/{modality.name}"
        names |= input_names(f"input.inputs.{modality.name}", modality.input, module)
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
    root = "basic_decoder"
    if isinstance(config.head, ClassHead) and config.head.classes is None:
        root = "classification_decoder/~/basic_decoder"
    if isinstance(config.queries, InputQueries):
        if not isinstance(config.head, GridHead):
            raise ValueError("queries that are the input's tokens: the official code has them for optical flow alone")
        root = "flow_decoder/~/basic_decoder"
    names = cross_attention("output.cross_attend", f"{root}/cross_attention")
    if isinstance(config.queries, GridQueries):
        names |= _query_positions("output.queries", root, config.queries)
    if config.channels is not None:
        names |= linear("output.linear", f"{root}/output")
    return names | head_names("output.head", config.head, _Modules())


def _multimodal_output(config: MultimodalOutputConfig, module: _Modules) -> Names:
    root = "multimodal_decoder/~/basic_decoder"
    names = cross_attention("output.cross_attend", f"{root}/cross_attention")
    names |= linear("output.linear", f"{root}/output")
    for modality in config.modalities:
        padding = f"multimodal_decoder/~decoder_query/{modality.name}_padding/pos_embs"
        names[f"output.padding.{modality.name}"] = (padding,)
        # Each modality's queries have a decoder of their own, whose cross-attend is never made.
        match modality:
            case OutputModality(head=ClassHead()):
                own = module("classification_decoder") + "/~/basic_decoder"
            case OutputModality(queries=GridQueries(shape=(_, _, _))):
                own = module("basic_video_autoencoding_decoder") + "/~/basic_decoder"
            case _:
                own = module("basic_decoder")
        names |= _query_positions(f"output.queries.{modality.name}", own, modality.queries)
        names |= head_names(f"output.heads.{modality.name}", modality.head, module)
    return names


def head_names(ours: str, head: Head | None, module: Callable[[str], str]) -> Names:
    """Names of a postprocessor, which `module` numbers."""
    match head:
        case TiedHead():
            return {f"{ours}.bias": ("embedding_decoder/bias",)}
        case AudioHead():
            return linear(f"{ours}.linear", module("audio_postprocessor") + "/linear")
        case ClassHead(classes=int()):
            return linear(f"{ours}.linear", module("classification_postprocessor") + "/linear")
        case LinearHead():
            return linear(ours, module("projection_postprocessor") + "/linear")
        case UpsampleHead(time_factor=1):
            root = module("image_postprocessor") + "/~/conv2_d_upsample/~/transp_conv_"
            return linear(f"{ours}.convs.0", f"{root}1") | linear(f"{ours}.convs.1", f"{root}2")
        case UpsampleHead(factor=factor, time_factor=time_factor):
            root = module("image_postprocessor") + "/~/conv3_d_upsample/conv3d_transpose_"
            names: Names = {}
            for i in range(max(factor, time_factor).bit_length() - 1):
                names |= linear(f"{ours}.convs.{i}", f"{root}{i}")
            return names
    return {}


def _query_positions(ours: str, root: str, queries: GridQueries) -> Names:
    if queries.positions.layers:
        raise ValueError(f"layers={queries.positions.layers} of queries: official decoders have no extra layers there")
    return _positions(ours, f"{root}/~/", queries.positions)


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
