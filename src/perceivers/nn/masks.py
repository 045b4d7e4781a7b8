"""Who may attend to whom. `True` means "may attend", everywhere.

Rows are right-aligned before they reach these functions: the last column is the newest token, padding is at the left.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

# Score of a masked pair, where a float type holds it.
MASKED = -1e30


@dataclass(frozen=True)
class AttentionMask:
    """Conditions on a query reading a key; a pair is visible where all that are given hold.

    Attributes:
        causal: Bottom-right aligned: query i of Q reads key j of K if `j - (K - Q) <= i`. With 2 queries over 4 keys:

                1 1 1 0
                1 1 1 1

        keys: Real keys; padding is False.
        pairs: Anything else, spelled out.
    """

    causal: bool = False
    keys: Bool[Tensor, "batch keys"] | None = None
    pairs: Bool[Tensor, "#batch queries keys"] | None = None

    @property
    def every_query(self) -> Bool[Tensor, "batch 1 keys"] | None:
        """Real keys, in a row for all queries."""
        return None if self.keys is None else self.keys[:, None]

    def dense(self, queries: int, keys: int, device: torch.device) -> Bool[Tensor, "#batch queries keys"] | None:
        """All conditions as one boolean matrix, or None where every pair is visible."""
        mask = None
        if self.causal:
            mask = causal_mask(queries, keys, device=device)[None]
        if (real := self.every_query) is not None:
            mask = real if mask is None else mask & real
        if self.pairs is not None:
            mask = self.pairs if mask is None else mask & self.pairs
        return None if mask is None else mask.expand(-1, queries, -1)

    def part(self, start: int, stop: int, *, queries: int, keys: int, device: torch.device) -> "AttentionMask":
        """The same conditions on the keys from `start` to `stop` alone.

        Those that all queries come after are not causal; those that end with the last key still are.

        Args:
            start: First key.
            stop: After the last key.
            queries: As many as there are.
            keys: As many as there are, all parts together.
            device: Where to make what has to be spelled out.
        """
        real = None if self.keys is None else self.keys[:, start:stop]
        pairs = None if self.pairs is None else self.pairs[..., start:stop]
        if not self.causal or stop <= keys - queries + 1:
            return AttentionMask(keys=real, pairs=pairs)
        if stop == keys and stop - start >= queries:
            return AttentionMask(causal=True, keys=real, pairs=pairs)
        rest = causal_mask(queries, keys, device=device)[None, :, start:stop]
        return AttentionMask(keys=real, pairs=rest if pairs is None else pairs & rest)


def masked_score(like: Tensor) -> float:
    """Score of a masked pair among scores like these, or in what autocast makes of them.

    Finite, so that a query that may read nothing gets some average and no NaN. Of float16 it is half the least number,
    so that with a score added it is still finite, and its exponential is 0 beside any other's.
    """
    kind, least = like.device.type, torch.finfo(like.dtype).min
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        least = max(least, torch.finfo(torch.get_autocast_dtype(kind)).min)
    return max(MASKED, least / 2)


def additive(visible: Bool[Tensor, "#b #q k"] | None, like: Tensor) -> Float[Tensor, "#b 1 #q k"] | None:
    """What is added to the scores: 0 where visible, `masked_score` elsewhere; None where all are visible."""
    if visible is None:
        return None
    return torch.zeros_like(visible, dtype=like.dtype).masked_fill_(~visible, masked_score(like))[:, None]


def causal_mask(queries: int, keys: int, *, block: int = 1, device: torch.device) -> Bool[Tensor, "queries keys"]:
    """Bottom-right aligned causal mask between positions that hold `block` rows each.

    Args:
        queries: Rows, a multiple of `block`.
        keys: Columns, a multiple of `block`; at least `queries`.
        block: Latents of one position: they see each other.
        device: Where to make it.
    """
    row = torch.arange(keys - queries, keys, device=device) // block
    column = torch.arange(keys, device=device) // block
    return column <= row[:, None]


def length_mask(lengths: Int[Tensor, " batch"], seq_len: int) -> Bool[Tensor, "batch seq"]:
    """Real tokens of right-aligned rows: the last `lengths` of `seq_len` columns."""
    return torch.arange(seq_len, 0, -1, device=lengths.device) <= lengths[:, None]


def align_right(
    rows: Shaped[Tensor, "batch seq *rest"], lengths: Int[Tensor, " batch"]
) -> Shaped[Tensor, "batch seq *rest"]:
    """Move the padding of right-padded rows to their left, and make it zero.

    Perceiver AR's latents are the last valid positions of a row; after this they are the last columns of every row.
    """
    seq_len = rows.shape[1]
    source = torch.arange(seq_len, device=rows.device) - (seq_len - lengths[:, None])
    moved = rows[torch.arange(len(rows), device=rows.device)[:, None], source.clamp(min=0)]
    real = source >= 0
    return moved * real.view(*real.shape, *[1] * (rows.ndim - 2)).to(rows.dtype)


def latent_mask(
    num_latents: int,
    real: Bool[Tensor, "batch latents"] | None,
    *,
    block: int = 1,
    device: torch.device,
) -> AttentionMask:
    """What latents may read of each other.

    A latent reads itself and all real latents at its own and earlier positions.

    Args:
        num_latents: Rows of the latent array, all positions together.
        real: Latents that may be read; None where all may. Latents before a row's start, and dropped ones, may not.
        block: Latents of one position.
        device: Where to make it.
    """
    if real is None and block == 1:
        return AttentionMask(causal=True)
    pairs = causal_mask(num_latents, num_latents, block=block, device=device)[None]
    if real is not None:
        itself = torch.eye(num_latents, dtype=torch.bool, device=device)
        pairs = (pairs & real[:, None]) | itself
    return AttentionMask(pairs=pairs)
