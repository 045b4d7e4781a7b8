"""What a Perceiver AR is. Imports no torch."""

import math
from dataclasses import field
from typing import Literal

from perceivers.nn.options import ActivationName, BackendName, check_activation
from perceivers.records import not_negative, record


def _at_least_one(record: object, *names: str) -> None:
    for name in names:
        if (value := getattr(record, name)) < 1:
            raise ValueError(f"{name}={value} must be at least 1")


@record
class RotaryPositions:
    """Queries and keys turn with their position (one axis)."""

    kind: Literal["rotary"] = "rotary"
    channel_share: float = 0.5
    """Share of each head's channels that turn, in (0, 1]; the first ones."""
    head_share: float = 1.0
    """Share of the heads that turn, in [0, 1]; the first ones."""
    cross_head_groups: int = 1
    """Groups of cross-attend heads of which each turns `head_share`; 1 = all heads are one group."""
    max_wavelength: int | None = None
    """Tokens after which the slowest channels have turned by one radian; None = max_seq_len."""

    def __post_init__(self) -> None:
        _at_least_one(self, "cross_head_groups")
        if self.max_wavelength is not None:
            _at_least_one(self, "max_wavelength")
        if not 0 < self.channel_share <= 1:
            raise ValueError(f"channel_share={self.channel_share} must lie in (0, 1]")
        if not 0 <= self.head_share <= 1:
            raise ValueError(f"head_share={self.head_share} must lie in [0, 1]")

    def channels(self, head_dim: int) -> int:
        """Rotated channels of a head: even."""
        return 2 * math.floor(head_dim * self.channel_share / 2)

    def heads(self, heads: int, groups: int = 1) -> tuple[int, ...] | None:
        """Heads that turn, in `groups` equal groups; None for all."""
        size = heads // groups
        turned = math.floor(self.head_share * size)
        if turned == size:
            return None
        return tuple(group * size + head for group in range(groups) for head in range(turned))


@record
class TablePositions:
    """A table of vectors an axis, added to the token embeddings; the axes of a position are summed."""

    kind: Literal["table"] = "table"
    table: Literal["sinusoidal", "fourier", "random"] = "sinusoidal"
    """What the table starts as."""
    learned: bool = False
    """Train the table."""
    sizes: tuple[int, ...] | None = None
    """Rows of each axis' table: largest position + 1; None = one axis of max_seq_len + 1 rows. As in the reference:
    positions that the model counts from the end have one axis, and only the first table is read."""


@record
class InputQueries:
    """Latents start as a linear map of the inputs at their positions."""

    kind: Literal["input"] = "input"


@record
class MLPQueries:
    """As `InputQueries`, then an MLP."""

    kind: Literal["mlp"] = "mlp"
    layers: int = 2
    """Linear layers, each followed by the activation, the last included."""
    activation: ActivationName = "sq_relu"
    """Activation of the MLP."""

    def __post_init__(self) -> None:
        if self.layers < 0:
            raise ValueError(f"layers={self.layers} must be 0 or more")
        check_activation(self.activation)


@record
class LearnedQueries:
    """Latents start as learned vectors, the same for every input."""

    kind: Literal["learned"] = "learned"
    shared: bool = False
    """One vector for all latents, in place of one each (then the number of latents can't grow later)."""


