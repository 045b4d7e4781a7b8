"""Ways to compute attention on this machine: `python benchmarks/attention.py [--quick] [--json FILE]`.

The last positions of a context read all of it, causally, forward and backward, as in Perceiver AR's cross-attend. What
`auto` takes (`perceivers.nn.attention`) stands beside PyTorch's fused kernel with a mask, and beside a loop over blocks
of keys that computes the softmax between two products, as it is and compiled. GFLOP/s count the visible pairs. All
run in turns; nothing else should run beside it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from perceivers.nn.attention import attend
from perceivers.nn.masks import MASKED, AttentionMask, causal_mask
from sampling_timing import Row, Task, in_turns, timed
from speed_table import parser_of, print_table


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is."""

    contexts: tuple[int, ...]
    latents: int
    heads: int
    channels: int
    block: int
    rounds: int


FULL = Scale(contexts=(4096, 16_384, 65_536), latents=1024, heads=8, channels=64, block=1024, rounds=5)
QUICK = Scale(contexts=(48, 64), latents=16, heads=2, channels=8, block=16, rounds=2)

Heads = Float[Tensor, "heads n channels"]


def soften(scores: Tensor, largest: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Exponentials of a block's scores, their sums, the largest score so far, and how earlier results shrink."""
    found = torch.maximum(largest, scores.amax(-1, keepdim=True).float())
    shares = (scores.float() - found).exp()
    return shares.to(scores.dtype), shares.sum(-1, keepdim=True), found, (largest - found).exp()


def sharpen(scores: Tensor, dshares: Tensor, lse: Tensor, behind: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities of a block, and the gradients of its scores."""
    shares = (scores.float() - lse).exp()
    return shares.to(scores.dtype), (shares * (dshares.float() - behind)).to(scores.dtype)


COMPILED = torch.compile(soften), torch.compile(sharpen)


class BlockLoop(torch.autograd.Function):
    """Attention of the last positions to all, `block` keys after another; no scores but a block's exist at once."""

    @staticmethod
    def forward(ctx: Any, q: Heads, k: Heads, v: Heads, block: int, parts: Any) -> Heads:
        """The softmax over all blocks, merged block by block."""
        ctx.scale, ctx.block, ctx.parts = q.shape[-1] ** -0.5, block, parts
        q = q * ctx.scale
        out = torch.zeros(q.shape)
        largest, total = torch.full((*q.shape[:2], 1), MASKED), torch.zeros(*q.shape[:2], 1)
        for start in range(0, k.shape[1], block):
            shares, sums, largest, shrunk = parts[0](_scores(q, k, start, block), largest)
            out = out.mul_(shrunk).add_(shares @ v[:, start : start + block])
            total = total * shrunk + sums
        out = (out / total).to(q.dtype)
        ctx.save_for_backward(q, k, v, out, largest + total.log())
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Gradients, with each block's probabilities computed again."""
        (grad,) = grads
        q, k, v, out, lse = ctx.saved_tensors
        behind = (grad.float() * out.float()).sum(-1, keepdim=True)
        dq, dk, dv = torch.zeros(q.shape), torch.empty_like(k), torch.empty_like(v)
        for start in range(0, k.shape[1], ctx.block):
            part = slice(start, start + ctx.block)
            dshares = grad @ v[:, part].transpose(1, 2)
            shares, dscores = ctx.parts[1](_scores(q, k, start, ctx.block), dshares, lse, behind)
            dv[:, part] = shares.transpose(1, 2) @ grad
            dk[:, part] = dscores.transpose(1, 2) @ q
            dq += dscores @ k[:, part]
        return (dq * ctx.scale).to(q.dtype), dk, dv, None, None


def _scores(q: Heads, k: Heads, start: int, block: int) -> Tensor:
    """Of a block, where the last positions see no later ones."""
    scores = q @ k[:, start : start + block].transpose(1, 2)
    first = k.shape[1] - q.shape[1]  # the position of the first query
    if start + block > first:
        hidden = ~causal_mask(q.shape[1], k.shape[1], device=q.device)[..., start : start + block]
        scores = scores.masked_fill(hidden, MASKED)
    return scores


def both(read: Callable[[], Tensor], grad: Tensor) -> Task:
    """Forward and backward."""
    return timed(lambda: read().backward(grad))


def compare(context: int, scale: Scale, dtype: torch.dtype) -> Iterator[Row]:
    """Rows of one context in one precision."""
    torch.manual_seed(0)
    shapes = [(1, scale.heads, n, scale.channels) for n in (scale.latents, context, context)]
    q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)
    grad = torch.randn(shapes[0], dtype=dtype)
    visible = causal_mask(scale.latents, context, device=q.device)
    bias = torch.zeros(visible.shape[-2:], dtype=dtype).masked_fill_(~visible.view(scale.latents, context), MASKED)

    def loop(parts: Any) -> Tensor:
        return BlockLoop.apply(q[0], k[0], v[0], scale.block, parts)[None]  # pyright: ignore

    ways = {
        "auto": lambda: attend(q, k, v, mask=AttentionMask(causal=True)),
        "PyTorch's kernel, masked": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=bias),
        "blocks": lambda: loop((soften, sharpen)),
        "blocks, compiled": lambda: loop(COMPILED),
    }
    seconds = in_turns({name: both(read, grad) for name, read in ways.items()}, scale.rounds)
    pairs = scale.latents * (context - scale.latents) + scale.latents * (scale.latents + 1) // 2
    work = 3 * 4 * pairs * scale.heads * scale.channels
    about = ("attention", f"{scale.latents:,} of {context:,}, {str(dtype).removeprefix('torch.')}")
    for name, each in seconds.items():
        yield Row.of(*about, name, work / each / 1e9, "GFLOP/s")
    for name in ("blocks", "blocks, compiled"):
        yield Row.of(*about, f"auto / {name}", seconds["auto"] / seconds[name], "times")


def table(scale: Scale) -> Iterator[Row]:
    """All rows."""
    for context in scale.contexts:
        for dtype in (torch.float32, torch.bfloat16):
            yield from compare(context, scale, dtype)


def main() -> None:
    args = parser_of(__doc__).parse_args()
    scale = QUICK if args.quick else FULL
    print_table(table(scale), scale=scale, json_file=args.json)


if __name__ == "__main__":
    main()
