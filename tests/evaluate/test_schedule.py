from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from perceivers.data.batch import TokenBatch
from perceivers.evaluate.schedule import forced_log_probs, predictions_a_rebuild, score_schedule
from perceivers.generate.decode import FullForward
from perceivers.models.build import build
from perceivers.models.cached import CachedPerceiverAR
from perceivers.models.perceiver_ar import PerceiverAR
from perceivers.models.perceiver_ar_config import LearnedQueries, PerceiverARConfig, RotaryPositions, TablePositions

CONFIG = PerceiverARConfig(
    vocab_size=17, max_seq_len=23, num_latents=7, dim=14, depth=2, heads=7, cross_heads=2, zero_logits=False
)
VARIANTS = {
    "rotary": CONFIG,
    "rotary from the end": replace(CONFIG, position_source="end"),
    "some heads rotate": replace(CONFIG, positions=RotaryPositions(head_share=0.5, channel_share=0.7)),
    "table": replace(CONFIG, positions=TablePositions(sizes=(61,))),
    "extra cross-attends": replace(CONFIG, extra_cross_attends=(0, 1)),
    "two latents a position": replace(CONFIG, latents_per_position=2),
    "shared learned query": replace(CONFIG, queries=LearnedQueries(shared=True)),
}
BEFORE, TARGETS = 5, 17
"""Tokens of the document before the rows, which the model's input never reaches back to; tokens to score."""


def fresh(config: PerceiverARConfig = CONFIG) -> PerceiverAR:
    torch.manual_seed(5)
    model = build(config).double().eval()
    assert isinstance(model, PerceiverAR)
    return model


def documents(count: int = 2) -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [[2, *rng.integers(3, 17, size=BEFORE + 23 + TARGETS - 1).tolist()] for _ in range(count)]


def rows_of(tokens: list[list[int]], before: int = BEFORE) -> TokenBatch:
    cut = torch.tensor(tokens)[:, before:]
    positions = torch.arange(before + 1, before + cut.shape[1] + 1)[None, :, None].expand(len(cut), -1, -1)
    return TokenBatch(cut, positions, torch.full((len(cut),), cut.shape[1]))


def scores_of(model: PerceiverAR, rows: TokenBatch, **options: Any) -> np.ndarray:
    return score_schedule(model, rows, precision="float32", **options)


def sampled(model: PerceiverAR, document: list[int], *, num_latents: int, refill: int, phase: int) -> np.ndarray:
    """Nats of the targets by the sampler, which is fed the true tokens and had its latents rebuilt `phase` before."""
    first = BEFORE + 23 - phase
    run = CachedPerceiverAR(model, num_latents=num_latents, refill=refill, prompt_latents=refill)
    log_probs = forced_log_probs(run, document[:first], document[first:], max_tokens=99)
    return -log_probs[phase:]


