import shutil
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from perceivers.models.build import build
from perceivers.models.cached import CachedPerceiverAR, why_not_cached
from perceivers.models.perceiver_ar import PerceiverAR
from perceivers.models.perceiver_ar_config import (
    LearnedQueries,
    MLPQueries,
    PerceiverARConfig,
    RotaryPositions,
    TablePositions,
)

CONFIG = PerceiverARConfig(
    vocab_size=17, max_seq_len=23, num_latents=7, dim=14, depth=2, heads=7, cross_heads=2, zero_logits=False
)
VARIANTS = {
    "rotary": CONFIG,
    "rotary counted": replace(CONFIG, position_source="start"),
    "rotary from the end": replace(CONFIG, position_source="end"),
    "rotary negative": replace(CONFIG, position_source="negative_end"),
    "some heads rotate": replace(CONFIG, positions=RotaryPositions(head_share=0.5, channel_share=0.7)),
    "offset queries": replace(CONFIG, query_offset=True),
    "table": replace(CONFIG, positions=TablePositions(sizes=(99,))),
    "table counted": replace(CONFIG, positions=TablePositions(), position_source="start"),
    "extra cross-attends": replace(CONFIG, extra_cross_attends=(0, 1)),
    "no first cross-attend": replace(CONFIG, initial_cross_attend=False, extra_cross_attends=(1,)),
    "plain decoder": replace(CONFIG, initial_cross_attend=False),
    "two latents a position": replace(CONFIG, latents_per_position=2),
    "shared learned query": replace(CONFIG, queries=LearnedQueries(shared=True)),
    "MLP queries": replace(CONFIG, queries=MLPQueries()),
}
PROMPTS = [[2, *range(3, 12)], [2], [2, 5, 9]]


def fresh(config: PerceiverARConfig, dtype: torch.dtype = torch.float64) -> PerceiverAR:
    torch.manual_seed(5)
    model = build(config).to(dtype).eval()
    assert isinstance(model, PerceiverAR)
    return model


COUNTED = torch.arange(1, 99)[:, None]


@torch.no_grad()
def full(
    model: PerceiverAR, row: list[int], *, seq_len: int, num_latents: int, positions: torch.Tensor = COUNTED
) -> torch.Tensor:
    """Logits after a row, from a forward pass over its newest tokens."""
    window = row[-seq_len:]
    positions = positions[len(row) - len(window) : len(row)][None]
    return model(torch.tensor([window]), positions=positions, num_latents=min(num_latents, len(window)))[0, -1]


def largest_error(
    run: CachedPerceiverAR,
    prompts: list[list[int]],
    *,
    tokens: int,
    samples: int = 1,
    positions: list[torch.Tensor] | None = None,
) -> float:
    """Difference from full passes with the same latents over the same input, while random tokens are added.

    Looked for at every second step, which meets rebuilds at all distances.
    """
    rows = [list(prompt) for prompt in prompts for _ in range(samples)]
    given = [row for row in positions or [COUNTED] * len(prompts) for _ in range(samples)]
    generator = torch.Generator().manual_seed(1)
    logits = run.start(prompts, max_tokens=tokens, samples=samples, positions=positions)
    latents, worst = run.prompt_latents, 0.0
    for step in range(tokens):
        seq_len = run.end + run.shared_end - run.shared_start
        assert seq_len <= run.config.max_seq_len
        if step % 2 == 0:
            for got, row, places in zip(logits, rows, given, strict=True):
                expected = full(run.model, row, seq_len=seq_len, num_latents=latents, positions=places)
                worst = max(worst, float((got - expected).abs().max()))
        if step == tokens - 1:
            return worst
        new = torch.randint(3, 17, (len(rows),), generator=generator)
        for row, token in zip(rows, new.tolist(), strict=True):
            row.append(token)
        latents = run.refill if run.until_refill == 0 else latents + 1
        logits = run.feed(new)
    raise AssertionError


@pytest.mark.parametrize(("name", "samples"), [("rotary", 1), ("rotary", 3), *((name, 2) for name in VARIANTS)])
def test_kept_keys_give_what_full_passes_give(name: str, samples: int) -> None:
    """Through six rebuilds, with rows of different lengths; all but one variant also past the model's input length."""
    run = CachedPerceiverAR(fresh(VARIANTS[name]), refill=3, prompt_latents=2)
    tokens = 14 if name == "table counted" else 31
    assert largest_error(run, PROMPTS, tokens=tokens, samples=samples) < 1e-12


