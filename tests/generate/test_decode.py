from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from perceivers.data.batch import EOS, PAD, SOS
from perceivers.generate.config import SamplingConfig
from perceivers.generate.decode import decode
from perceivers.models.build import build
from perceivers.models.config import LearnedQueries, MLPQueries, PerceiverARConfig, TablePositions

CONFIG = PerceiverARConfig(
    vocab_size=17, max_seq_len=11, num_latents=5, dim=14, depth=2, heads=7, cross_heads=2, zero_logits=False
)
GREEDY = SamplingConfig(temperature=0.0)
PROMPTS = [[SOS], [SOS, 7], [SOS, 3, 5, 7, 11], [SOS, *range(3, 13)], [SOS, *range(3, 17), *range(3, 13)]]
"""One token; fewer than latents; as many; as many as inputs; more."""


def fresh(config: PerceiverARConfig = CONFIG, *, favour: int | None = None) -> nn.Module:
    """A model that hardly repeats itself, with all but certainty of token `favour`."""
    torch.manual_seed(5)
    model = build(config).eval()
    with torch.no_grad():
        model.logits.weight.mul_(5)  # pyright: ignore
        if favour is not None:
            model.logits.bias[favour] += 100  # pyright: ignore
    return model


def logits_by_hand(model: nn.Module, tokens: list[int], *, num_latents: int = 5) -> torch.Tensor:
    first = max(0, len(tokens) - 11)
    window = torch.tensor([tokens[first:]])
    positions = torch.arange(first + 1, len(tokens) + 1)[None, :, None]
    with torch.no_grad():
        return model(window, positions=positions, num_latents=min(num_latents, window.shape[1]))[0, -1]


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
@pytest.mark.parametrize("num_latents", [None, 1, 3])
def test_greedy_is_the_likeliest_of_each_full_forward(prompt: list[int], num_latents: int | None) -> None:
    model = fresh()
    tokens = list(prompt)
    drawn = list(decode(model, prompt, max_tokens=13, sampling=GREEDY, num_latents=num_latents, stop_at_eos=False))
    for token in drawn:
        logits = logits_by_hand(model, tokens, num_latents=num_latents or 5)
        logits[[PAD, EOS, SOS]] = -torch.inf
        assert token == int(logits.argmax())
        tokens.append(token)
    assert len(drawn) == 13
    assert len(set(drawn)) > 2


@pytest.mark.parametrize("changes", [{}, {"positions": TablePositions()}, {"queries": MLPQueries()}])
def test_one_forward_pass_says_the_same(changes: dict[str, Any]) -> None:
    """Where every position is a latent, all tokens can be had from one pass over the result."""
    model = fresh(replace(CONFIG, num_latents=11, **changes))
    drawn = list(decode(model, [SOS, 5], max_tokens=9, sampling=GREEDY, stop_at_eos=False))
    tokens = torch.tensor([[SOS, 5, *drawn]])
    with torch.no_grad():
        logits = model(tokens, positions=torch.arange(1, 12)[None, :, None], num_latents=11)[0]
    logits[:, [PAD, EOS, SOS]] = -torch.inf
    assert logits.argmax(-1)[1:-1].tolist() == drawn


def test_learned_queries_begin_with_few_tokens() -> None:
    model = fresh(replace(CONFIG, queries=LearnedQueries()))
    tokens = [SOS]
    for token in decode(model, tokens.copy(), max_tokens=13, sampling=GREEDY, stop_at_eos=False):
        assert token == int(logits_by_hand(model, tokens)[3:].argmax()) + 3
        tokens.append(token)
    assert len(tokens) == 14


def test_same_seed_same_tokens() -> None:
    model = fresh()

    def draw(seed: int) -> list[int]:
        return list(decode(model, [SOS], max_tokens=11, sampling=SamplingConfig(seed=seed, temperature=3.0)))

    assert draw(3) == draw(3) != draw(5)


def test_a_longer_draw_begins_with_a_shorter_one() -> None:
    model = fresh()
    short, long = (list(decode(model, [SOS], max_tokens=n, stop_at_eos=False)) for n in (7, 13))
    assert long[:7] == short


def test_the_end_ends() -> None:
    model = fresh(favour=EOS)
    assert list(decode(model, [SOS, 7], max_tokens=7)) == []
    kept = list(decode(model, [SOS, 7], max_tokens=7, stop_at_eos=False))
    assert len(kept) == 7
    assert EOS not in kept


@pytest.mark.parametrize("special", [PAD, SOS])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_padding_and_start_are_never_drawn(special: int, temperature: float) -> None:
    drawn = list(
        decode(
            fresh(favour=special),
            [SOS],
            max_tokens=7,
            sampling=SamplingConfig(temperature=temperature),
            stop_at_eos=False,
        )
    )
    assert len(drawn) == 7
    assert min(drawn) >= 3


def test_nothing_to_draw() -> None:
    assert list(decode(fresh(), [SOS], max_tokens=0)) == []


def test_tokens_come_one_by_one() -> None:
    stream = decode(fresh(), [SOS], max_tokens=10**9, stop_at_eos=False)
    assert len([next(stream) for _ in range(3)]) == 3
    stream.close()  # pyright: ignore


def test_a_constraint_sees_all_raw_ids_and_decides() -> None:
    seen: list[list[int]] = []

    def even(ids: Any) -> np.ndarray:
        seen.append(list(ids))
        return np.arange(14) % 2 == 0

    drawn = list(decode(fresh(), [SOS, 8, 5], max_tokens=3, constraint=even, stop_at_eos=False))
    assert all((token - 3) % 2 == 0 for token in drawn)
    assert seen == [[5, 2], [5, 2, drawn[0] - 3], [5, 2, drawn[0] - 3, drawn[1] - 3]]


def test_no_gradients_and_half_precision() -> None:
    model = fresh()
    assert len(list(decode(model, [SOS], max_tokens=3, stop_at_eos=False, precision="bfloat16"))) == 3
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, positions=TablePositions()),
        replace(CONFIG, positions=TablePositions(sizes=(12,))),
    ],
)
def test_a_table_of_positions_ends(config: PerceiverARConfig) -> None:
    """Rows are 0 to 11, and the last token drawn is never read."""
    model = fresh(config)
    assert len(list(decode(model, [SOS, 5], max_tokens=10, stop_at_eos=False))) == 10
    with pytest.raises(ValueError, match=r"2 tokens and 11 new ones pass position 11, .* at most 10 new tokens"):
        list(decode(model, [SOS, 5], max_tokens=11))
    with pytest.raises(ValueError, match="ask for at most 0 new tokens"):
        list(decode(model, [SOS] * 20, max_tokens=1))


def test_a_table_of_places_in_the_window_has_no_end() -> None:
    model = fresh(replace(CONFIG, positions=TablePositions(), position_source="end"))
    assert len(list(decode(model, [SOS], max_tokens=20, stop_at_eos=False))) == 20


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is empty: give at least the start token"),
        ([SOS, 17], r"the prompt holds id 17, the model knows 0\.\.16"),
        ([SOS, -1, 3], r"the prompt holds id -1, the model knows 0\.\.16"),
    ],
)
def test_prompts_that_the_model_can_not_read(prompt: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(decode(fresh(), prompt, max_tokens=1))


def test_a_model_of_images() -> None:
    model = fresh(replace(CONFIG, positions=TablePositions(sizes=(4, 4, 5))))
    with pytest.raises(ValueError, match="positions have 3 axes; only sequences can be generated"):
        list(decode(model, [SOS], max_tokens=1))