@pytest.mark.parametrize(
    ("num_latents", "refill", "phases"),
    [(7, 1, (0, 6)), (7, 2, (3, 0)), (7, 3, (4, 1)), (7, 6, (1, 0)), (2, 1, (1, 0)), (1, 1, (0, 0)), (23, 11, (12, 5))],
)
def test_scores_are_those_of_the_sampler(num_latents: int, refill: int, phases: tuple[int, int]) -> None:
    """The true tokens are fed to the sampler, one by one, through several rebuilds."""
    model, tokens = fresh(), documents()
    scores = scores_of(model, rows_of(tokens), num_latents=num_latents, refill=refill, phases=phases)
    for row, phase in enumerate(phases):
        expected = sampled(model, tokens[row], num_latents=num_latents, refill=refill, phase=phase)
        np.testing.assert_allclose(scores[row], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_of_every_model_that_has_a_cache(name: str) -> None:
    model, tokens = fresh(VARIANTS[name]), documents(1)
    scores = scores_of(model, rows_of(tokens), refill=4, phases=[2])
    expected = sampled(model, tokens[0], num_latents=7, refill=4, phase=2)
    np.testing.assert_allclose(scores[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("queries", [CONFIG.queries, LearnedQueries()])
def test_all_latents_rebuilt_are_full_passes(queries: object) -> None:
    """Also for models whose keys and values can't be kept."""
    model, tokens = fresh(replace(CONFIG, queries=queries)), documents(1)
    expected = forced_log_probs(FullForward(model), tokens[0][: BEFORE + 23], tokens[0][BEFORE + 23 :])
    scores = scores_of(model, rows_of(tokens), refill=7)
    np.testing.assert_allclose(scores[0], -expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("refill", [1, 3, 6])
def test_predictions_from_one_rebuild_to_the_next(refill: int) -> None:
    """The first is by `refill` latents, the last by all, over an input that then is as long as the model allows."""
    run = CachedPerceiverAR(fresh(), refill=refill, prompt_latents=refill)
    document = documents(1)[0] + documents(1)[0]
    run.start([document[:30]], max_tokens=99)
    latents, lengths = [run.latents], [run.end]
    for token in document[30:54]:
        run.feed(torch.tensor([token]))
        latents.append(run.latents)
        lengths.append(run.end)
    count = predictions_a_rebuild(7, refill)
    assert latents[: 2 * count] == [*range(refill, 8)] * 2
    assert lengths[: 2 * count] == [*range(24 - count, 24)] * 2


def test_batches_do_not_matter() -> None:
    model, rows = fresh(), rows_of(documents(3))
    scores = scores_of(model, rows, refill=5, phases=(0, 1, 2))
    for batch_tokens in (1, 53):
        other = scores_of(model, rows, refill=5, phases=(0, 1, 2), batch_tokens=batch_tokens)
        np.testing.assert_allclose(other, scores, rtol=1e-12)


def test_training_goes_on_afterwards() -> None:
    model = fresh(replace(CONFIG, dropout=0.5, prefix_dropout=0.5))
    expected = scores_of(model, rows_of(documents()), refill=3)
    assert not model.training
    model.train()
    assert np.array_equal(scores_of(model, rows_of(documents()), refill=3), expected)
    assert model.training


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    scores_of(fresh(), rows_of(documents()), refill=3, progress=True)
    assert "3 of 7 latents: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"refill": 0}, "refill=0 must be 1 or more"),
        ({}, {"refill": 8}, r"refill=8 must lie in 1\.\.7, the number of latents"),
        ({}, {"refill": 3, "num_latents": 24}, r"num_latents=24 must lie in 1\.\.23, the length of the input"),
        ({}, {"refill": 3, "phases": (0, 5)}, r"phases=\[0, 5\] must be one of 0\.\.4 for each of 2 rows"),
        ({}, {"refill": 3, "phases": (0,)}, r"phases=\[0\] must be one of 0\.\.4 for each of 2 rows"),
        (
            {"queries": LearnedQueries()},
            {"refill": 3},
            "the sampler rebuilds this model's latents at every token: its queries .*: ask for refill=7",
        ),
    ],
)
def test_numbers_that_do_not_fit(changes: dict, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scores_of(fresh(replace(CONFIG, **changes)), rows_of(documents()), **options)


def test_rows_that_are_too_short() -> None:
    with pytest.raises(ValueError, match="rows of 23 to 23 tokens: all need equally many, more than the 23 of"):
        scores_of(fresh(), rows_of(documents(), before=BEFORE + TARGETS), refill=3)
    rows = rows_of(documents())
    with pytest.raises(ValueError, match="rows of 38 to 40 tokens: all need equally many"):
        scores_of(fresh(), replace(rows, lengths=rows.lengths - torch.tensor([0, 2])), refill=3)


def test_nothing_to_force() -> None:
    assert forced_log_probs(FullForward(fresh()), [2], []).shape == (0,)
