"""From logits to a token.

Called once a token: what is off costs nothing, and no row depends on the other rows.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from perceivers.generate.config import SamplingConfig

MIN_TEMPERATURE = 1e-12
"""As in the reference: below it quotients leave float32."""


def sample(
    logits: Float[Tensor, "batch vocab"],
    config: SamplingConfig,
    *,
    allowed: Bool[Tensor, "#batch vocab"],
    generators: Sequence[torch.Generator],
    seen: Bool[Tensor, "#batch vocab"] | None = None,
) -> Int[Tensor, " batch"]:
    """Draw a token a row; each row from its own generator, so that it does not depend on what else is in the batch.

    Args:
        logits: Of the next token.
        config: How to draw.
        allowed: Tokens that may come, at least one a row.
        generators: Sources of randomness, one a row, on the logits' device; temperature 0 leaves them alone.
        seen: Tokens that already came, prompt included; only a repetition penalty needs it.

    Raises:
        ValueError: Not one generator a row, or a repetition penalty without `seen`.
    """
    if len(generators) != len(logits):
        raise ValueError(f"got {len(generators)} generators for {len(logits)} rows; give one a row")
    scores = process_logits(logits, config, allowed=allowed, seen=seen)
    if config.temperature == 0:
        return scores.argmax(-1)
    probabilities = scores.softmax(-1)
    draws = [
        torch.multinomial(probabilities[row : row + 1], 1, generator=generator)
        for row, generator in enumerate(generators)
    ]
    return torch.cat(draws)[:, 0]


def process_logits(
    logits: Float[Tensor, "batch vocab"],
    config: SamplingConfig,
    *,
    allowed: Bool[Tensor, "#batch vocab"],
    seen: Bool[Tensor, "#batch vocab"] | None = None,
) -> Float[Tensor, "batch vocab"]:
    """Scores in float32 whose softmax is drawn from; minus infinity where a token can't come.

    As in the reference (`process_logits`, sample_utils.py): tokens that are not allowed go first, then those outside
    `top_p`, and the temperature comes last. A repetition penalty comes before all of it, `top_k` before and `min_p`
    after `top_p`. At temperature 0 only the penalty and `allowed` count.

    Args:
        logits: Of the next token.
        config: How to draw.
        allowed: Tokens that may come, at least one a row.
        seen: Tokens that already came, prompt included; only a repetition penalty needs it.

    Raises:
        ValueError: A repetition penalty without `seen`.
    """
    scores = logits.float()
    if config.repetition_penalty != 1:
        if seen is None:
            raise ValueError(
                f"repetition_penalty={config.repetition_penalty} needs `seen`, the tokens that already came"
            )
        scores = penalize(scores, seen, config.repetition_penalty)
    scores = scores.masked_fill(~allowed, -torch.inf)
    if config.temperature == 0:
        return scores
    if config.top_k is not None:
        scores = keep_top_k(scores, config.top_k)
    if config.top_p < 1:
        scores = keep_top_p(scores, config.top_p)
    if config.min_p > 0:
        scores = keep_min_p(scores, config.min_p)
    if config.temperature != 1:
        scores = scores / max(config.temperature, MIN_TEMPERATURE)
    return scores


def penalize(
    logits: Float[Tensor, "batch vocab"], seen: Bool[Tensor, "#batch vocab"], penalty: float
) -> Float[Tensor, "batch vocab"]:
    """Logits of tokens that were seen: divided by `penalty` where positive, multiplied where negative (CTRL)."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_k(logits: Float[Tensor, "batch vocab"], k: int) -> Float[Tensor, "batch vocab"]:
    """All but the k likeliest tokens at minus infinity; equals of the k-th stay."""
    if k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(k).values[:, -1:], -torch.inf)


def keep_top_p(logits: Float[Tensor, "batch vocab"], p: float) -> Float[Tensor, "batch vocab"]:
    """All but the fewest likeliest tokens with probability `p` together at minus infinity; equals of the last stay."""
    ascending = logits.sort(-1).values
    first_kept = (ascending.softmax(-1).cumsum(-1) < 1 - p).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    return logits.masked_fill(logits < ascending.gather(-1, first_kept), -torch.inf)


def keep_min_p(logits: Float[Tensor, "batch vocab"], share: float) -> Float[Tensor, "batch vocab"]:
    """Tokens below `share` of the likeliest token's probability at minus infinity."""
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(share), -torch.inf)


def log_probabilities(logits: Float[Tensor, "batch vocab"], tokens: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Natural logs of the probabilities that the model itself gave tokens, in float32: before any `SamplingConfig`."""
    return logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
