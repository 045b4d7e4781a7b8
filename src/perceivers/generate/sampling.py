"""From logits to a token."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from perceivers.generate.config import SamplingConfig


def sample(
    logits: Float[Tensor, "batch vocab"],
    config: SamplingConfig,
    *,
    allowed: Bool[Tensor, " vocab"],
    generator: torch.Generator,
) -> Int[Tensor, " batch"]:
    """Draw a token a row.

    As in the reference (`process_logits`, sample_utils.py): tokens that are not allowed go first, then those outside
    `top_p`, and the temperature comes last.

    Args:
        logits: Of the next token.
        config: How to draw.
        allowed: Tokens that may come.
        generator: Source of randomness, on the logits' device.
    """
    logits = logits.float().masked_fill(~allowed, -torch.inf)
    if config.temperature == 0:
        return logits.argmax(-1)
    if config.top_k is not None:
        logits = keep_top_k(logits, config.top_k)
    logits = keep_top_p(logits, config.top_p)
    probabilities = (logits / config.temperature).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def keep_top_k(logits: Float[Tensor, "batch vocab"], k: int) -> Float[Tensor, "batch vocab"]:
    """All but the k likeliest tokens at minus infinity; equals of the k-th stay."""
    if k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(k).values[:, -1:], -torch.inf)


def keep_top_p(logits: Float[Tensor, "batch vocab"], p: float) -> Float[Tensor, "batch vocab"]:
    """All but the fewest likeliest tokens with probability `p` together at minus infinity; equals of the last stay."""
    if p == 1:
        return logits
    ascending = logits.sort(-1).values
    first_kept = (ascending.softmax(-1).cumsum(-1) < 1 - p).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    return logits.masked_fill(logits < ascending.gather(-1, first_kept), -torch.inf)