FROM_DATA = {
    "rotary": (CONFIG, 1),
    "offset queries": (replace(CONFIG, query_offset=True), 1),
    "sinusoidal": (replace(CONFIG, positions=TablePositions(sizes=(29,))), 1),
    "two axes": (replace(CONFIG, positions=TablePositions(table="random", learned=True, sizes=(29, 5))), 2),
    "three axes": (replace(CONFIG, positions=TablePositions(table="fourier", sizes=(29, 5, 31))), 3),
    "two latents a position": (
        replace(CONFIG, latents_per_position=2, positions=TablePositions(table="random", sizes=(7, 5))),
        2,
    ),
    "extra cross-attends": (replace(CONFIG, extra_cross_attends=(0, 1)), 1),
}


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("name", FROM_DATA)
def test_positions_of_the_data_are_those_that_are_given(name: str, samples: int) -> None:
    """Of any number of axes, in no order, other ones in each row, far past the model's input length."""
    config, axes = FROM_DATA[name]
    run = CachedPerceiverAR(fresh(config), refill=3, prompt_latents=2)
    generator = torch.Generator().manual_seed(3)
    low, sizes = (0, config.table_sizes) if config.table_sizes else (-1_000_000, (1_000_000,))
    needed = [len(prompt) + 30 for prompt in PROMPTS]
    positions = [
        torch.stack([torch.randint(low, size, (count,), generator=generator) for size in sizes], -1) for count in needed
    ]
    assert all(row.shape == (count, axes) for row, count in zip(positions, needed, strict=True))
    assert largest_error(run, PROMPTS, tokens=31, samples=samples, positions=positions) < 1e-12


def test_of_a_prompt_that_is_too_long_the_newest_positions_are_read() -> None:
    run = CachedPerceiverAR(fresh(CONFIG), refill=3)
    prompts = [[2, *range(3, 16), *range(3, 17)], [2, 5]]
    positions = [torch.arange(500, 0, -1)[:, None] ** 2 % 71, torch.arange(-9, 40)[:, None] * 5]
    assert largest_error(run, prompts, tokens=17, samples=2, positions=positions) < 1e-12


def test_given_positions_that_count_are_counted_ones() -> None:
    run = CachedPerceiverAR(fresh(CONFIG), refill=3)
    counted = [run.start(PROMPTS, max_tokens=9), *(run.feed(torch.tensor([3, 4, 5])) for _ in range(8))]
    given = [run.start(PROMPTS, max_tokens=9, positions=[COUNTED] * 3)]
    given += [run.feed(torch.tensor([3, 4, 5])) for _ in range(8)]
    assert torch.equal(torch.stack(given), torch.stack(counted))


@pytest.mark.parametrize(
    ("num_latents", "refill", "prompt_latents"), [(7, 3, 1), (7, 6, 7), (2, 1, 2), (1, 1, 1), (23, 11, 5), (11, 2, 3)]
)
def test_every_setting_of_the_dial(num_latents: int, refill: int, prompt_latents: int) -> None:
    run = CachedPerceiverAR(fresh(CONFIG), num_latents=num_latents, refill=refill, prompt_latents=prompt_latents)
    assert largest_error(run, [[2, *range(3, 16)]], tokens=29) < 1e-12
    assert largest_error(run, PROMPTS, tokens=29) < 1e-12


@pytest.mark.parametrize("samples", [1, 2])
def test_single_precision(samples: int) -> None:
    run = CachedPerceiverAR(fresh(CONFIG, torch.float32), refill=3)
    assert largest_error(run, PROMPTS, tokens=29, samples=samples) < 1e-5


def test_a_prompt_of_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perceivers.models.cached.CHUNK", 3)
    assert largest_error(CachedPerceiverAR(fresh(CONFIG)), PROMPTS, tokens=11) < 1e-12


def test_prompts_longer_than_the_input() -> None:
    """The newest tokens are read, so many that those until the first rebuild have room."""
    run = CachedPerceiverAR(fresh(CONFIG), refill=3)
    assert largest_error(run, [[2, *range(3, 16), *range(3, 17)], [2, 5]], tokens=17, samples=2) < 1e-12
    run.start([[2] * 40], max_tokens=1)
    assert run.end == 23
    run.start([[2] * 40], max_tokens=3)
    assert run.end == 21
    run.start([[2] * 40], max_tokens=30)
    assert run.end == 19


