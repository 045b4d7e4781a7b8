"""What a Perceiver gives back: queries that read the latents, and what their results become. Imports no torch."""

import math
from dataclasses import field
from typing import Literal

from perceivers.models.feature_config import (
    PointFeatures,
    Shape,
    TokenFeatures,
    positive,
)
from perceivers.models.input_config import (
    FourierPositions,
    InputConfig,
    LearnedPositions,
    MultimodalInputConfig,
    check_names,
)
from perceivers.nn.options import ActivationName, BackendName, check_activation
from perceivers.records import record


def check_heads(name: str, heads: int, *widths: int) -> None:
    """Check that `heads` divide all `widths`."""
    for width in widths:
        if width % heads:
            raise ValueError(
                f"{name}={heads} must divide {width} attention channels, but {width} / {heads} leaves {width % heads}; "
                "choose other heads, or set qk_dim and value_dim"
            )


@record
class GridQueries:
    """One query for each point of a grid: its position."""

    kind: Literal["grid"] = "grid"
    shape: Shape = (1,)
    """Points along each axis; (1,) for one answer, such as a class."""
    positions: FourierPositions | LearnedPositions = field(default_factory=lambda: LearnedPositions(channels=1024))
    """What a query is made of."""
    features: bool = False
    """Put the input's features, without their positions, in front; the input has as many tokens then."""

    def __post_init__(self) -> None:
        positive(self, "shape")
        self.positions.check(len(self.shape))

    @property
    def count(self) -> int:
        """Queries."""
        return math.prod(self.shape)

    @property
    def dim(self) -> int:
        """Channels of a query's position."""
        return self.positions.dim(len(self.shape))


@record
class InputQueries:
    """The input's tokens, with their positions, are the queries."""

    kind: Literal["input"] = "input"


@record
class ClassHead:
    """The only query's result, perhaps after a linear layer."""

    kind: Literal["class"] = "class"
    classes: int | None = None
    """Channels after a linear layer; None for no such layer."""


@record
class LinearHead:
    """A linear layer."""

    kind: Literal["linear"] = "linear"
    channels: int
    """Channels after it."""


@record
class AudioHead:
    """A linear layer to the samples of each patch, and the patches in a row."""

    kind: Literal["audio"] = "audio"
    samples_per_patch: int
    """Samples of a patch."""


@record
class GridHead:
    """Results in the shape of a picture or film."""

    kind: Literal["grid"] = "grid"
    shape: Shape
    """Points along each axis."""
    scale: float = 1.0
    """Every value times this."""


@record
class PatchHead:
    """Channels of each point are the pixels of a patch."""

    kind: Literal["patches"] = "patches"
    shape: Shape
    """Patches along each axis."""
    patch: int = 4
    """Rows and columns of a patch."""
    time_patch: int = 1
    """Frames of a patch."""


@record
class UpsampleHead:
    """Transposed convolutions (kernel 4, stride 2) to a larger picture or film.

    As in the reference: without `time_factor` they are two, for four times the rows and columns, frame by frame.
    """

    kind: Literal["upsample"] = "upsample"
    shape: Shape
    """Points along each axis before them."""
    channels: int = 3
    """Channels of the result."""
    factor: int = 4
    """Times the rows and columns: a power of two."""
    time_factor: int = 1
    """Times the frames: a power of two."""

    def __post_init__(self) -> None:
        positive(self, "shape", "channels", "factor", "time_factor")
        for name in ("factor", "time_factor"):
            if (value := getattr(self, name)).bit_count() != 1:
                raise ValueError(f"{name}={value} must be a power of two: each stage doubles")
        if self.time_factor == 1 and self.factor != 4:
            raise ValueError(f"factor={self.factor} needs time_factor > 1; pictures are enlarged 4 times")
        if self.time_factor > 1 and len(self.shape) != 3:
            raise ValueError(f"time_factor={self.time_factor} needs (frames, rows, columns), not shape={self.shape}")


@record
class TiedHead:
    """Logits of tokens: products with the input's embeddings, plus a bias."""

    kind: Literal["tied"] = "tied"
    vocab_size: int = 262
    """Tokens, as the input has them."""


Head = ClassHead | LinearHead | AudioHead | GridHead | PatchHead | UpsampleHead | TiedHead


def check_fills(head: Head | None, queries: GridQueries) -> None:
    """Check that a grid's queries fill the shape that the head gives their results."""
    if isinstance(head, ClassHead):
        if queries.count != 1:
            raise ValueError(f"a class needs one query, but queries.shape={queries.shape}")
    elif isinstance(head, GridHead | PatchHead | UpsampleHead) and math.prod(head.shape) != queries.count:
        raise ValueError(
            f"{queries.count} queries (queries.shape={queries.shape}) do not fill the head's shape {head.shape}, "
            f"which has {math.prod(head.shape)} points"
        )


@record
class AverageOutputConfig:
    """The average of the latents and a linear layer: the Perceiver's."""

    kind: Literal["average"] = "average"
    classes: int = 1000
    """Channels of the result."""

    def __post_init__(self) -> None:
        positive(self, "classes")


