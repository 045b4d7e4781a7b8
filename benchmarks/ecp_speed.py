"""What segments save: `python benchmarks/ecp_speed.py [--quick] [--json FILE]`.

ECP's attention, which never makes a matrix of the whole input, beside the same pattern as a boolean mask of n x n that
PyTorch's fused attention is given: the same weights, the same numbers. One layer of random weights, projections
included, batch 1, float32, on the CPU: forward alone, and forward with backward. Both run in turns, A B A B ..., and
each ratio is taken inside a round. The table has the median of the rounds, the lowest and the highest. Nothing else
should run beside it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from perceivers.models.ecp import SegmentAttention
from perceivers.models.ecp_config import ECPConfig
from perceivers.nn.positions import Rotation
from sampling_timing import Row, Task, in_turns, timed
from speed_table import parser_of, print_table


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is."""

    tokens: tuple[int, ...]
    segment_len: int
    dim: int
    heads: int
    rounds: int


FULL = Scale(tokens=(2048, 8192), segment_len=256, dim=512, heads=8, rounds=7)
QUICK = Scale(tokens=(48, 96), segment_len=16, dim=16, heads=2, rounds=2)


class MaskedAttention(SegmentAttention):
    """The same pattern as one masked attention of all with all."""

    mask: Tensor

    def read(self, q: Tensor, k: Tensor, v: Tensor, latents: int, real: Tensor | None) -> Tensor:
        """Attention under a mask that is made once."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)


def segment_mask(tokens: int, segment_len: int) -> Tensor:
    """True where a token (row) reads another: its own segment up to itself, and all of the one before."""
    place = torch.arange(tokens)
    segment = place // segment_len
    return (place[:, None] >= place) & (segment[:, None] - segment <= 1)


def both(scale: Scale, tokens: int) -> tuple[SegmentAttention, MaskedAttention]:
    """The two attentions, with the same weights."""
    torch.manual_seed(0)
    config = ECPConfig(max_seq_len=tokens, segment_len=scale.segment_len, dim=scale.dim, heads=scale.heads)
    segments = SegmentAttention(config)
    masked = MaskedAttention(config)
    masked.load_state_dict(segments.state_dict())
    masked.mask = segment_mask(tokens, scale.segment_len)
    return segments, masked


def compare(scale: Scale, tokens: int) -> Iterator[Row]:
    """Rows of the table for one length."""
    segments, masked = both(scale, tokens)
    x = torch.randn(1, tokens, scale.dim)
    frequencies = 10_000 ** (-torch.arange(0, scale.dim // scale.heads, 2).double() / (scale.dim // scale.heads))
    rotate = Rotation.by(torch.arange(tokens)[None], frequencies, dtype=x.dtype)

    def forward(attention: SegmentAttention) -> Tensor:
        return attention(x, latents=tokens, real=None, rotate=rotate)

    def inference(attention: SegmentAttention) -> Task:
        def run() -> None:
            with torch.inference_mode():
                forward(attention)

        return timed(run)

    def step(attention: SegmentAttention) -> Task:
        def run() -> None:
            attention.zero_grad()
            forward(attention).sum().backward()

        return timed(run)

    with torch.no_grad():
        torch.testing.assert_close(forward(segments), forward(masked), atol=1e-4, rtol=1e-4)
    setting = f"{tokens:,} tokens, segments of {scale.segment_len}"
    for part, task in (("forward", inference), ("forward and backward", step)):
        seconds = in_turns({"segments": task(segments), "n x n mask": task(masked)}, scale.rounds)
        for name, values in seconds.items():
            yield Row.of(part, setting, name, 1000 * values, "ms")
        yield Row.of(part, setting, "n x n mask / segments", seconds["n x n mask"] / seconds["segments"], "times")


def main() -> None:
    args = parser_of(__doc__).parse_args()
    scale = QUICK if args.quick else FULL
    print_table(chain.from_iterable(compare(scale, n) for n in scale.tokens), scale=scale, json_file=args.json)


if __name__ == "__main__":
    main()
