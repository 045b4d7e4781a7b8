"""What an ECP model is. Imports no torch."""

from typing import Literal, get_args

from perceivers.nn.options import ActivationName, BackendName, check_activation
from perceivers.records import record

Pattern = Literal["ecp", "double", "compressed", "ssplit", "perceiver_ar"]


@record
class ECPConfig:
    """ECP, efficient context propagating Perceiver, and the patterns it is compared with (arXiv:2412.06106).

    The defaults are ECP without the quirks of its authors' code: keys and values of their own, and rotary positions in
    every layer. `perceivers.convert.official_ecp` says which fields make each of the authors' models.
    """

    kind: Literal["ecp"] = "ecp"
    pattern: Pattern = "ecp"
    """Who reads whom: see the tables in `perceivers.models.ecp`. All but ecp cut the input in a context and latents."""
    vocab_size: int = 259
    """Token ids: PAD 0, EOS 1, SOS 2, data from 3."""
    max_seq_len: int = 2048
    """Longest input in training, in tokens. Only compressed is limited to it afterwards."""
    segment_len: int = 256
    """Tokens of a segment: of the whole input (ecp), or of the context (ssplit)."""
    num_latents: int | None = None
    """Last positions of the input, which predict, in all patterns but ecp, where every position does."""
    compressed_len: int = 512
    """Vectors that the context becomes in the first layer (compressed)."""
    dim: int = 512
    """Channels."""
    depth: int = 8
    """Layers. In ecp information moves one segment a layer."""
    heads: int = 8
    """Heads, of an even number of channels each."""
    widening: int = 4
    """Width of the feed-forward layers, in multiples of dim."""
    dropout: float = 0.1
    """Share of channels dropped in training from what each layer adds."""
    tied_kv: bool = False
    """Keys and values are the same vectors, from one projection: what turns or normalises keys does so to values."""
    rotary: Literal["all", "first"] = "all"
    """Layers whose queries and keys turn with their position."""
    key_norm: bool = False
    """Normalise keys, head by head, after they turned."""
    first_output: bool = False
    """The first segment has an output projection of its own (ecp)."""
    activation: ActivationName = "gelu"
    """Activation of all feed-forward layers."""
    backend: BackendName = "auto"
    """How attention is computed; all give the same numbers."""

    def __post_init__(self) -> None:
        if self.pattern not in get_args(Pattern):
            raise ValueError(f"pattern={self.pattern!r} must be one of {', '.join(get_args(Pattern))}")
        for name in ("vocab_size", "max_seq_len", "segment_len", "compressed_len", "dim", "depth", "heads", "widening"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.dim % (2 * self.heads):
            raise ValueError(
                f"heads={self.heads} must divide dim={self.dim} into heads of an even number of channels, as they turn "
                f"in pairs: {self.dim} / {self.heads} = {self.dim / self.heads:g}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must lie in [0, 1)")
        check_activation(self.activation)
        if self.first_output and self.pattern != "ecp":
            raise ValueError(f"first_output=True belongs to pattern 'ecp'; {self.pattern!r} has one output projection")
        self._check_lengths()

    def _check_lengths(self) -> None:
        if self.pattern == "ecp":
            if self.num_latents is not None:
                raise ValueError(
                    f"num_latents={self.num_latents} with pattern 'ecp': it has no latents, every position predicts; "
                    "leave num_latents out"
                )
            if self.segment_len > self.max_seq_len:
                raise ValueError(
                    f"segment_len={self.segment_len} is {self.segment_len - self.max_seq_len} tokens longer than "
                    f"max_seq_len={self.max_seq_len}, so no input has a second segment: lower it to at most "
                    f"{self.max_seq_len}, or raise max_seq_len"
                )
            return
        if self.num_latents is None or not 0 < self.num_latents <= self.max_seq_len:
            raise ValueError(
                f"num_latents={self.num_latents} must lie in 1..max_seq_len={self.max_seq_len} for pattern "
                f"{self.pattern!r}: latents are the last positions of the input, the others are context"
            )
        if self.pattern == "compressed" and self.compressed_len > self.context_len:
            raise ValueError(
                f"compressed_len={self.compressed_len} must lie in 1..{self.context_len}, the context of "
                f"max_seq_len={self.max_seq_len} less num_latents={self.num_latents} tokens"
            )

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.dim // self.heads

    @property
    def num_targets(self) -> int:
        """Positions of a full input that predict, the last ones: only they may enter a loss."""
        return self.max_seq_len if self.num_latents is None else self.num_latents

    @property
    def context_len(self) -> int:
        """Tokens of a full input that come before the latents."""
        return self.max_seq_len - self.num_targets

    @property
    def reach(self) -> int:
        """Tokens before a predicting position that may have reached it, at least, as far as the input has them."""
        return self.depth * self.segment_len if self.pattern == "ecp" else self.max_seq_len

    @property
    def position_axes(self) -> int:
        """Axes of a position."""
        return 1

    @property
    def max_position(self) -> int | None:
        """No largest position: rotations see distances alone."""
        return None
