"""The one place that computes attention.

Letters: b batch, h heads, q queries, k keys, d channels of a head.

Back ends, equal within rounding:

- `reference`: softmax of a score matrix, to be read and to judge the others;
- `sdpa`: PyTorch's fused kernels, and no mask of queries x keys where none is needed;
- `flex`: a kernel compiled for the mask (`perceivers.nn.flex`); on a CPU for inference only.

`auto` is `sdpa`, which chooses by device, type and shape:

- on a CPU, queries at the end of the keys (a cross-attend): a fused call for the prefix, which all read, and one for
  the causal rest, merged by their log-sum-exp, so that no mask exists (`perceivers.nn.partial`); keys and values that
  follow from ids are taken some columns at a time;
- on a CPU, training in bfloat16 with at most `KEPT_SCORES` scores: two products that keep the probabilities;
- elsewhere, rows of one length: the fused kernel for `causal_lower_right`; of different lengths: a mask.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from perceivers.nn.derivatives import first_order_only
from perceivers.nn.flex import flex
from perceivers.nn.linear import Linear
from perceivers.nn.masks import AttentionMask, additive, masked_score
from perceivers.nn.normed import normed_linear
from perceivers.nn.partial import FLASH_CPU, lower_right, lower_right_rows, merge, partial_attention
from perceivers.nn.positions import Rotation
from perceivers.nn.rows import TakenRows, split_heads

if TYPE_CHECKING:
    from perceivers.nn.spread import Spread

Backend = Literal["auto", "reference", "sdpa", "flex"]
BACKENDS: tuple[str, ...] = ("auto", "reference", "sdpa", "flex")

# All that `sdpa` may end in.
FUSED_KERNELS = (
    FLASH_CPU.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
)

# In bfloat16 the fused CPU kernel is up to four times as fast if a head's channels are a multiple of this.
EVEN_CHANNELS = 8

# Most scores of all rows and heads together that are kept for a backward pass in bfloat16 on a CPU: 128 MB.
KEPT_SCORES = 2**26


class Attention(nn.Module):
    """Multi-head attention from `x` to `context`.

    Source: `Attention` of perceiver_ar_model.py (official Perceiver AR).

    Args:
        dim: Channels of `x` and of the result.
        context_dim: Channels of `context`.
        heads: Heads.
        inner_dim: Channels of queries and keys, all heads together.
        value_dim: Channels of values, all heads together; None for `inner_dim`.
        zero_empty: A query that may read no key reads zeros, as in the official Perceiver IO, and not an average.
        backend: See the module's docstring; `auto` is `sdpa`.

    Raises:
        ValueError: `inner_dim` or `value_dim` is not a multiple of `heads`.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        *,
        heads: int,
        inner_dim: int,
        value_dim: int | None = None,
        zero_empty: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        value_dim = inner_dim if value_dim is None else value_dim
        for channels in (inner_dim, value_dim):
            if channels % heads:
                raise ValueError(f"{heads} heads do not divide {channels} attention channels evenly")
        self.heads = heads
        self.widths = (inner_dim, value_dim)
        self.zero_empty = zero_empty
        self.backend: Backend = backend
        self.spread: Spread | None = None
        """Where keys and values are spread over processes: how they are read."""
        self.to_q = Linear(dim, inner_dim)
        self.to_kv = Linear(context_dim, inner_dim + value_dim)
        self.to_out = Linear(value_dim, dim)

    def forward(
        self,
        x: Float[Tensor, "batch queries dim"],
        context: Float[Tensor, "batch keys context_dim"],
        *,
        mask: AttentionMask,
        rotate_q: Rotation | None = None,
        rotate_k: Rotation | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Read `context`; `rotate_q` and `rotate_k` turn queries and keys by their positions."""
        return self.read(x, *self.keys_values(context, rotate_k), mask=mask, rotate_q=rotate_q)

    def keys_values(
        self,
        context: Float[Tensor, "batch keys context_dim"] | Float[Tensor, "vocab context_dim"],
        rotate: Rotation | None = None,
        *,
        ids: Int[Tensor, "batch keys"] | None = None,
        norm: nn.LayerNorm | None = None,
        queries: int | None = None,
    ) -> tuple[Float[Tensor, "batch h keys d"], Float[Tensor, "batch h keys dv"]]:
        """Keys, turned by their positions, and values of `context`, or of its rows `ids`, each projected once.

        A `norm` comes before; its result is not kept for the backward pass. Where one head has fewer `queries` than
        keys, which are to read them with the same norm, the normed context is both keys and values, and `read` projects
        the queries and the result instead: q (W x)' = (q W) x', and the keys' bias changes no softmax.
        """
        if ids is not None:
            return self.rows(context, ids, rotate, norm=norm).whole()
        if norm is not None and rotate is None and self._reads_normed(context, queries):
            normed = F.layer_norm(context, norm.normalized_shape, eps=norm.eps)[:, None]
            return normed, normed
        k, v = (split_heads(part, self.heads) for part in self._projected(context, norm).split(self.widths, dim=-1))
        return (k if rotate is None else rotate(k)), v

    def rows(
        self,
        table: Float[Tensor, "vocab context_dim"],
        ids: Int[Tensor, "batch keys"],
        rotate: Rotation | None = None,
        *,
        norm: nn.LayerNorm | None = None,
    ) -> TakenRows:
        """Keys and values of the rows `ids` of a table, of which each is projected once; for `read_rows`."""
        return TakenRows(self._projected(table, norm), ids, self.heads, self.widths, rotate)

    def read(
        self,
        x: Float[Tensor, "batch queries dim"],
        keys: Float[Tensor, "batch h keys d"],
        values: Float[Tensor, "batch h keys dv"],
        *,
        mask: AttentionMask,
        rotate_q: Rotation | None = None,
        shared: "SharedContext | None" = None,
        norm: nn.LayerNorm | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Read keys and values that `keys_values` made with `norm`, in their precision."""
        q = split_heads(self.to_q(x), self.heads)
        if keys is values and norm is not None:
            out = self._read_normed(q, keys, mask, norm)
            return self._joined(self._without_empty(out, keys.shape[2], mask), q)
        turned = (q if rotate_q is None else rotate_q(q)).to(keys.dtype)
        if self.spread is not None:
            out = self.spread.attend(turned, keys, values, mask=mask)
        elif shared is None:
            out = attend(turned, keys, values, mask=mask, backend=self.backend)
            out = self._without_empty(out, keys.shape[2], mask)
        else:
            out = attend_shared(turned, keys, values, mask=mask, shared=shared)
        return self._joined(out, q)

    def read_rows(
        self,
        x: Float[Tensor, "batch queries dim"],
        rows: TakenRows,
        *,
        mask: AttentionMask,
        rotate_q: Rotation | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Read keys and values as they are taken by id."""
        q = split_heads(self.to_q(x), self.heads)
        turned = (q if rotate_q is None else rotate_q(q)).to(rows.table.dtype)
        out = attend_rows(turned, rows, mask=mask, backend=self.backend)
        return self._joined(self._without_empty(out, rows.ids.shape[1], mask), q)

    def _projected(self, context: Tensor, norm: nn.LayerNorm | None) -> Tensor:
        return self.to_kv(context) if norm is None else normed_linear(norm, self.to_kv, context)

    def _reads_normed(self, context: Tensor, queries: int | None) -> bool:
        """Whether to project queries is less work than to project keys, and to attend is not more."""
        plain = self.heads == 1 and self.spread is None and type(self.to_kv) is Linear
        return plain and context.shape[-1] <= min(self.widths) and queries is not None and queries < context.shape[-2]

    def _read_normed(
        self, q: Float[Tensor, "b 1 q d"], normed: Float[Tensor, "b 1 k c"], mask: AttentionMask, norm: nn.LayerNorm
    ) -> Float[Tensor, "b 1 q dv"]:
        weight = self.to_kv.weight * norm.weight
        bias = self.to_kv.bias + (self.to_kv.weight * norm.bias).sum(-1)
        to_k, to_v = weight.split(self.widths)
        scale = (normed.shape[-1] / q.shape[-1]) ** 0.5  # attention divides by the root of as many channels as it sees
        q = (q @ to_k) * scale
        normed = normed.to(q.dtype)
        out = attend(q, normed, normed, mask=mask, backend=self.backend)
        return F.linear(out, to_v, bias[self.widths[0] :])

    def _without_empty(self, out: Tensor, keys: int, mask: AttentionMask) -> Tensor:
        """Zeros for queries that may read nothing, where that is asked for."""
        if self.zero_empty and (visible := mask.dense(out.shape[2], keys, out.device)) is not None:
            return out * visible.any(-1)[:, None, :, None]
        return out

    def _joined(self, out: Tensor, q: Tensor) -> Tensor:
        """What all heads read, together, in the precision of the queries."""
        return self.to_out(out.to(q.dtype).transpose(1, 2).flatten(2))


def attend(
    q: Float[Tensor, "b h q d"],
    k: Float[Tensor, "b h k d"],
    v: Float[Tensor, "b h k dv"],
    *,
    mask: AttentionMask,
    backend: Backend = "auto",
) -> Float[Tensor, "b h q dv"]:
    """Scaled dot-product attention, softmax(q k' / sqrt(d)) v, over the visible pairs.

    Raises:
        ValueError: An unknown back end.
    """
    match backend:
        case "reference":
            return _reference(q, k, v, mask)
        case "auto" | "sdpa":
            return _sdpa(q, k, v, mask)
        case "flex":
            return flex(q, k, v, mask)
        case _:
            raise ValueError(f"attention back end {backend!r}: choose one of {', '.join(BACKENDS)}")


def attend_rows(
    q: Float[Tensor, "b h q d"], rows: TakenRows, *, mask: AttentionMask, backend: Backend = "auto"
) -> Float[Tensor, "b h q dv"]:
    """`attend` to keys and values that are taken by id: part by part where that is how they are read, or as a whole."""
    if backend in ("auto", "sdpa") and _reads_parts(q, rows, mask):
        return lower_right_rows(q, rows, mask.keys)
    return attend(q, *rows.whole(), mask=mask, backend=backend)


@dataclass(frozen=True)
class SharedContext:
    """A context that several rows of queries read in full, kept once: row r reads row r // (rows / `batch`)."""

    keys: Float[Tensor, "batch h k d"]
    values: Float[Tensor, "batch h k dv"]
    real: Bool[Tensor, "batch k"] | None = None
    """Keys that may be read; None for all."""


def attend_shared(
    q: Float[Tensor, "b h q d"],
    k: Float[Tensor, "b h k d"],
    v: Float[Tensor, "b h k dv"],
    *,
    mask: AttentionMask,
    shared: SharedContext,
) -> Float[Tensor, "b h q dv"]:
    """One softmax over a shared context and each row's own keys; for inference.

    Rows that share a context are queries of one product, so that it is read from memory once for all of them.
    """
    samples = len(q) // len(shared.keys)
    together = rearrange(q, "(b s) h q d -> b h (s q) d", s=samples)
    out, lse = partial_attention(together, shared.keys, shared.values, AttentionMask(keys=shared.real))
    out = rearrange(out, "b h (s q) d -> (b s) h q d", s=samples)
    lse = rearrange(lse, "b h (s q) -> (b s) h q", s=samples)
    return merge((out, lse), partial_attention(q, k, v, mask))[0]


def _reference(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)  # scaled first: products alone may leave float16
    visible = mask.dense(q.shape[2], k.shape[2], q.device)
    if visible is not None:
        scores = scores.masked_fill(~visible[:, None], masked_score(scores))
    return scores.softmax(-1) @ v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    queries, keys = q.shape[2], k.shape[2]
    if _keeps_scores(q, keys):
        out: Tensor = _MatmulAttention.apply(q, k, v, mask)  # pyright: ignore[reportAssignmentType]
        return out
    if missing := _missing_channels(q):
        q = q * (1 + missing / q.shape[-1]) ** 0.5  # the kernel divides by more channels
        wide_q, wide_k = F.pad(q, (0, missing)), F.pad(k, (0, missing))
        wide_v = wide_k if v is k else F.pad(v, (0, missing))
        return _sdpa(wide_q, wide_k, wide_v, mask)[..., : v.shape[-1]]
    if mask.pairs is not None or (mask.causal and queries > keys):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=additive(mask.dense(queries, keys, q.device), q))
    if not mask.causal or queries == 1:  # one query reads every key
        return F.scaled_dot_product_attention(q, k, v, attn_mask=additive(mask.every_query, q))
    if queries == keys and mask.keys is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if q.device.type == "cpu" and q.shape[-1] == v.shape[-1]:  # as the kernel needs it
        return lower_right(q, k, v, mask.keys)
    if mask.keys is None and q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(queries, keys))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=additive(mask.dense(queries, keys, q.device), q))