@record
class PerceiverARConfig:
    """Perceiver AR (Hawthorne et al. 2022, https://arxiv.org/abs/2202.07765)."""

    kind: Literal["perceiver_ar"] = "perceiver_ar"
    vocab_size: int = 259
    """Token ids: PAD 0, EOS 1, SOS 2, data from 3."""
    max_seq_len: int = 4096
    """Longest input, in tokens (M in the paper)."""
    num_latents: int = 512
    """Last positions of the input: they become latents and get a loss (N in the paper)."""
    dim: int = 512
    """Channels of the latents."""
    input_dim: int | None = None
    """Channels of the input embedding; None = dim."""
    depth: int = 8
    """Self-attention layers of the latent stack (L in the paper)."""
    heads: int = 8
    """Heads of the latent stack."""
    cross_heads: int = 8
    """Heads of the cross-attend."""
    widening: int = 4
    """Width of the latent stack's feed-forward layers, in multiples of dim."""
    cross_widening: int = 4
    """Width of the cross-attend's feed-forward layer, in multiples of dim."""
    cross_channels: Literal["input", "latent"] = "input"
    """Whose width the cross-attend's queries, keys and values have."""
    query_residual: bool = True
    """Add the latents to what the cross-attend reads."""
    initial_cross_attend: bool = True
    """Start with a cross-attend; without one the model is a plain decoder over its latents."""
    extra_cross_attends: tuple[int, ...] = ()
    """Layers (from 0) of the latent stack after which latents read the context again."""
    positions: RotaryPositions | TablePositions = field(default_factory=RotaryPositions)
    """How positions enter."""
    position_source: Literal["data", "start", "end", "negative_end"] = "data"
    """Positions as the data counts them, from the input's first token (0, 1, ...), back from its last one
    (..., 1, 0), or the same negated."""
    queries: InputQueries | MLPQueries | LearnedQueries = field(default_factory=InputQueries)
    """What latents start as."""
    query_offset: bool = False
    """Give latents the position of the token that they predict, one further (rotary only)."""
    latents_per_position: int = 1
    """Latents at each of the num_latents positions; their outputs are averaged."""
    latent_init_std: float = 0.02
    """Initial size of the vectors that tell the latents of one position apart."""
    activation: ActivationName = "sq_relu"
    """Activation of all feed-forward layers."""
    dropout: float = 0.1
    """Share of channels dropped in training from what each layer adds."""
    prefix_dropout: float = 0.0
    """Share of prefix positions hidden in training; they cost no work."""
    latent_dropout: float = 0.0
    """Share of latents hidden from the others in training."""
    zero_logits: bool = True
    """Start the output layer at zero: every token equally likely."""
    backend: BackendName = "auto"
    """How attention is computed; all give the same numbers."""

    def __post_init__(self) -> None:
        _at_least_one(
            self, "vocab_size", "dim", "widening", "cross_widening", "latents_per_position", "cross_heads", "heads"
        )
        not_negative(self, "latent_init_std")
        if self.depth < 0:
            raise ValueError(f"depth={self.depth} must be 0 or more layers")
        if not 0 < self.num_latents <= self.max_seq_len:
            raise ValueError(
                f"num_latents={self.num_latents} must lie in 1..max_seq_len={self.max_seq_len}: "
                "latents are the last positions of the input"
            )
        for name, width, heads in (
            ("heads", self.dim, self.heads),
            ("cross_heads", self.cross_dim, self.cross_heads),
        ):
            if width % heads:
                raise ValueError(f"{name}={heads} must divide the {width} channels that it splits")
        for name in ("dropout", "prefix_dropout", "latent_dropout"):
            if not 0 <= (share := getattr(self, name)) < 1:
                raise ValueError(f"{name}={share} must lie in [0, 1)")
        if bad := [layer for layer in self.extra_cross_attends if not 0 <= layer < self.depth]:
            raise ValueError(f"extra_cross_attends has layer {bad[0]}, but the stack has layers 0..{self.depth - 1}")
        if len(set(self.extra_cross_attends)) < len(self.extra_cross_attends):
            raise ValueError(f"extra_cross_attends={self.extra_cross_attends} names a layer twice")
        if self.query_offset and not isinstance(self.positions, RotaryPositions):
            raise ValueError("query_offset needs rotary positions: a table's positions are part of the embedding")
        if self.latents_per_position > 1 and isinstance(self.queries, LearnedQueries):
            raise ValueError("learned queries are one vector a position; use latents_per_position=1 with them")
        check_activation(self.activation)
        self._check_positions()

    def _check_positions(self) -> None:
        if isinstance(self.positions, TablePositions):
            if self.position_source == "negative_end":
                raise ValueError("position_source='negative_end' needs rotary positions: a table has no negative rows")
            if self.positions.table == "fourier" and self.embedding_dim % 2:
                raise ValueError(f"a Fourier table needs an even width, got {self.embedding_dim} channels")
            if self.position_source == "start" and len(self.table_sizes) != 1:
                raise ValueError("positions of several axes come from the data: use position_source='data'")
        elif self.cross_heads % self.positions.cross_head_groups:
            raise ValueError(
                f"cross_head_groups={self.positions.cross_head_groups} must divide cross_heads={self.cross_heads}"
            )
        else:
            self._check_turns(self.positions)

    def _check_turns(self, rotary: RotaryPositions) -> None:
        """Refuse rotations that turn nothing of a cross-attend: the prefix would be a bag of tokens.

        As in the reference: its head groups may be so small that none of their heads turns.
        """
        if not self.initial_cross_attend and not self.extra_cross_attends:
            return
        head = self.cross_dim // self.cross_heads
        if rotary.channels(head) == 0:
            raise ValueError(
                "no channel of the cross-attend turns, so the prefix's positions would change nothing: channel_share="
                f"{rotary.channel_share} of the {head} channels of a head are no pair; raise it, or take fewer heads"
            )
        if rotary.heads(self.cross_heads) == ():
            raise ValueError(
                "no head of the cross-attend turns, so the prefix's positions would change nothing: head_share="
                f"{rotary.head_share} of {self.cross_heads} cross_heads is none; raise it, or take more heads"
            )

    @property
    def embedding_dim(self) -> int:
        """Channels of the input embedding."""
        return self.input_dim or self.dim

    @property
    def cross_dim(self) -> int:
        """Channels of the cross-attend's queries, keys and values."""
        return self.embedding_dim if self.cross_channels == "input" else self.dim

    @property
    def max_prefix_len(self) -> int:
        """Longest prefix: positions that are only attended to."""
        return self.max_seq_len - self.num_latents

    @property
    def num_targets(self) -> int:
        """Positions of a full input that predict, the last ones."""
        return self.num_latents

    @property
    def wavelength(self) -> int:
        """Longest rotary wavelength, in tokens over 2 pi."""
        if not isinstance(self.positions, RotaryPositions):
            raise ValueError("only rotary positions have a wavelength")
        return (self.positions.max_wavelength or self.max_seq_len) + self.query_offset

    @property
    def table_sizes(self) -> tuple[int, ...]:
        """Rows of each position table; none where positions are rotary."""
        return (self.positions.sizes or (self.max_seq_len + 1,)) if isinstance(self.positions, TablePositions) else ()

    @property
    def position_axes(self) -> int:
        """Axes of a position: one where the model counts."""
        return len(self.table_sizes) if self.table_sizes and self.position_source == "data" else 1

    @property
    def max_position(self) -> int | None:
        """Largest position that the data may have, on its first axis; None where nothing ends."""
        if not isinstance(self.positions, TablePositions) or self.position_source != "data":
            return None
        return self.table_sizes[0] - 1
