"""PyTorch's FlexAttention: a kernel that is compiled for the mask and skips blocks of pairs that it hides.

The first call compiles it, which takes seconds, and a C++ compiler on a CPU. There it has no backward pass.

Letters: see `perceivers.nn.attention`.
"""

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, and_masks, create_block_mask, flex_attention

from perceivers.nn.masks import AttentionMask


def flex(
    q: Float[Tensor, "b h q d"], k: Float[Tensor, "b h k d"], v: Float[Tensor, "b h k dv"], mask: AttentionMask
) -> Float[Tensor, "b h q dv"]:
    """Attention over the visible pairs; a query that may read nothing gets zeros.

    Raises:
        ValueError: Gradients are asked for on a CPU.
    """
    if q.device.type == "cpu" and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise ValueError(
            "attention back end 'flex' has no backward pass on a CPU: train with 'auto' or 'sdpa', "
            "or read under torch.no_grad()"
        )
    return _compiled()(q, k, v, block_mask=_blocks(mask, len(q), q.shape[2], k.shape[2], q.device))


def _blocks(mask: AttentionMask, batch: int, queries: int, keys: int, device: torch.device) -> BlockMask | None:
    """Which blocks of pairs are visible, in part or as a whole; None where all are."""
    earlier, real, pairs = keys - queries, mask.keys, mask.pairs
    conditions: list[Any] = [lambda b, h, i, j: j <= i + earlier] if mask.causal else []
    if real is not None:
        conditions.append(lambda b, h, i, j: real[b, j])
    if pairs is not None:
        conditions.append(lambda b, h, i, j: pairs[b, i, j])
    if not conditions:
        return None
    rows = None if real is None and pairs is None else batch
    return create_block_mask(and_masks(*conditions), rows, None, queries, keys, device=device)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False)
