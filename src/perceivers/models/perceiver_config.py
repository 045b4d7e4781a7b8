"""Perceiver and Perceiver IO: input, encoder, output. Imports no torch."""

from dataclasses import field
from typing import Literal

from perceivers.models.feature_config import FlowFeatures, PatchFeatures, PixelFeatures, positive
from perceivers.models.input_config import InputConfig, MultimodalInputConfig
from perceivers.models.output_config import AverageOutputConfig, MultimodalOutputConfig, QueryOutputConfig, check_heads
from perceivers.nn.options import ActivationName, BackendName, check_activation
from perceivers.records import not_negative, record

Sharing = Literal["none", "all", "after_first"]


def weight_set(i: int, sharing: Sharing) -> int:
    """Which set of weights the `i`-th of several layers uses."""
    match sharing:
        case "none":
            return i
        case "all":
            return 0
        case "after_first":
            return min(i, 1)


@record
class EncoderConfig:
    """Learned latents that read the input, and blocks of self-attention layers between and after."""

    kind: Literal["encoder"] = "encoder"
    num_latents: int = 512
    """Latents (N in the papers)."""
    dim: int = 1024
    """Channels of a latent."""
    blocks: int = 8
    """Blocks of self-attention layers."""
    depth: int = 6
    """Layers of a block."""
    block_sharing: Sharing = "all"
    """Which blocks have the same weights."""
    cross_attends: int = 1
    """How often latents read the input: once before each of the first so many blocks."""
    cross_sharing: Sharing = "after_first"
    """Which cross-attends have the same weights."""
    heads: int = 8
    """Heads of the self-attention layers."""
    cross_heads: int = 1
    """Heads of the cross-attends."""
    widening: int = 1
    """Width of the self-attention layers' feed-forward layers, in multiples of dim."""
    cross_widening: int = 1
    """Width of the cross-attends' feed-forward layers, in multiples of dim."""
    cross_channels: Literal["input", "latent"] = "input"
    """Whose width the cross-attends' queries, keys and values have."""
    qk_dim: int | None = None
    """Channels of all queries and keys, of cross-attends and self-attention; None = as `cross_channels`, and dim."""
    value_dim: int | None = None
    """Channels of the cross-attends' values; None = those of the keys. Self-attention's are always dim."""
    query_residual: bool = True
    """Add latents to what they read."""
    empty: Literal["zeros", "average"] = "zeros"
    """What is read of an input that is masked as a whole: zeros, or as in transformers the average of its values."""
    activation: ActivationName = "gelu_tanh"
    """Activation of all feed-forward layers."""
    dropout: float = 0.0
    """Share of channels dropped in training from what each layer adds."""
    init_std: float = 0.02
    """Of the first latents."""
    backend: BackendName = "auto"
    """How attention is computed; all give the same numbers."""

    def __post_init__(self) -> None:
        positive(self, "num_latents", "dim", "blocks", "depth", "cross_attends", "heads", "cross_heads")
        positive(self, "widening", "cross_widening")
        check_activation(self.activation)
        not_negative(self, "init_std")
        if not self.cross_attends <= self.blocks:
            raise ValueError(
                f"cross_attends={self.cross_attends} but blocks={self.blocks}: there is at most one before each block"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must lie in [0, 1)")
        check_heads("heads", self.heads, self.dim if self.qk_dim is None else self.qk_dim, self.dim)

    def cross_dims(self, input_dim: int) -> tuple[int, int]:
        """Channels of the cross-attends' queries and keys, and of their values."""
        qk_dim = self.qk_dim
        if qk_dim is None:
            qk_dim = input_dim if self.cross_channels == "input" else self.dim
        return qk_dim, qk_dim if self.value_dim is None else self.value_dim


@record
class PerceiverIOConfig:
    """Perceiver IO (Jaegle et al. 2021, https://arxiv.org/abs/2107.14795).

    With an output that averages the latents it is the Perceiver (Jaegle et al. 2021, https://arxiv.org/abs/2103.03206).
    """

    kind: Literal["perceiver_io"] = "perceiver_io"
    input: InputConfig | MultimodalInputConfig = field(default_factory=lambda: InputConfig(features=PixelFeatures()))
    """What is read."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """What it becomes."""
    output: AverageOutputConfig | QueryOutputConfig | MultimodalOutputConfig = field(
        default_factory=AverageOutputConfig
    )
    """What is asked for."""

    def __post_init__(self) -> None:
        check_heads("cross_heads", self.encoder.cross_heads, *self.encoder.cross_dims(self.input.dim))
        if not isinstance(self.output, AverageOutputConfig):
            self.output.check(self.encoder.dim, self.input)

    @property
    def frames(self) -> tuple[int, int, int] | None:
        """Rows, columns and channels of the two frames that the input is; None for any other input."""
        match self.input:
            case InputConfig(features=FlowFeatures(shape=(2, *frame)) | PatchFeatures(shape=(2, *frame), time_patch=2)):
                rows, columns, channels = frame
                return rows, columns, channels
        return None


@record
class ResamplerConfig:
    """Perceiver Resampler: a fixed number of tokens from any number of frames (Flamingo, arXiv:2204.14198)."""

    kind: Literal["perceiver_resampler"] = "perceiver_resampler"
    dim: int = 1024
    """Channels of the frames' features and of the tokens."""
    num_latents: int = 64
    """Tokens that come out."""
    depth: int = 6
    """Layers."""
    heads: int = 16
    """Heads of each layer."""
    qk_dim: int | None = None
    """Channels of queries, keys and values, all heads together; None = dim."""
    widening: int = 4
    """Width of the feed-forward layers, in multiples of dim."""
    frames: int = 8
    """Frames with a learned position each; positions of more frames are interpolated."""
    activation: ActivationName = "sq_relu"
    """Activation of the feed-forward layers."""
    init_std: float = 0.02
    """Of the first latents and frame positions."""
    backend: BackendName = "auto"
    """How attention is computed; all give the same numbers."""

    def __post_init__(self) -> None:
        positive(self, "dim", "num_latents", "depth", "heads", "widening", "frames")
        check_activation(self.activation)
        not_negative(self, "init_std")
        check_heads("heads", self.heads, self.dim if self.qk_dim is None else self.qk_dim)
