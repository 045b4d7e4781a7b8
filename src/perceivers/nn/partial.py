"""Attention to some of the keys, and one softmax of several such parts: no matrix of queries x keys exists at any time.

PyTorch's fused CPU kernel gives the log-sum-exp of its scores, by which parts merge. Its backward needs only the output
and the log-sum-exp of the softmax that its keys belong to: given the merged ones, each part returns exact gradients.

Letters: b batch, h heads, q queries, k keys, d channels of a head.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from perceivers.nn.derivatives import first_order_only
from perceivers.nn.masks import MASKED, AttentionMask, additive, causal_mask
from perceivers.nn.rows import TakenRows

# PyTorch's fused kernel, called by name because it returns the log-sum-exp.
FLASH_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH_CPU_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

# Keys, of all rows together, whose gradients are computed at once, and that are taken by id at once.
KEYS_AT_ONCE = 2**11

# Fewest columns of keys at once: parts merge in passes over all that was read.
LEAST_COLUMNS = 2**9

Part = tuple[Float[Tensor, "b h q dv"], Float[Tensor, "b h q"]]
"""Attention over some of the keys, and the log-sum-exp of its scores."""

Biases = tuple[Float[Tensor, "b 1 1 prefix"] | None, Float[Tensor, "b 1 q q"] | None]
"""What is added to the scores of the prefix and of the causal rest; None where no key is padding."""


def merge(one: Part, other: Part) -> Part:
    """Attention over the keys of both."""
    lse = torch.logaddexp(one[1], other[1])
    # Weights stay in float32: the backward pass takes differences with the result, and in bfloat16 each rounding shows.
    out = one[0] * (one[1] - lse).exp()[..., None]
    return out.addcmul_(other[0], (other[1] - lse).exp()[..., None]).to(one[0].dtype), lse


def partial_attention(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Part:
    """Attention with its log-sum-exp; without gradients."""
    queries, keys = q.shape[2], k.shape[2]
    if q.device.type == "cpu" and mask.pairs is None:
        if mask.causal and queries > 1:
            return _forward(q, keys, partial(_columns, k, v), _biases(q, keys, mask.keys), at_once=keys)
        return FLASH_CPU(q, k, v, attn_mask=additive(mask.every_query, q))
    scores = (q @ k.transpose(-2, -1)).to(torch.promote_types(q.dtype, torch.float32)) * q.shape[-1] ** -0.5
    if (visible := mask.dense(queries, keys, q.device)) is not None:
        scores = scores.masked_fill(~visible[:, None], MASKED)
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp().to(v.dtype) @ v, lse


def lower_right(
    q: Float[Tensor, "b h q d"],
    k: Float[Tensor, "b h k d"],
    v: Float[Tensor, "b h k dv"],
    real: Bool[Tensor, "b k"] | None,
) -> Float[Tensor, "b h q dv"]:
    """Causal attention of queries that stand at the end of the keys, on a CPU.

    One call of the kernel for the prefix, which all queries see, and one for the causal rest. Gradients of the prefix
    are computed part by part.
    """
    out: Tensor = _MergedAttention.apply(q, k, v, *_biases(q, k.shape[2], real))  # pyright: ignore
    return out


def lower_right_rows(
    q: Float[Tensor, "b h q d"], rows: TakenRows, real: Bool[Tensor, "b k"] | None
) -> Float[Tensor, "b h q dv"]:
    """The same, of keys and values that are taken by id part by part, and again for their gradients.

    Neither they nor their gradients exist as a whole.
    """
    out: Tensor = _RowsAttention.apply(q, rows.table, rows, _biases(q, rows.ids.shape[1], real))  # pyright: ignore
    return out


def _biases(q: Float[Tensor, "b h q d"], keys: int, real: Bool[Tensor, "b k"] | None) -> Biases:
    if real is None:
        return None, None
    queries = q.shape[2]
    prefix = keys - queries
    itself = torch.eye(queries, dtype=torch.bool, device=q.device)
    rest = causal_mask(queries, queries, device=q.device) & real[:, None, prefix:]
    return additive(real[:, None, :prefix], q), additive(rest | itself, q)


Take = Callable[[slice], tuple[Tensor, Tensor]]
"""Keys and values of some columns."""

Give = Callable[[slice, Tensor, Tensor], None]
"""Does what is to be done with the gradients of some columns' keys and values."""


def _columns(k: Tensor, v: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    return k[:, :, columns], v[:, :, columns]


def _forward(q: Tensor, keys: int, take: Take, biases: Biases, *, at_once: int) -> Part:
    prefix_bias, rest_bias = biases
    split = keys - q.shape[2]
    part = FLASH_CPU(q, *take(slice(split, keys)), 0.0, rest_bias is None, attn_mask=rest_bias)
    for columns in _parts(split, at_once):
        wide = part[0].to(part[1].dtype), part[1]
        part = merge(wide, FLASH_CPU(q, *take(columns), attn_mask=_of(prefix_bias, columns)))
    return part[0].to(q.dtype), part[1]


def _backward(grad: Tensor, q: Tensor, part: Part, keys: int, take: Take, give: Give, biases: Biases) -> Tensor:
    """The gradient of the queries."""
    prefix_bias, rest_bias = biases
    split = keys - q.shape[2]
    total = torch.zeros_like(q, dtype=part[1].dtype)
    for columns in _parts(split, _at_once(q)):
        bias = _of(prefix_bias, columns)
        dq, dk, dv = FLASH_CPU_BACKWARD(grad, q, *take(columns), *part, 0.0, False, attn_mask=bias)
        give(columns, dk, dv)
        total += dq
    rest = slice(split, keys)
    dq, dk, dv = FLASH_CPU_BACKWARD(grad, q, *take(rest), *part, 0.0, rest_bias is None, attn_mask=rest_bias)
    give(rest, dk, dv)
    return (total + dq).to(q.dtype)


def _at_once(q: Tensor) -> int:
    return max(LEAST_COLUMNS, KEYS_AT_ONCE // len(q))


def _parts(stop: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, stop)) for start in range(0, stop, size))


def _of(bias: Tensor | None, columns: slice) -> Tensor | None:
    return None if bias is None else bias[..., columns]


class _MergedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, prefix_bias, rest_bias):
        part = _forward(q, k.shape[2], partial(_columns, k, v), (prefix_bias, rest_bias), at_once=k.shape[2])
        ctx.save_for_backward(q, k, v, *part, prefix_bias, rest_bias)
        return part[0]

    @staticmethod
    @first_order_only
    def backward(ctx, grad):
        q, k, v, out, lse, *biases = ctx.saved_tensors
        dk, dv = torch.empty_like(k), torch.empty_like(v)

        def give(columns: slice, keys: Tensor, values: Tensor) -> None:
            dk[:, :, columns], dv[:, :, columns] = keys, values

        dq = _backward(grad, q, (out, lse), k.shape[2], partial(_columns, k, v), give, tuple(biases))
        return dq, dk, dv, None, None


class _RowsAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, table, rows, biases):
        part = _forward(q, rows.ids.shape[1], rows.columns, biases, at_once=_at_once(q))
        ctx.save_for_backward(q, *part)
        ctx.rows, ctx.biases = rows, biases
        return part[0]

    @staticmethod
    @first_order_only
    def backward(ctx, grad):
        q, out, lse = ctx.saved_tensors
        rows, biases = ctx.rows, ctx.biases
        summed = torch.zeros_like(rows.table, dtype=lse.dtype)
        dq = _backward(grad, q, (out, lse), rows.ids.shape[1], rows.columns, partial(rows.add, summed), biases)
        return dq, summed.to(rows.table.dtype), None, None
