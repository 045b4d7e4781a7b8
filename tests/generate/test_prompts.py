"""Positions that the caller gives: which tokens they lead to, and what is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from perceivers.data.batch import SOS
from perceivers.generate.config import DecodingConfig, SamplingConfig
from perceivers.generate.decode import decode
from perceivers.generate.loaded import Loaded
from perceivers.generate.prompts import prompt_positions
from perceivers.models.build import build
from perceivers.models.ecp_config import ECPConfig
from perceivers.models.perceiver_ar import PerceiverAR
from perceivers.models.perceiver_ar_config import PerceiverARConfig, TablePositions

CONFIG = PerceiverARConfig(
    vocab_size=17, max_seq_len=11, num_latents=11, dim=14, depth=1, heads=7, cross_heads=2, zero_logits=False
)
PICTURE = replace(CONFIG, positions=TablePositions(table="random", learned=True, sizes=(5, 7)))
GREEDY = SamplingConfig(temperature=0.0)
SLOW = DecodingConfig(cached=False)
PROMPTS = [[SOS, 3, 5, 7], [SOS]]
NEW = 8


def fresh(config: PerceiverARConfig = PICTURE) -> PerceiverAR:
    torch.manual_seed(5)
    model = build(config).double().eval()
    assert isinstance(model, PerceiverAR)
    with torch.no_grad():
        model.logits.weight.mul_(5)
    return model


def places(config: PerceiverARConfig, count: int, seed: int) -> np.ndarray:
    sizes = config.table_sizes or (1_000_003,)
    return np.random.default_rng(seed).integers(0, sizes, (count, len(sizes)))


def greedy_by_hand(model: PerceiverAR, prompt: list[int], positions: np.ndarray) -> list[int]:
    tokens = list(prompt)
    for _ in range(NEW):
        newest = slice(max(0, len(tokens) - model.config.max_seq_len), len(tokens))
        given, row = torch.from_numpy(positions[newest])[None], torch.tensor([tokens[newest]])
        with torch.no_grad():
            logits = model(row, positions=given, num_latents=min(model.config.num_latents, row.shape[1]))[0, -1]
        tokens.append(int(logits[3:].argmax()) + 3)
    return tokens[len(prompt) :]


def draw(model: PerceiverAR, prompts: list[list[int]], decoding: DecodingConfig, **options: Any) -> list[list[int]]:
    options = {"max_tokens": NEW, "sampling": GREEDY, "stop_at_eos": False} | options
    return [
        list(row) for row in zip(*(s.tokens for s in decode(model, prompts, decoding=decoding, **options)), strict=True)
    ]


@pytest.mark.parametrize("decoding", [DecodingConfig(prompt_latents=4), SLOW])
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, query_offset=True),
        PICTURE,
        replace(CONFIG, positions=TablePositions(sizes=(3, 5, 7))),
        replace(CONFIG, positions=TablePositions(table="fourier", sizes=(41,))),
    ],
)
def test_every_token_is_that_of_a_full_pass_at_these_positions(
    config: PerceiverARConfig, decoding: DecodingConfig
) -> None:
    """Each row at its own, all of them latents, as cached ones are until they are rebuilt."""
    model = fresh(config)
    given = [places(config, len(prompt) + NEW - 1, seed) for seed, prompt in enumerate(PROMPTS)]
    drawn = draw(model, PROMPTS, decoding, positions=given)
    assert drawn == [greedy_by_hand(model, prompt, row) for prompt, row in zip(PROMPTS, given, strict=True)]
    assert drawn != draw(model, PROMPTS, decoding, positions=[np.roll(row, 3, 0) for row in given])


def test_past_the_models_input_each_token_keeps_its_position() -> None:
    model, prompts = fresh(replace(PICTURE, num_latents=5)), [[SOS, *range(3, 17), 5, 7], [SOS]]
    given = [places(PICTURE, len(prompt) + NEW, seed) for seed, prompt in enumerate(prompts)]
    drawn = draw(model, prompts, SLOW, positions=given)
    assert drawn == [greedy_by_hand(model, prompt, row) for prompt, row in zip(prompts, given, strict=True)]


@pytest.mark.parametrize("decoding", [DecodingConfig(), SLOW])
def test_any_array_of_whole_numbers_goes(decoding: DecodingConfig) -> None:
    model, prompts = fresh(PICTURE), [[SOS, 3, 5], [SOS, 7, 3]]
    given = places(PICTURE, 2 * (3 + NEW - 1), 0).reshape(2, -1, 2)
    expected = draw(model, prompts, decoding, positions=list(given))
    for same in (given, torch.from_numpy(given), given.astype(np.uint8), given.tolist()):
        assert draw(model, prompts, decoding, positions=same) == expected
    one_axis, counted = fresh(CONFIG), [range(1, 3 + NEW)] * 2
    assert draw(one_axis, prompts, decoding, positions=counted) == draw(one_axis, prompts, decoding)


def test_samples_of_a_prompt_share_its_positions() -> None:
    model = fresh(replace(PICTURE, num_latents=5))
    given = [places(PICTURE, len(prompt) + NEW - 1, seed) for seed, prompt in enumerate(PROMPTS)]
    drawn = draw(model, PROMPTS, DecodingConfig(), positions=given, samples=2)
    assert drawn[::2] == drawn[1::2] == draw(model, PROMPTS, DecodingConfig(), positions=given)


def test_raw_ids_have_the_start_token_in_front_and_so_have_positions() -> None:
    model, prompt = fresh(), PROMPTS[0]
    loaded, given = Loaded(model, "ids"), places(PICTURE, len(prompt) + NEW - 1, 0)
    raw = [token - 3 for token in prompt[1:]]
    [expected] = draw(model, [prompt], DecodingConfig(), positions=[given])
    options: dict[str, Any] = {"max_tokens": NEW, "sampling": GREEDY, "stop_at_end": False}
    found = [token + 3 for token in loaded.generate(raw, positions=given, **options)]
    assert found == expected
    assert [token + 3 for token in loaded.stream(raw, positions=given, **options)] == expected
    [row] = loaded.generate_many([raw], positions=[given], **options)
    assert [token + 3 for token in row.ids] == expected
    with pytest.raises(ValueError, match=r"10 positions for a prompt of 4 tokens .* and 8 new ones: give at least 11"):
        loaded.generate(raw, positions=given[1:], **options)


GIVEN = places(PICTURE, 8, 0)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (None, r"positions have 2 axes, which can't be counted: pass positions=, .* \[tokens, 2\] that reaches over"),
        ([GIVEN], "positions of 1 rows for 2 prompts"),
        ([GIVEN, GIVEN[:, :1]], r"positions of a prompt have shape \[8, 1\]: this model reads \[tokens, 2\]"),
        ([GIVEN, GIVEN[:, 0]], r"have shape \[8\]: this model reads \[tokens, 2\]"),
        ([GIVEN[:7], GIVEN], r"7 positions for a prompt of 4 tokens \(the start token counts\) and 5 new ones: .* 8"),
        ([GIVEN, GIVEN + 0.0], "positions are float64 numbers: give whole ones"),
        ([GIVEN, GIVEN * np.nan], "positions are float64 numbers: give whole ones"),
        (
            [GIVEN, GIVEN.astype(np.uint64) + np.uint64(2**63)],
            "positions reach to 9223372036854775.*, more than an int64",
        ),
        ([GIVEN, GIVEN > 0], "positions are bool numbers: give whole ones"),
        ([GIVEN, torch.from_numpy(GIVEN).double()], "positions are float64 numbers: give whole ones"),
        (
            [GIVEN, GIVEN + np.array([0, 7])],
            r"positions of axis 1 reach from 7 to \d+, but the model's table has rows 0 to 6",
        ),
        ([GIVEN - np.array([1, 0]), GIVEN], r"positions of axis 0 reach from -1 to"),
    ],
)
def test_positions_that_do_not_fit(positions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(fresh(), PROMPTS, max_tokens=5, positions=positions)


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, position_source="start"),
        replace(CONFIG, position_source="end"),
        ECPConfig(vocab_size=17, max_seq_len=11, segment_len=3, dim=14, depth=2, heads=7),
    ],
)
def test_a_model_that_counts_takes_none(config: Any) -> None:
    counted = [[1, 2, 3, 4], [1]]
    with pytest.raises(ValueError, match="this model counts its positions for itself"):
        decode(build(config), PROMPTS, max_tokens=1, positions=counted)
    assert prompt_positions(None, PROMPTS, config, 1) is None


@pytest.mark.parametrize("bad", [3.0, 3.7, float("nan"), np.float32(3), "3", None, True, np.True_, torch.tensor(True)])
@pytest.mark.usefixtures("unchecked")
def test_ids_are_whole_numbers(bad: Any) -> None:
    with pytest.raises(ValueError, match="ids are whole numbers"):
        Loaded(fresh(CONFIG), "ids").generate([5, bad], max_tokens=1)
    with pytest.raises(ValueError, match="ids are whole numbers"):
        decode(fresh(CONFIG), [[SOS, bad]], max_tokens=1)


def test_ids_of_any_integer_type() -> None:
    loaded = Loaded(fresh(CONFIG), "ids")
    options: dict[str, Any] = {"max_tokens": 5, "sampling": GREEDY}
    expected = loaded.generate([5, 7], **options).tolist()
    for prompt in (np.array([5, 7], np.uint16), torch.tensor([5, 7]), (5, 7)):
        assert loaded.generate(prompt, **options).tolist() == expected