@record
class QueryOutputConfig:
    """Queries read the latents through one cross-attend."""

    kind: Literal["query"] = "query"
    queries: GridQueries | InputQueries = field(default_factory=GridQueries)
    """Who asks."""
    channels: int | None = 1000
    """Channels after a linear layer; None for no such layer."""
    head: Head | None = None
    """What the results become; None for nothing more."""
    heads: int = 1
    """Heads of the cross-attend."""
    widening: int = 1
    """Width of its feed-forward layer, in multiples of a query's channels."""
    qk_dim: int | None = None
    """Channels of its queries and keys; None = those of the latents."""
    value_dim: int | None = None
    """Channels of its values; None = qk_dim."""
    query_residual: bool = False
    """Add the queries to what they read."""
    zero_channels: bool = False
    """Start the linear layer at zero."""
    activation: ActivationName = "gelu_tanh"
    """Activation of the feed-forward layer."""
    backend: BackendName = "auto"
    """How attention is computed; all give the same numbers."""

    def __post_init__(self) -> None:
        positive(self, "heads", "widening")
        check_activation(self.activation)
        if isinstance(self.queries, GridQueries):
            check_fills(self.head, self.queries)

    def dims(self, latent_dim: int) -> tuple[int, int]:
        """Channels of queries and keys, and of values."""
        qk_dim = latent_dim if self.qk_dim is None else self.qk_dim
        return qk_dim, qk_dim if self.value_dim is None else self.value_dim

    def query_dim(self, source: InputConfig | MultimodalInputConfig) -> int:
        """Channels of a query."""
        if isinstance(self.queries, InputQueries):
            return source.dim
        if self.queries.features:
            assert isinstance(source, InputConfig)
            return source.features.dim + self.queries.dim
        return self.queries.dim

    def check(self, latent_dim: int, source: InputConfig | MultimodalInputConfig) -> None:
        """Check what depends on the encoder and the input."""
        check_heads("output.heads", self.heads, *self.dims(latent_dim))
        if isinstance(self.queries, GridQueries) and self.queries.features:
            if not isinstance(source, InputConfig) or isinstance(source.features, PointFeatures):
                raise ValueError("queries.features needs an input of one modality with features")
            if self.queries.count != source.tokens:
                raise ValueError(
                    f"queries.features pairs {self.queries.count} queries with {source.tokens} input tokens; "
                    "they must be as many"
                )
        if not isinstance(self.head, TiedHead):
            return
        if not isinstance(source, InputConfig) or not isinstance(source.features, TokenFeatures):
            raise ValueError("a tied head needs an input of TokenFeatures, whose embeddings it shares")
        width = self.query_dim(source) if self.channels is None else self.channels
        if (width, self.head.vocab_size) != (source.features.dim, source.features.vocab_size):
            raise ValueError(
                f"a tied head of {self.head.vocab_size} tokens on {width} channels does not fit the embedding of "
                f"{source.features.vocab_size} tokens with {source.features.dim} channels"
            )


@record
class OutputModality:
    """A named part of a multimodal output."""

    name: str
    """Under this name it is given back."""
    queries: GridQueries
    """Who asks."""
    head: Head
    """What the results become."""

    def __post_init__(self) -> None:
        if isinstance(self.head, TiedHead) or self.queries.features:
            raise ValueError(f"{self.name}: an output of several modalities has no tied head and no input features")
        check_fills(self.head, self.queries)


@record
class MultimodalOutputConfig:
    """Queries of several modalities, made equally wide by learned vectors, read through one cross-attend."""

    kind: Literal["multimodal"] = "multimodal"
    modalities: tuple[OutputModality, ...]
    """They stand in the order of their names."""
    padding: int = 2
    """Learned channels of the widest modality's queries; others get more."""
    channels: int = 512
    """Channels after the linear layer that all modalities share."""
    heads: int = 1
    """Heads of the cross-attend."""
    widening: int = 1
    """Width of its feed-forward layer, in multiples of a query's channels."""
    qk_dim: int | None = None
    """Channels of its queries and keys; None = those of the latents."""
    value_dim: int | None = None
    """Channels of its values; None = qk_dim."""
    query_residual: bool = False
    """Add the queries to what they read."""
    activation: ActivationName = "gelu_tanh"
    """Activation of the feed-forward layer."""
    backend: BackendName = "auto"
    """How attention is computed; all give the same numbers."""

    def __post_init__(self) -> None:
        check_names([modality.name for modality in self.modalities])
        positive(self, "padding", "channels", "heads", "widening")
        check_activation(self.activation)

    @property
    def query_dim(self) -> int:
        """Channels of a query."""
        return max(modality.queries.dim for modality in self.modalities) + self.padding

    def dims(self, latent_dim: int) -> tuple[int, int]:
        """Channels of queries and keys, and of values."""
        qk_dim = latent_dim if self.qk_dim is None else self.qk_dim
        return qk_dim, qk_dim if self.value_dim is None else self.value_dim

    def check(self, latent_dim: int, source: object) -> None:
        """Check what depends on the encoder."""
        check_heads("output.heads", self.heads, *self.dims(latent_dim))