def _keeps_scores(q: Tensor, keys: int) -> bool:
    """Whether to train with two products that keep the probabilities."""
    few = q[..., 0].numel() * keys <= KEPT_SCORES
    return few and q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad


def _missing_channels(q: Tensor) -> int:
    """Channels that a head lacks for the fused kernel's faster way."""
    return -q.shape[-1] % EVEN_CHANNELS if q.device.type == "cpu" and q.dtype == torch.bfloat16 else 0


def _reads_parts(q: Tensor, rows: TakenRows, mask: AttentionMask) -> bool:
    """Whether `_sdpa` would end in `lower_right`, outside of what is compiled."""
    keys = rows.ids.shape[1]
    at_the_end = mask.causal and mask.pairs is None and 1 < q.shape[2] < keys
    even = rows.widths[0] == rows.widths[1] and not _missing_channels(q)
    fused = at_the_end and even and not _keeps_scores(q, keys)
    return fused and q.device.type == "cpu" and not torch.compiler.is_compiling()


class _MatmulAttention(torch.autograd.Function):
    """Training in bfloat16 on a CPU, where the probabilities fit in memory and are kept for backward.

    The products alone are faster there than the fused kernel with its backward: 8 x 4 heads, 256 x 256, 64 channels
    took 22 ms of one busy core forward and backward, and 38 ms fused.
    """

    @staticmethod
    def forward(ctx, q, k, v, mask):
        queries, keys = q.shape[2], k.shape[2]
        ctx.scale = q.shape[-1] ** -0.5
        # Heads one after the other: the products would make transposed copies, which take as long as they do.
        q, k, v = q * ctx.scale, k.contiguous(), v.contiguous()
        scores = _product(q, k.transpose(-2, -1))
        if mask.causal:  # the prefix is visible to all
            rest = AttentionMask(causal=True).dense(queries, min(queries, keys), q.device)
            scores[..., -queries:].add_(additive(rest, q))  # pyright: ignore[reportArgumentType]
        for visible in (mask.every_query, mask.pairs):
            if visible is not None:
                scores.add_(additive(visible, q))  # pyright: ignore[reportArgumentType]
        probabilities = torch.softmax(scores, -1, out=scores)  # in place: new memory takes longer than the work in it
        ctx.save_for_backward(q, k, v, probabilities)
        return _product(probabilities, v)

    @staticmethod
    @first_order_only
    def backward(ctx, grad):
        q, k, v, probabilities = ctx.saved_tensors
        _, keys_need_gradients, values_need_gradients, _ = ctx.needs_input_grad
        dk = dv = None
        if values_need_gradients:
            dv = _product(probabilities.transpose(-2, -1), grad)
        dprobabilities = _product(grad, v.transpose(-2, -1))
        derive = torch.ops.aten._softmax_backward_data.out
        dscores = derive(dprobabilities, probabilities, -1, grad.dtype, grad_input=dprobabilities)
        if keys_need_gradients:
            dk = _product(dscores.transpose(-2, -1), q)
        return _product(dscores, k) * ctx.scale, dk, dv, None


def _product(a: Float[Tensor, "b h n k"], b: Float[Tensor, "b h k m"]) -> Float[Tensor, "b h n m"]:
    """`a @ b`; of one matrix each without the copies of transposed ones that the product of many makes."""
    return (a[0, 0] @ b[0, 0])[None, None] if len(a) == a.shape[1] == 1 else a @ b