def test_a_cache_of_lower_precision() -> None:
    model = fresh(CONFIG, torch.float32)
    exact, rough = CachedPerceiverAR(model), CachedPerceiverAR(model, dtype=torch.bfloat16)
    for samples in (1, 2):
        one, other = (run.start(PROMPTS, max_tokens=5, samples=samples) for run in (exact, rough))
        assert 0 < (one - other).abs().max() < 0.05
        assert rough.nbytes * 2 == exact.nbytes


def test_samples_keep_their_prompt_once() -> None:
    prompt = [[2] * 19]
    run = CachedPerceiverAR(fresh(CONFIG), num_latents=3)
    run.start(prompt, max_tokens=1)
    alone = sum(cache.nbytes for cache in run.context.values())
    run.start(prompt, max_tokens=1, samples=5)
    shared = sum(cache.nbytes for cache in [*run.shared.values(), *run.context.values()])
    assert shared == alone + 5 * alone // 19


def test_nothing_is_allocated_while_tokens_come() -> None:
    run = CachedPerceiverAR(fresh(CONFIG), refill=3)
    run.start([[2, 3]], max_tokens=40)
    buffers = [cache.keys.data_ptr() for cache in [*run.context.values(), *run.layers]]
    for _ in range(39):
        run.feed(torch.tensor([5]))
    assert buffers == [cache.keys.data_ptr() for cache in [*run.context.values(), *run.layers]]
    with pytest.raises(ValueError, match="as many tokens as max_tokens said have come"):
        run.feed(torch.tensor([5]))


COMPILED = """
import torch
from perceivers.generate.lean import lighten
from perceivers.models.build import build
from perceivers.models.cached import CachedPerceiverAR
from perceivers.models.perceiver_ar_config import PerceiverARConfig

config = PerceiverARConfig(
    vocab_size=17, max_seq_len=13, num_latents=5, dim=14, depth=1, heads=7, cross_heads=2, zero_logits=False
)
torch.manual_seed(5)
model = build(config).eval()
for weights, tolerance in (("float32", 1e-5), ("int8", 0.03)):
    lighten(model, weights)
    plain, compiled = CachedPerceiverAR(model), CachedPerceiverAR(model, compiled=True)
    for run in (plain, compiled):
        run.start([[2, 5, 7]], max_tokens=9)
    for token in range(3, 11):
        one, other = (run.feed(torch.tensor([token])) for run in (plain, compiled))
        assert (one - other).abs().max() < tolerance, (weights, token, (one - other).abs().max())
assert not torch._dynamo.utils.counters["graph_break"]
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_step_says_the_same() -> None:
    """In a process of its own: annotations that are checked at run time can't be compiled."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True, timeout=900)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"positions": TablePositions(), "position_source": "end"}, "its position tables count back from the end"),
        ({"queries": LearnedQueries()}, "its queries are learned by distance from the end"),
    ],
)
def test_models_whose_keys_change_with_every_token(changes: dict[str, Any], reason: str) -> None:
    config = replace(CONFIG, **changes)
    assert reason in str(why_not_cached(config))
    with pytest.raises(ValueError, match=f"can't be kept: {reason}.*; generate without a cache"):
        CachedPerceiverAR(fresh(config))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_latents": 24}, r"num_latents=24 must lie in 1\.\.23"),
        ({"num_latents": 0}, r"num_latents=0 must lie in 1\.\.23"),
        ({"refill": 7}, "refill=7 must be at least 1 and less than num_latents=7"),
        ({"num_latents": 5, "refill": 5}, "refill=5 must be at least 1 and less than num_latents=5"),
        ({"prompt_latents": 8}, r"prompt_latents=8 must lie in 1\.\.7"),
    ],
)
def test_numbers_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CachedPerceiverAR(fresh(CONFIG), **options)


def test_a_table_counted_from_the_start_ends() -> None:
    run = CachedPerceiverAR(fresh(VARIANTS["table counted"]))
    run.start([[2] * 20], max_tokens=5)
    message = r"19 tokens and 6 new ones pass .* at most 5 new tokens, or turn the cache off"
    with pytest.raises(ValueError, match=message):
        run.start([[2] * 20], max_tokens=6)
