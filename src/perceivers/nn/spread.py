"""Attention to a context that is spread over processes: each holds the keys and values of a share of its columns.

Every process has all queries, and reads its share. The log-sum-exp of what it read says how much its result counts, so
that a sum over processes gives the softmax over all columns (context parallelism). Per query and head only the result
and one number travel, however long the context is.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from perceivers.nn.derivatives import first_order_only
from perceivers.nn.masks import MASKED, AttentionMask
from perceivers.nn.partial import Part, merge, partial_attention

CHUNK = 4096
"""Keys whose scores exist at once."""


def columns_of(rank: int, size: int, *, seq_len: int, num_latents: int) -> slice:
    """Which columns of a context one of `size` processes holds.

    All have equally many, within one, but the last holds at least all positions of the latents: only there does what a
    latent may read depend on its place.
    """
    last = min(seq_len, max(num_latents, seq_len // size))
    if rank == size - 1:
        return slice(seq_len - last, seq_len)
    return slice(*((seq_len - last) * i // (size - 1) for i in (rank, rank + 1)))


@dataclass(frozen=True)
class Spread:
    """Which part of a context this process holds."""

    group: dist.ProcessGroup
    """The processes that share it."""

    def columns(self, seq_len: int, num_latents: int) -> slice:
        """The columns of this process, see `columns_of`."""
        return columns_of(self.group.rank(), self.group.size(), seq_len=seq_len, num_latents=num_latents)

    def attend(
        self,
        q: Float[Tensor, "b h q d"],
        k: Float[Tensor, "b h k d"],
        v: Float[Tensor, "b h k dv"],
        *,
        mask: AttentionMask,
    ) -> Float[Tensor, "b h q dv"]:
        """What `nn.attention.attend` gives for the whole context; `k`, `v` and `mask` are those of this process.

        Gradients of keys and values are multiplied by the number of processes. Averaged over the processes, gradients
        of all weights are then those of one process that holds the whole context.
        """
        out: Tensor = _Spread.apply(q, k, v, mask, self.group)  # pyright: ignore[reportAssignmentType]
        return out


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, mask, group):
        out, lse = _in_chunks(q, k, v, mask)
        largest = lse.clone()
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
        weight = (lse - largest).exp()
        sums = torch.cat([out * weight[..., None], weight[..., None]], -1)
        dist.all_reduce(sums, group=group)
        out, total = sums[..., :-1] / sums[..., -1:], sums[..., -1]
        ctx.save_for_backward(q, k, v, out, largest + total.log())
        ctx.mask, ctx.group = mask, group
        return out.to(q.dtype)

    @staticmethod
    @first_order_only
    def backward(ctx, grad):
        q, k, v, out, lse = ctx.saved_tensors
        wide, scale, size = lse.dtype, q.shape[-1] ** -0.5, ctx.group.size()
        behind = (grad.to(wide) * out).sum(-1, keepdim=True)
        dq, dk, dv = torch.zeros_like(q, dtype=wide), torch.empty_like(k), torch.empty_like(v)
        for start in range(0, k.shape[2], CHUNK):
            stop = min(start + CHUNK, k.shape[2])
            keys, values = k[:, :, start:stop], v[:, :, start:stop]
            mask = ctx.mask.part(start, stop, queries=q.shape[2], keys=k.shape[2], device=q.device)
            scores = (q @ keys.transpose(-2, -1)).to(wide) * scale
            if (visible := mask.dense(q.shape[2], stop - start, q.device)) is not None:
                scores = scores.masked_fill(~visible[:, None], MASKED)
            shares = (scores - lse[..., None]).exp()
            dscores = (shares * ((grad @ values.transpose(-2, -1)).to(wide) - behind)).to(q.dtype)
            dv[:, :, start:stop] = shares.to(v.dtype).transpose(-2, -1) @ grad * size
            dk[:, :, start:stop] = dscores.transpose(-2, -1) @ q * (scale * size)
            dq += dscores @ keys * scale
        dist.all_reduce(dq, group=ctx.group)
        return dq.to(q.dtype), dk, dv, None, None


def _in_chunks(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Part:
    """Attention to this process's keys and its log-sum-exp, in float32 or wider; without keys it counts nothing."""
    wide = torch.promote_types(q.dtype, torch.float32)
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=wide, device=q.device)
    lse = torch.full(q.shape[:-1], 2 * MASKED, dtype=wide, device=q.device)
    for start in range(0, k.shape[2], CHUNK):
        stop = min(start + CHUNK, k.shape[2])
        part = mask.part(start, stop, queries=q.shape[2], keys=k.shape[2], device=q.device)
        chunk, chunk_lse = partial_attention(q, k[:, :, start:stop], v[:, :, start:stop], part)
        out, lse = merge((out, lse), (chunk.to(wide), chunk_lse.to(wide)))
    return out, lse
