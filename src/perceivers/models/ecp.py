"""ECP (Efficient Context Propagating Perceiver, https://arxiv.org/abs/2412.06106) and its relatives, top to bottom.

A decoder of pre-norm layers whose attention follows one of five patterns. In ECP the input is cut in segments, and a
token reads its own segment up to itself and the whole segment before: work and memory grow with the length of the
input times that of a segment, and information moves one segment a layer. The other patterns cut the input in a context
and latents, its last positions, which alone predict. Each attention below has a table: row i marks what position i
reads.

Letters: b batch, h heads, n positions, s segments, m positions of a segment, d channels of a head.
"""

from typing import assert_never

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from perceivers.models.ecp_config import ECPConfig
from perceivers.models.misuse import check_config
from perceivers.nn.attention import attend
from perceivers.nn.blocks import FeedForward
from perceivers.nn.checks import check_ids, check_lengths, check_tensor
from perceivers.nn.dropout import Dropout
from perceivers.nn.initial import truncated_normal, variance_scaling
from perceivers.nn.linear import Linear
from perceivers.nn.masks import AttentionMask, align_right, length_mask
from perceivers.nn.positions import Rotation

Heads = Float[Tensor, "b h n d"]
Real = Bool[Tensor, "b n"] | None


class ECP(nn.Module):
    """Logits of the next token, at every position (pattern ecp) or at the last ones (all others).

    Source: the five models of MetaMain/ECPTransformer. Differs from the reference: any length goes (there only the
    configured one), rows may be padded, and dropout is applied to what a layer adds, not to attention probabilities.
    """

    def __init__(self, config: ECPConfig) -> None:
        super().__init__()
        check_config(self, config, ECPConfig)
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(ECPLayer(config, attention(config, i)) for i in range(config.depth))
        self.norm = nn.LayerNorm(config.dim)
        self.logits = Linear(config.dim, config.vocab_size)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fresh weights, as those of `PerceiverAR`: truncated normals, and an output layer of zeros."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                variance_scaling(module.weight, module.in_features)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        truncated_normal(self.token_embedding.weight, std=1.0)
        nn.init.zeros_(self.logits.weight)

    def forward(
        self,
        tokens: Int[Tensor, "batch seq"],
        *,
        positions: Int[Tensor, "batch seq axes"] | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
        num_latents: int | None = None,
        project: bool = True,
    ) -> Float[Tensor, "batch predicting vocab"] | Float[Tensor, "batch predicting dim"]:
        """Logits of the token after each position that predicts.

        - ecp: every position, where it is in `tokens`; with `num_latents` the last so many of each row;
        - all others: the last `num_latents` of each row. Their context is read in both directions, so it has seen what
          it would have to predict: no logits are given for it.

        Args:
            tokens: Ids, right-padded.
            positions: Not needed, and not read: rows count from their first token, and rotations see distances alone.
            lengths: Real tokens of each row; None where no row is padded.
            num_latents: In place of the configured number. Row r's position j is then column `lengths[r] - num_latents
                + j` of `tokens`; where that is negative its logits mean nothing. Shorter inputs have as many as tokens.
            project: Give logits; otherwise what the output layer `logits` makes them of.

        Raises:
            ValueError: A tensor of another shape or kind; unknown ids or lengths beyond a row (looked at on a CPU
                alone); more tokens than max_seq_len, or more latents than configured, of pattern compressed.
        """
        rows = self.states(tokens, lengths=lengths, num_latents=num_latents)
        if positions is not None:
            check_tensor("positions", positions, "integers", (*tokens.shape, None))
        if self.config.pattern != "ecp" or num_latents is not None:
            if self.config.pattern == "ecp" and lengths is not None:
                rows = align_right(rows, lengths)
            rows = rows[:, -min(num_latents or self.config.num_targets, tokens.shape[1]) :]
        return self.predict(rows) if project else self.norm(rows)

    def states(
        self,
        tokens: Int[Tensor, "batch seq"],
        *,
        lengths: Int[Tensor, " batch"] | None = None,
        num_latents: int | None = None,
    ) -> Float[Tensor, "batch n dim"]:
        """What the last layer gives, context included; rows are right-aligned in all patterns but ecp."""
        config = self.config
        check_ids(tokens, config.vocab_size)
        if lengths is not None:
            check_lengths(lengths, *tokens.shape)
        latents = self._num_latents(tokens.shape[1], num_latents)
        if config.pattern == "compressed" and tokens.shape[1] < config.max_seq_len:
            # Its weights belong to places of a full context.
            lengths = tokens.new_full((len(tokens),), tokens.shape[1]) if lengths is None else lengths
            tokens = F.pad(tokens, (0, config.max_seq_len - tokens.shape[1]))
        steps, real = torch.arange(tokens.shape[1], device=tokens.device)[None], None
        if lengths is not None and config.pattern != "ecp":  # nothing in ecp reads what comes later, so no padding
            real = length_mask(lengths, tokens.shape[1])
            tokens = align_right(tokens, lengths)
            steps = (steps - (~real).sum(1, keepdim=True)).clamp(min=0)

        x = self.token_embedding(tokens)
        rotate = self.rotation(steps)
        for i, layer in enumerate(self.layers):
            turn = rotate if i == 0 or config.rotary == "all" else None
            x, real = layer(x, latents=latents, real=real, rotate=turn)
            if x.shape[1] < steps.shape[1]:  # after the first layer of compressed and perceiver_ar
                steps = steps[:, -x.shape[1] :]
                rotate = self.rotation(steps)
        return x

    def predict(self, x: Float[Tensor, "batch n dim"]) -> Float[Tensor, "batch n vocab"]:
        """Logits from rows of the last layer."""
        return self.logits(self.norm(x))

    def rotation(self, steps: Int[Tensor, "#batch n"]) -> Rotation:
        """How queries and keys at these positions turn: all channels of all heads, pair i by 10,000^(-2i/d) a step.

        The usual frequencies; those of Perceiver AR (`nn.positions.rotary_frequencies`) are spaced otherwise.
        """
        channels = torch.arange(0, self.config.head_dim, 2, device=steps.device, dtype=torch.float64)
        frequencies = 10_000 ** (-channels / self.config.head_dim)
        return Rotation.by(steps, frequencies, dtype=self.token_embedding.weight.dtype)

    def _num_latents(self, seq_len: int, num_latents: int | None) -> int:
        config = self.config
        if num_latents is not None and num_latents < 1:
            raise ValueError(f"num_latents={num_latents} must be at least 1")
        if config.pattern != "compressed":
            return min(num_latents or config.num_targets, seq_len)
        if seq_len > config.max_seq_len:
            raise ValueError(
                f"{seq_len} tokens are more than max_seq_len={config.max_seq_len}: the weights of pattern 'compressed' "
                "belong to places of its context; cut the input"
            )
        if (num_latents or 0) > config.num_targets:
            raise ValueError(f"num_latents={num_latents} must lie in 1..{config.num_targets} for pattern 'compressed'")
        return config.num_targets


