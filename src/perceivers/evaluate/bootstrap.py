"""How sure a mean over documents is: intervals from resampling the documents (bootstrap, percentile method).

Tokens of one document hang together, documents hardly do; so whole documents are drawn, with replacement, and each
draw pools its nats over its tokens as the plain mean does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from perceivers.arguments import checked_numbers

__all__ = ["Comparison", "Interval", "mean_with_interval", "paired_bootstrap"]

PERCENTILES = (2.5, 97.5)  # 95 of 100 draws lie between
DRAWS_AT_ONCE = 100  # keeps memory small for corpora of many documents


@dataclass(frozen=True)
class Interval:
    """A measured value and where 95 in 100 resamplings put it.

    One document says nothing about others, and neither do values that are no finite numbers: then both ends are NaN.
    """

    value: float
    low: float
    high: float

    @property
    def ends(self) -> list[float] | None:
        """Both ends; None where there is no interval."""
        return None if math.isnan(self.low) else [self.low, self.high]

    def __str__(self) -> str:
        return f"{self.value:.4g} " + (f"[{self.low:.4g}, {self.high:.4g}]" if self.ends else "(no interval)")


@dataclass(frozen=True)
class Comparison:
    """System a beside system b on the same documents."""

    difference: Interval
    """Nats per token of a minus those of b: below 0 where a is better."""
    percent_fewer: Interval
    """How many percent fewer nats a needs than b: above 0 where a is better."""


@checked_numbers(seed=0)
def mean_with_interval(
    per_document_nats: Sequence[float] | np.ndarray,
    counts: Sequence[int] | np.ndarray,
    *,
    samples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Nats per token of one system, pooled over documents.

    Args:
        per_document_nats: Sum of nats of each document.
        counts: Scored tokens of each document.
        samples: Draws.
        seed: Of the draws; equal seeds give equal draws.

    Raises:
        ValueError: Lengths differ, there is no document, or a count is not positive.
    """
    nats, tokens = _checked([per_document_nats], counts)
    draws = _draw(nats, tokens, samples=samples, seed=seed)
    return _interval(nats.sum() / tokens.sum(), draws[:, 0])


@checked_numbers(seed=0)
def paired_bootstrap(
    per_document_nats_a: Sequence[float] | np.ndarray,
    per_document_nats_b: Sequence[float] | np.ndarray,
    counts: Sequence[int] | np.ndarray,
    *,
    samples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two systems on the same documents: each draw takes the same documents for both.

    Args:
        per_document_nats_a: Sum of nats of each document, system a.
        per_document_nats_b: The same for system b.
        counts: Scored tokens of each document.
        samples: Draws.
        seed: Of the draws; equal seeds give equal draws.

    Raises:
        ValueError: Lengths differ, there is no document, or a count is not positive.
    """
    nats, tokens = _checked([per_document_nats_a, per_document_nats_b], counts)
    draws = _draw(nats, tokens, samples=samples, seed=seed)
    a, b = nats.sum(axis=1) / tokens.sum()
    with np.errstate(invalid="ignore", divide="ignore"):  # of a model so bad that its nats are infinite
        return Comparison(
            difference=_interval(a - b, draws[:, 0] - draws[:, 1]),
            percent_fewer=_interval(100 * (1 - a / b), 100 * (1 - draws[:, 0] / draws[:, 1])),
        )


def _checked(
    nats: list[Sequence[float] | np.ndarray], counts: Sequence[int] | np.ndarray
) -> tuple[Float[np.ndarray, "systems documents"], Float[np.ndarray, " documents"]]:
    lengths = [len(values) for values in (*nats, counts)]
    if min(lengths) == 0 or len(set(lengths)) > 1:
        raise ValueError(f"nats and counts need one value for each document, got {lengths} values")
    tokens = np.asarray(counts, dtype=np.float64)
    if tokens.min() <= 0:
        raise ValueError(f"each document needs at least one scored token, got a count of {tokens.min():g}")
    return np.array(nats, dtype=np.float64), tokens


def _draw(
    nats: Float[np.ndarray, "systems documents"], tokens: Float[np.ndarray, " documents"], *, samples: int, seed: int
) -> Float[np.ndarray, "samples systems"]:
    """Nats per token of each system in each resampling; NaN where resampling says nothing."""
    if len(tokens) == 1 or not np.isfinite(nats).all():
        return np.full((1, len(nats)), np.nan)
    generator = np.random.default_rng(seed)
    documents = len(tokens)
    draws = []
    for done in range(0, samples, DRAWS_AT_ONCE):
        size = min(DRAWS_AT_ONCE, samples - done)
        taken = generator.multinomial(documents, np.full(documents, 1 / documents), size=size)
        draws.append(taken @ nats.T / (taken @ tokens)[:, None])
    return np.concatenate(draws)


def _interval(value: float, draws: np.ndarray) -> Interval:
    low, high = np.percentile(draws, PERCENTILES)
    return Interval(float(value), float(low), float(high))
