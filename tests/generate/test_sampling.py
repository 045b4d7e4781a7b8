"""Which tokens can come, how likely each is, and that the draw is the row's own."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from perceivers.generate.config import SamplingConfig
from perceivers.generate.sampling import (
    keep_min_p,
    keep_top_k,
    keep_top_p,
    log_probabilities,
    process_logits,
    sample,
)


def kept(logits: Tensor) -> list[list[int]]:
    """Tokens of each row that can still come."""
    return [row.isfinite().nonzero().flatten().tolist() for row in logits]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def everything(size: int) -> Tensor:
    return torch.ones(1, size, dtype=torch.bool)


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


@pytest.mark.parametrize("p", [1e-12, 0.013, 0.37, 0.71, 0.983])
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


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (1e-9, [[0, 1, 2, 3], [0, 1, 2, 3]]),
        (0.09, [[0, 1, 2, 3], [0, 1, 2, 3]]),
        (0.11, [[1, 2, 3], [0, 1, 2, 3]]),
        (0.31, [[1, 3], [0, 1, 2, 3]]),
        (0.59, [[1, 3], [0, 1, 2, 3]]),
        (0.61, [[1], [0, 1, 2, 3]]),
        (0.66, [[1], [0, 1, 2, 3]]),
        (0.67, [[1], [0, 2]]),
        (0.999, [[1], [0, 2]]),
    ],
)
def test_a_share_of_the_likeliest(share: float, expected: list[list[int]]) -> None:
    logits = PROBABILITIES.log() + 3.0
    left = keep_min_p(logits, share)
    assert kept(left) == expected
    assert torch.equal(left[left.isfinite()], logits[left.isfinite()])


def test_a_vocabulary_of_many_equals_keeps_all() -> None:
    assert len(kept(keep_top_p(torch.zeros(1, 50_000), 0.5))[0]) == 50_000


def probabilities(allowed: list[bool] | None = None, **config: Any) -> list[float]:
    """What the first row of `PROBABILITIES` is drawn by."""
    mask = everything(4) if allowed is None else torch.tensor([allowed])
    return process_logits(PROBABILITIES[:1].log(), SamplingConfig(**config), allowed=mask)[0].softmax(-1).tolist()


def shares_of(*weights: float) -> Any:
    return pytest.approx([weight / sum(weights) for weight in weights], abs=1e-6)


def test_temperature_sharpens_and_flattens() -> None:
    assert probabilities() == shares_of(0.05, 0.5, 0.15, 0.3)
    for temperature in (0.5, 2.0):
        expected = shares_of(*(p ** (1 / temperature) for p in (0.05, 0.5, 0.15, 0.3)))
        assert probabilities(temperature=temperature) == expected


def test_top_p_is_taken_before_the_temperature() -> None:
    """As in the reference: 0.5 and 0.3 have the 0.7 between them; a hot 0.3 has not."""
    assert probabilities(top_p=0.7, temperature=2.0) == shares_of(0, math.sqrt(0.5), 0, math.sqrt(0.3))


def test_min_p_is_taken_before_the_temperature() -> None:
    """0.15 is 0.3 of 0.5, too little; a hot 0.15 would be more than half of a hot 0.5."""
    assert probabilities(min_p=0.4, temperature=2.0) == shares_of(0, math.sqrt(0.5), 0, math.sqrt(0.3))


def test_top_k_is_taken_before_top_p() -> None:
    """Of two tokens the first has 0.625."""
    assert probabilities(top_k=2, top_p=0.6) == [0, 1, 0, 0]


def test_top_p_is_taken_before_min_p() -> None:
    """Of the two tokens that `min_p` would leave the first had 0.625."""
    assert probabilities(min_p=0.4, top_p=0.6) == shares_of(0, 0.5, 0, 0.3)


def test_what_is_not_allowed_goes_first() -> None:
    """Without token 1 the probabilities are 0.1, 0.3 and 0.6."""
    allowed = [True, False, True, True]
    assert probabilities(allowed) == shares_of(0.1, 0, 0.3, 0.6)
    assert probabilities(allowed, top_p=0.7) == shares_of(0, 0, 0.3, 0.6)
    assert probabilities(allowed, top_k=1) == [0, 0, 0, 1]
    assert probabilities(allowed, min_p=0.4) == shares_of(0, 0, 0.3, 0.6)


@pytest.mark.parametrize(
    "config", [{}, {"top_k": 3}, {"top_p": 0.01}, {"min_p": 0.9}, {"temperature": 0.0}, {"temperature": 1e-300}]
)
def test_one_token_that_is_allowed(config: dict[str, Any]) -> None:
    assert probabilities([True, False, False, False], **config) == [1, 0, 0, 0]


def test_the_coldest_temperature_is_greedy() -> None:
    logits = torch.tensor([[0.0, 89.0, -89.0, 88.9]])
    scores = process_logits(logits, SamplingConfig(temperature=1e-300), allowed=everything(4))
    assert scores.softmax(-1).tolist() == [[0, 1, 0, 0]]


SEEN = torch.tensor([[True, False, True, False, True, True]])
SIGNS = torch.tensor([[4.0, 3.0, -1.0, -1.5, 0.0, 0.5]])


def test_tokens_that_came_score_less() -> None:
    def scores(penalty: float, **config: Any) -> list[float]:
        options = SamplingConfig(repetition_penalty=penalty, **config)
        return process_logits(SIGNS, options, allowed=everything(6), seen=SEEN)[0].tolist()

    assert scores(2.0) == [2.0, 3.0, -2.0, -1.5, 0.0, 0.25]
    assert scores(0.5) == [8.0, 3.0, -0.5, -1.5, 0.0, 1.0]
    assert scores(1.0) == SIGNS[0].tolist()
    assert scores(2.0, temperature=0.0) == [2.0, 3.0, -2.0, -1.5, 0.0, 0.25]
    assert scores(2.0, temperature=0.5) == [4.0, 6.0, -4.0, -3.0, 0.0, 0.5]
    assert scores(2.0, top_k=1) == [-torch.inf, 3.0, *[-torch.inf] * 4]


def test_each_row_has_seen_its_own() -> None:
    seen = torch.stack([SEEN[0], ~SEEN[0]])
    greedy = SamplingConfig(temperature=0.0, repetition_penalty=2.0)
    logits = SIGNS.expand(2, -1)
    allowed = everything(6)
    assert process_logits(logits, greedy, allowed=allowed, seen=seen)[1].tolist() == [4.0, 1.5, -1.0, -3.0, 0.0, 0.5]
    assert sample(logits, greedy, allowed=allowed, generators=2 * [generator()], seen=seen).tolist() == [1, 0]


def test_a_penalty_needs_to_know_what_came() -> None:
    config = SamplingConfig(repetition_penalty=1.25)
    with pytest.raises(ValueError, match=r"^repetition_penalty=1.25 needs `seen`, the tokens that already came$"):
        process_logits(SIGNS, config, allowed=everything(6))


def test_greedy_scores_are_the_logits_of_what_is_allowed() -> None:
    config = SamplingConfig(temperature=0.0, top_k=1, top_p=0.01, min_p=0.9)
    scores = process_logits(SIGNS, config, allowed=~SEEN)
    assert scores.tolist() == [[-torch.inf, 3.0, -torch.inf, -1.5, -torch.inf, -torch.inf]]


def test_scores_are_float32_and_logits_stay_as_they_are() -> None:
    config = SamplingConfig(temperature=0.5, top_k=3, top_p=0.9, min_p=0.01, repetition_penalty=2.0)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        logits = SIGNS.to(dtype)
        assert process_logits(logits, config, allowed=~SEEN, seen=SEEN).dtype == torch.float32
        assert torch.equal(logits, SIGNS.to(dtype))


class Operations(TorchFunctionMode):
    """Names of what was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__)
        return func(*args, **kwargs or {})