class ECPLayer(nn.Module):
    """Attention and a feed-forward layer, with norms before them and residuals around them."""

    def __init__(self, config: ECPConfig, attention: "PatternAttention") -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(config.dim)
        self.attention = attention
        self.norm = nn.LayerNorm(config.dim)
        self.feed_forward = FeedForward(config.dim, widening=config.widening, activation=config.activation)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, x: Float[Tensor, "b n dim"], *, latents: int, real: Real, rotate: Rotation | None
    ) -> tuple[Float[Tensor, "b kept dim"], Bool[Tensor, "b kept"] | None]:
        """Rows after the layer, and which are real."""
        read = self.attention(self.norm_attention(x), latents=latents, real=real, rotate=rotate)
        kept, real = self.attention.carry(x, latents, real)
        return self.add(kept, read), real

    def add(self, x: Float[Tensor, "b n dim"], read: Float[Tensor, "b n dim"]) -> Float[Tensor, "b n dim"]:
        """What was read, and the feed-forward layer."""
        x = x + self.dropout(read)
        return x + self.dropout(self.feed_forward(self.norm(x)))


def attention(config: ECPConfig, layer: int) -> "PatternAttention":
    """The attention of a layer, counted from 0."""
    match config.pattern:
        case "ecp":
            return SegmentAttention(config)
        case "double":
            return DoubleAttention(config)
        case "compressed":
            return DoubleAttention(config) if layer else CompressingAttention(config)
        case "ssplit":
            return SplitAttention(config)
        case "perceiver_ar":
            return LatentAttention(config)
        case _:
            assert_never(config.pattern)


