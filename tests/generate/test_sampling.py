import math

import pytest
import torch
from torch import Tensor

from perceivers.generate.config import SamplingConfig
from perceivers.generate.sampling import keep_top_k, keep_top_p, sample


def kept(logits: Tensor) -> list[list[int]]:
    """Tokens of each row that can still come."""
    return [row.isfinite().nonzero().flatten().tolist() for row in logits]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def everything(size: int) -> Tensor:
    return torch.ones(size, dtype=torch.bool)


PROBABILITIES = torch.tensor([[0.05, 0.5, 0.15, 0.3], [0.3, 0.2, 0.3, 0.2]])


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1, [[1], [0, 2]]),  # equals of the k-th stay
        (2, [[1, 3], [0, 2]]),
        (3, [[1, 2, 3], [0, 1, 2, 3]]),
        (4, [[0, 1, 2, 3], [0, 1, 2, 3]]),
        (7, [[0, 1, 2, 3], [0, 1, 2, 3]]),
    ],
)
def test_the_k_likeliest(k: int, expected: list[list[int]]) -> None:
    logits = PROBABILITIES.log()
    left = keep_top_k(logits, k)
    assert kept(left) == expected
    assert torch.equal(left[left.isfinite()], logits[left.isfinite()])


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (1e-12, [[1], [0, 2]]),  # equals of the last stay
        (0.29, [[1], [0, 2]]),
        (0.49, [[1], [0, 2]]),
        (0.51, [[1, 3], [0, 2]]),
        (0.59, [[1, 3], [0, 2]]),
        (0.61, [[1, 3], [0, 1, 2, 3]]),
        (0.79, [[1, 3], [0, 1, 2, 3]]),
        (0.81, [[1, 2, 3], [0, 1, 2, 3]]),
        (0.96, [[0, 1, 2, 3], [0, 1, 2, 3]]),
        (1.0, [[0, 1, 2, 3], [0, 1, 2, 3]]),
    ],
)
def test_the_fewest_with_a_probability(p: float, expected: list[list[int]]) -> None:
    logits = PROBABILITIES.log() + 3.0
    left = keep_top_p(logits, p)
    assert kept(left) == expected
    assert torch.equal(left[left.isfinite()], logits[left.isfinite()])


@pytest.mark.parametrize("p", [0.013, 0.37, 0.71, 0.983])
def test_the_fewest_of_many(p: float) -> None:
    logits = 2 * torch.randn(11, 97, generator=generator())
    for row, tokens in zip(logits.softmax(-1), kept(keep_top_p(logits, p)), strict=True):
        total, expected = 0.0, set()
        for token in row.argsort(descending=True).tolist():
            if total >= p:
                break
            total += float(row[token])
            expected.add(token)
        assert set(tokens) == expected


def test_a_vocabulary_of_many_equals_keeps_all() -> None:
    assert len(kept(keep_top_p(torch.zeros(1, 50_000), 0.5))[0]) == 50_000


def test_temperature_zero_is_the_likeliest_allowed() -> None:
    allowed = torch.tensor([True, False, True, True])
    tokens = sample(PROBABILITIES.log(), SamplingConfig(temperature=0.0), allowed=allowed, generator=generator())
    assert tokens.tolist() == [3, 0]


def shares(config: SamplingConfig, allowed: Tensor | None = None, *, draws: int = 20_000) -> list[float]:
    """How often each token of `PROBABILITIES[0]` is drawn."""
    logits = PROBABILITIES[:1].log().expand(draws, -1)
    tokens = sample(logits, config, allowed=everything(4) if allowed is None else allowed, generator=generator())
    return (tokens.bincount(minlength=4) / draws).tolist()


def test_shares_are_the_probabilities() -> None:
    assert shares(SamplingConfig()) == pytest.approx([0.05, 0.5, 0.15, 0.3], abs=0.015)


def test_temperature_sharpens_and_flattens() -> None:
    for temperature in (0.5, 2.0):
        weights = [p ** (1 / temperature) for p in (0.05, 0.5, 0.15, 0.3)]
        expected = [weight / sum(weights) for weight in weights]
        assert shares(SamplingConfig(temperature=temperature)) == pytest.approx(expected, abs=0.015)


def test_top_p_is_taken_before_the_temperature() -> None:
    """As in the reference: 0.5 and 0.3 have the 0.7 between them; a hot 0.3 has not."""
    weights = [math.sqrt(0.5), math.sqrt(0.3)]
    expected = [0.0, weights[0] / sum(weights), 0.0, weights[1] / sum(weights)]
    assert shares(SamplingConfig(top_p=0.7, temperature=2.0)) == pytest.approx(expected, abs=0.015)


def test_what_is_not_allowed_goes_first() -> None:
    """Without token 1 the probabilities are 0.1, 0.3 and 0.6."""
    allowed = torch.tensor([True, False, True, True])
    assert shares(SamplingConfig(), allowed) == pytest.approx([0.1, 0, 0.3, 0.6], abs=0.015)
    assert shares(SamplingConfig(top_p=0.7), allowed) == pytest.approx([0, 0, 1 / 3, 2 / 3], abs=0.015)
    assert shares(SamplingConfig(top_k=1), allowed) == [0, 0, 0, 1]


def test_one_token_that_is_allowed() -> None:
    allowed = torch.tensor([True, False, False, False])
    for config in (
        SamplingConfig(),
        SamplingConfig(top_k=3),
        SamplingConfig(top_p=0.01),
        SamplingConfig(temperature=0.0),
    ):
        assert shares(config, allowed, draws=7) == [1, 0, 0, 0]


def test_same_seed_same_tokens() -> None:
    logits = torch.zeros(1, 101).expand(53, -1)

    def draw(seed: int) -> list[int]:
        return sample(logits, SamplingConfig(), allowed=everything(101), generator=generator(seed)).tolist()

    assert draw(3) == draw(3) != draw(5)


def test_half_precision_logits() -> None:
    logits = PROBABILITIES.log().bfloat16()
    assert sample(logits, SamplingConfig(top_p=0.4), allowed=everything(4), generator=generator())[0] == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, r"temperature=-0.1 must be 0 \(greedy\) or more"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 0.0}, r"top_p=0.0 must lie in \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p=1.1 must lie in \(0, 1\]"),
    ],
)
def test_what_makes_no_sense(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**values)  # pyright: ignore