def test_what_is_off_costs_nothing() -> None:
    allowed = ~SEEN
    with Operations() as operations:
        process_logits(SIGNS, SamplingConfig(), allowed=allowed, seen=SEEN)
    computed = [name for name in operations.names if not name.startswith("__get")]  # shapes, read by the checks
    assert computed == ["float", "__invert__", "masked_fill"]


def test_temperature_zero_is_the_likeliest_allowed() -> None:
    allowed = torch.tensor([[True, False, True, True]])
    source = generator()
    before = source.get_state()
    tokens = sample(PROBABILITIES.log(), SamplingConfig(temperature=0.0), allowed=allowed, generators=[source, source])
    assert tokens.tolist() == [3, 0]
    assert torch.equal(source.get_state(), before)


def test_each_row_has_what_it_may() -> None:
    allowed = torch.tensor([[True, False, False, False], [False, False, False, True]])
    for temperature in (0.0, 1.0):
        config = SamplingConfig(temperature=temperature)
        tokens = sample(PROBABILITIES.log(), config, allowed=allowed, generators=[generator(), generator()])
        assert tokens.tolist() == [0, 3]


def test_draws_have_the_shares() -> None:
    draws, source = 5_000, generator()
    logits = PROBABILITIES[:1].log().expand(draws, -1)
    config = SamplingConfig(temperature=0.5)
    tokens = sample(logits, config, allowed=everything(4), generators=[source] * draws)
    expected = torch.tensor(probabilities(temperature=0.5))
    torch.testing.assert_close(tokens.bincount(minlength=4) / draws, expected, atol=0.03, rtol=0)