class PatternAttention(nn.Module):
    """What the patterns share: projections, without biases but for the output's."""

    def __init__(self, config: ECPConfig) -> None:
        super().__init__()
        self.config = config
        self.to_q = Linear(config.dim, config.dim, bias=False)
        self.to_kv = Linear(config.dim, config.dim if config.tied_kv else 2 * config.dim, bias=False)
        self.key_norm = nn.LayerNorm(config.head_dim) if config.key_norm else None
        self.to_out = Linear(config.dim, config.dim)

    def forward(
        self, x: Float[Tensor, "b n dim"], *, latents: int, real: Real, rotate: Rotation | None
    ) -> Float[Tensor, "b kept dim"]:
        """What is read, a row for each that `carry` keeps."""
        out = self.read(*self.project(x, rotate), latents, real)
        return self.output(rearrange(out, "b h n d -> b n (h d)"), real)

    def project(self, x: Float[Tensor, "b n dim"], rotate: Rotation | None) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values."""
        q, kv = (t.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2) for t in (self.to_q(x), self.to_kv(x)))
        k, v = (kv, kv) if self.config.tied_kv else kv.chunk(2, dim=1)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        if self.key_norm is not None:
            k = self.key_norm(k)
        return q, k, k if self.config.tied_kv else v

    def read(self, q: Heads, k: Heads, v: Heads, latents: int, real: Real) -> Float[Tensor, "b h kept d"]:
        """Attention in this pattern."""
        raise NotImplementedError

    def output(self, x: Float[Tensor, "b read dim"], real: Real) -> Float[Tensor, "b kept dim"]:
        """Project what the heads read."""
        del real
        return self.to_out(x)

    def carry(
        self, x: Float[Tensor, "b n dim"], latents: int, real: Real
    ) -> tuple[Float[Tensor, "b kept dim"], Bool[Tensor, "b kept"] | None]:
        """The rows that what is read is added to, and which of those that go on are real."""
        del latents
        return x, real

    def attend(
        self,
        q: Float[Tensor, "b h q d"],
        k: Float[Tensor, "b h k d"],
        v: Float[Tensor, "b h k d"],
        *,
        causal: bool = False,
        real: Bool[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "b h q d"]:
        """Attention to real keys; causal is bottom-right aligned."""
        return attend(q, k, v, mask=AttentionMask(causal=causal, keys=real), backend=self.config.backend)


class SegmentAttention(PatternAttention):
    """ECP: the segment before, and one's own up to oneself. Fully causal.

    With segments of 2:

    1 . . . . .
    1 1 . . . .
    1 1 1 . . .
    1 1 1 1 . .
    . . 1 1 1 .
    . . 1 1 1 1
    """

    def __init__(self, config: ECPConfig) -> None:
        super().__init__(config)
        self.to_first_out = Linear(config.dim, config.dim) if config.first_output else None

    def read(self, q: Heads, k: Heads, v: Heads, latents: int, real: Real) -> Heads:
        """The first segment, then all others at once. Right-padded rows need no mask: padding is in the future."""
        size = self.config.segment_len
        first = self.attend(*(t[:, :, :size] for t in (q, k, v)), causal=True)
        if q.shape[2] <= size:
            return first
        return torch.cat([first, self._read_later(q[:, :, size:], k, v)], 2)

    def _read_later(self, q: Float[Tensor, "b h later d"], k: Heads, v: Heads) -> Float[Tensor, "b h later d"]:
        """Queries from the second segment on; a last one that is not full is filled up, and cut again."""
        size, (batch, _, later, _) = self.config.segment_len, q.shape
        q, k, v = (F.pad(t, (0, 0, 0, -later % size)) for t in (q, k, v))
        q = rearrange(q, "b h (s m) d -> (b s) h m d", m=size)
        # Windows of two segments, one segment apart: as many as query segments.
        k, v = (rearrange(t.unfold(2, 2 * size, size), "b h s d two_m -> (b s) h two_m d") for t in (k, v))
        out = self.attend(q, k, v, causal=True)
        return rearrange(out, "(b s) h m d -> b h (s m) d", b=batch)[:, :, :later]

    def output(self, x: Float[Tensor, "b n dim"], real: Real) -> Float[Tensor, "b n dim"]:
        """As in the reference: the first segment may have a projection of its own (`to_out_0`)."""
        if self.to_first_out is None:
            return self.to_out(x)
        size = self.config.segment_len
        return torch.cat([self.to_first_out(x[:, :size]), self.to_out(x[:, size:])], 1)


class DoubleAttention(PatternAttention):
    """Context reads the whole context, latents the context and the latents up to themselves.

    With 2 latents of 5:

    1 1 1 . .
    1 1 1 . .
    1 1 1 . .
    1 1 1 1 .
    1 1 1 1 1
    """

    def read(self, q: Heads, k: Heads, v: Heads, latents: int, real: Real) -> Heads:
        """Context and latents, which share all projections."""
        context = q.shape[2] - latents
        out = self.attend(q[:, :, context:], k, v, causal=True, real=real)
        if context == 0:
            return out
        before = (t[:, :, :context] for t in (q, k, v))
        return torch.cat([self.read_context(*before, real=None if real is None else real[:, :context]), out], 2)

    def read_context(self, q: Heads, k: Heads, v: Heads, *, real: Real) -> Heads:
        """The context's part."""
        return self.attend(q, k, v, real=real)


