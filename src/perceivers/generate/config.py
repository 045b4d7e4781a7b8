"""How tokens are drawn, and how a model is run for it. Imports no torch."""

import math
from typing import Literal

from perceivers.records import record


@record
class SamplingConfig:
    """From logits to a token."""

    temperature: float = 1.0
    """Divides the logits: below 1 safer, above 1 wilder; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float = 1.0
    """Draw from the fewest tokens that together have this probability, in (0, 1]; 1 is off."""
    min_p: float = 0.0
    """Draw from tokens with at least this share of the likeliest token's probability, in [0, 1); 0 is off."""
    repetition_penalty: float = 1.0
    """Scores of tokens that already came, prompt included, are divided by it where they are positive and multiplied
    where they are negative (CTRL, Keskar et al. 2019, https://arxiv.org/abs/1909.05858): above 1 repeats less; 1 is
    off."""
    seed: int = 0
    """Same seed, same tokens."""

    def __post_init__(self) -> None:
        # Written so that NaN, which compares as false with everything, is refused as well.
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"temperature={self.temperature} must be 0 (greedy) or more, and finite; 1 draws as the model says"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1 token; None draws from all")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1]; 1 draws from all, temperature 0 is greedy")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p={self.min_p} must lie in [0, 1); 0 draws from all, temperature 0 is greedy")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(
                f"repetition_penalty={self.repetition_penalty} must be above 0, and finite; 1 is off, "
                "more than 1 repeats less"
            )


MUSIC = SamplingConfig(temperature=0.9, top_p=0.9)
"""Of nine pairs the one with which a model of the chorales crowds keys least on validation (docs/results.md)."""


def usual_sampling(tokenizer: str) -> SamplingConfig:
    """How tokens are drawn where nobody says: as the model has it, and for music a little safer."""
    return MUSIC if tokenizer == "performance" else SamplingConfig()


@record
class DecodingConfig:
    """How a model is run, token by token."""

    num_latents: int | None = None
    """Latents that may be there before they are rebuilt; None = as many as in training."""
    refill: int | None = None
    """Latents to rebuild when they are full: few is fast, many reads more; None = half of num_latents."""
    prompt_latents: int | None = None
    """Latents that a prompt starts with: 1 as in the reference; None = as many as `refill`."""
    cached: bool = True
    """Keep keys and values from token to token; turned off, every token takes a full forward pass."""
    cache_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of keys and values that are kept; auto = the model's."""
    compiled: bool = False
    """Compile the step of one token: faster after a minute or two, needs a C++ compiler."""

    def __post_init__(self) -> None:
        if self.num_latents is not None and self.num_latents < 1:
            raise ValueError(f"num_latents={self.num_latents} must be at least 1; None takes as many as in training")
        if self.refill is not None and self.refill < 1:
            raise ValueError(f"refill={self.refill} must be at least 1; None takes half of num_latents")
        if self.refill is not None and self.num_latents is not None and self.refill >= self.num_latents:
            raise ValueError(
                f"refill={self.refill} must be less than num_latents={self.num_latents}: the others are room for "
                "new tokens until the next rebuild; None takes half"
            )
        if self.prompt_latents is not None and self.prompt_latents < 1:
            raise ValueError(f"prompt_latents={self.prompt_latents} must be at least 1; None takes as many as refill")
        if self.cache_dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"cache_dtype={self.cache_dtype!r} must be 'auto', 'float32' or 'bfloat16'")
        if self.num_latents is not None and (self.prompt_latents or 0) > self.num_latents:
            raise ValueError(f"prompt_latents={self.prompt_latents} must be at most num_latents={self.num_latents}")
        if not self.cached:
            self._check_uncached()

    def _check_uncached(self) -> None:
        usual = DecodingConfig()
        for name in ("refill", "prompt_latents", "cache_dtype", "compiled"):
            if (value := getattr(self, name)) != getattr(usual, name):
                raise ValueError(f"{name}={value} is for kept keys and values, and cached=False keeps none: drop one")