def test_a_row_is_one_draw_of_its_generator() -> None:
    """Continuations that somebody made with a seed stay what they are."""
    logits, ours, theirs = torch.randn(13, 1, 101, generator=generator(7)), generator(3), generator(3)
    tokens = [sample(step, SamplingConfig(), allowed=everything(101), generators=[ours]).item() for step in logits]
    assert tokens == [torch.multinomial(step.softmax(-1), 1, generator=theirs).item() for step in logits]


@pytest.mark.parametrize(
    "config",
    [SamplingConfig(), SamplingConfig(temperature=3.0, top_k=83, top_p=0.9, min_p=0.001, repetition_penalty=1.3)],
)
def test_a_row_does_not_depend_on_the_others(config: SamplingConfig) -> None:
    logits = torch.randn(5, 97, generator=generator())
    allowed = torch.rand(5, 97, generator=generator(1)) < 0.8
    seen = torch.rand(5, 97, generator=generator(2)) < 0.5

    def draw(*rows: int) -> list[list[int]]:
        """Three tokens in turn for each of `rows`."""
        index, sources = list(rows), [generator(11 + row) for row in rows]
        steps = [
            sample(logits[index], config, allowed=allowed[index], generators=sources, seen=seen[index])
            for _ in range(3)
        ]
        return torch.stack(steps, 1).tolist()

    together = draw(0, 1, 2, 3, 4)
    assert len({tuple(tokens) for tokens in together}) == 5
    assert draw(3) == together[3:4]
    assert draw(4, 2, 0) == [together[4], together[2], together[0]]


def test_same_seed_same_tokens() -> None:
    logits = torch.zeros(11, 101)

    def draw(seed: int) -> list[int]:
        return sample(logits, SamplingConfig(), allowed=everything(101), generators=[generator(seed)] * 11).tolist()

    assert draw(3) == draw(3) != draw(5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_generator_a_row(count: int, temperature: float) -> None:
    with pytest.raises(ValueError, match=f"^got {count} generators for 2 rows; give one a row$"):
        sample(
            PROBABILITIES.log(),
            SamplingConfig(temperature=temperature),
            allowed=everything(4),
            generators=[generator()] * count,
        )


def test_log_probabilities_are_the_models_own() -> None:
    found = log_probabilities(PROBABILITIES.log() + 7.0, torch.tensor([3, 1]))
    torch.testing.assert_close(found, torch.tensor([math.log(0.3), math.log(0.2)]))
    logits = 900 + 7 * torch.randn(5, 97, generator=generator()).bfloat16()
    tokens = torch.arange(5) * 17
    exact = logits.double().softmax(-1)[range(5), tokens].log()
    torch.testing.assert_close(log_probabilities(logits, tokens), exact.float(), atol=1e-5, rtol=0)