class SplitAttention(DoubleAttention):
    """s-split: as double, but the context is cut in segments, which read themselves alone.

    With 2 latents of 6 and segments of 2:

    1 1 . . . .
    1 1 . . . .
    . . 1 1 . .
    . . 1 1 . .
    1 1 1 1 1 .
    1 1 1 1 1 1
    """

    def read_context(self, q: Heads, k: Heads, v: Heads, *, real: Real) -> Heads:
        """Segments count back from the latents, so that a row's padding moves none; the first may be shorter."""
        batch, _, context, _ = q.shape
        size = min(self.config.segment_len, context)
        missing = -context % size
        if missing and real is None:
            real = torch.ones(batch, context, dtype=torch.bool, device=q.device)
        if real is not None:
            real = rearrange(F.pad(real, (missing, 0)), "b (s m) -> (b s) m", m=size)
        q, k, v = (F.pad(t, (0, 0, missing, 0)) for t in (q, k, v))
        q, k, v = (rearrange(t, "b h (s m) d -> (b s) h m d", m=size) for t in (q, k, v))
        out = rearrange(self.attend(q, k, v, real=real), "(b s) h m d -> b h (s m) d", b=batch)
        return out[:, :, missing:]


class CompressingAttention(DoubleAttention):
    """First layer of compressed double attention: what the context read becomes fewer vectors, along the sequence.

    Later layers are double attention with these as their context. In all layers together with 2 latents of 6 and 3
    vectors, of which each may know the whole context:

    1 1 1 1 . .
    1 1 1 1 . .
    1 1 1 1 . .
    1 1 1 1 1 .
    1 1 1 1 1 1
    """

    def __init__(self, config: ECPConfig) -> None:
        super().__init__(config)
        self.compress = Linear(config.context_len, config.compressed_len)

    def output(self, x: Float[Tensor, "b n dim"], real: Real) -> Float[Tensor, "b kept dim"]:
        """Compress the context, then project all."""
        if real is not None:
            x = x * real[..., None].to(x.dtype)
        context, latents = x.split([self.config.context_len, self.config.num_targets], dim=1)
        compressed = self.compress(context.transpose(1, 2)).transpose(1, 2)
        return self.to_out(torch.cat([compressed, latents], 1))

    def carry(
        self, x: Float[Tensor, "b n dim"], latents: int, real: Real
    ) -> tuple[Float[Tensor, "b kept dim"], Bool[Tensor, "b kept"] | None]:
        """As in the reference: the residual of these rows are the first rows of the input, not the latents' own."""
        compressed = self.config.compressed_len
        kept = x[:, : compressed + latents]
        if real is None:
            return kept, None
        kept = kept * real[:, : compressed + latents, None].to(x.dtype)  # padding adds nothing
        return kept, F.pad(real[:, -latents:], (compressed, 0), value=True)


class LatentAttention(PatternAttention):
    """The authors' Perceiver AR: latents alone read and go on, and only in the first layer there is a context.

    With 2 latents of 5:

    1 1 1 1 .
    1 1 1 1 1
    """

    def read(self, q: Heads, k: Heads, v: Heads, latents: int, real: Real) -> Float[Tensor, "b h latents d"]:
        """Latents, all that there is after the first layer."""
        return self.attend(q[:, :, -latents:], k, v, causal=True, real=real)

    def carry(
        self, x: Float[Tensor, "b n dim"], latents: int, real: Real
    ) -> tuple[Float[Tensor, "b kept dim"], Bool[Tensor, "b kept"] | None]:
        """The latents."""
        return x[:, -latents:], None if real is None else real[:, -latents:]
