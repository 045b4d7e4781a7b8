from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from perceivers.data.batch import EOS, NUM_SPECIAL, PAD, SOS
from perceivers.generate import decode as module
from perceivers.generate.config import DecodingConfig, SamplingConfig
from perceivers.generate.decode import Step, decode, longest_prompt
from perceivers.models.build import build
from perceivers.models.perceiver_ar import PerceiverAR
from perceivers.models.perceiver_ar_config import LearnedQueries, MLPQueries, PerceiverARConfig, TablePositions

CONFIG = PerceiverARConfig(
    vocab_size=17, max_seq_len=11, num_latents=5, dim=14, depth=1, heads=7, cross_heads=2, zero_logits=False
)
GREEDY = SamplingConfig(temperature=0.0)
SLOW = DecodingConfig(cached=False)
PROMPTS = [[SOS], [SOS, 7], [SOS, 3, 5, 7, 11], [SOS, *range(3, 13)], [SOS, *range(3, 17), *range(12, 2, -1)]]
"""One token; fewer than latents; as many; as many as inputs; more."""
FEW = PROMPTS[::2]


def fresh(config: PerceiverARConfig = CONFIG, *, favour: int | None = None, bias: float = 100) -> PerceiverAR:
    """A model that hardly repeats itself, with all but certainty of token `favour`."""
    torch.manual_seed(5)
    model = build(config).double().eval()
    assert isinstance(model, PerceiverAR)
    with torch.no_grad():
        model.logits.weight.mul_(5)
        if favour is not None:
            model.logits.bias[favour] += bias
    return model


def rows_of(steps: list[Step]) -> list[list[int | None]]:
    return [list(row) for row in zip(*(step.tokens for step in steps), strict=True)]


def draw(model: nn.Module, *prompts: list[int], **options: Any) -> list[list[int | None]]:
    """New tokens of each row; no row ends early."""
    return rows_of(list(decode(model, list(prompts), stop_at_eos=False, **options)))


def logits_by_hand(model: PerceiverAR, tokens: list[int], *, num_latents: int | None = None) -> torch.Tensor:
    """Of the token after `tokens`, from a full forward pass over the newest of them."""
    first = max(0, len(tokens) - model.config.max_seq_len)
    window = torch.tensor([tokens[first:]])
    positions = torch.arange(first + 1, len(tokens) + 1)[None, :, None]
    num_latents = min(num_latents or model.config.num_latents, window.shape[1])
    with torch.no_grad():
        return model(window, positions=positions, num_latents=num_latents)[0, -1]


def likeliest(logits: torch.Tensor) -> int:
    """Of the tokens that are not special."""
    return int(logits[3:].argmax()) + 3


def greedy_by_hand(model: PerceiverAR, prompt: list[int], count: int, *, num_latents: int | None = None) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(likeliest(logits_by_hand(model, tokens, num_latents=num_latents)))
    return tokens[len(prompt) :]


@pytest.mark.parametrize(
    ("changes", "num_latents"), [({}, None), ({}, 1), ({"positions": TablePositions(table="random", sizes=(38,))}, 3)]
)
def test_without_a_cache_every_token_is_a_full_forward_pass(changes: dict[str, Any], num_latents: int | None) -> None:
    """Rows of all lengths at once, past the model's input, each token at the position where it stands."""
    model = fresh(replace(CONFIG, **changes))
    drawn = draw(model, *PROMPTS, max_tokens=13, sampling=GREEDY, decoding=replace(SLOW, num_latents=num_latents))
    assert drawn == [greedy_by_hand(model, prompt, 13, num_latents=num_latents) for prompt in PROMPTS]
    assert len({tuple(row) for row in drawn}) == len(PROMPTS)
    assert all(len(set(row)) > 2 for row in drawn)


@pytest.mark.parametrize("changes", [{}, {"positions": TablePositions()}, {"queries": MLPQueries()}])
@pytest.mark.parametrize("cached", [True, False])
def test_one_forward_pass_says_the_same(changes: dict[str, Any], cached: bool) -> None:
    """Where every position is a latent, all tokens can be had from one pass over the result."""
    model = fresh(replace(CONFIG, num_latents=11, **changes))
    decoding = DecodingConfig(prompt_latents=2) if cached else SLOW
    [drawn] = draw(model, [SOS, 5], max_tokens=9, sampling=GREEDY, decoding=decoding)
    tokens = torch.tensor([[SOS, 5, *drawn]])
    with torch.no_grad():
        logits = model(tokens, positions=torch.arange(1, 12)[None, :, None], num_latents=11)[0]
    assert [likeliest(row) for row in logits[1:-1]] == drawn


@pytest.mark.parametrize("prompts", [[[SOS, 3, 5, 7]], [[SOS, 9], [SOS, 3, 5, 7], [SOS]]])
def test_cached_is_full_forward_passes_while_all_positions_are_latents(prompts: list[list[int]]) -> None:
    """After t tokens there are t more latents than at first, as there are positions; eight of them fit."""
    model = fresh(replace(CONFIG, num_latents=11))
    cached = draw(model, *prompts, max_tokens=8, sampling=GREEDY, decoding=DecodingConfig(prompt_latents=4))
    assert cached == draw(model, *prompts, max_tokens=8, sampling=GREEDY, decoding=SLOW)


@pytest.mark.parametrize(
    ("decoding", "num_latents", "refill", "start"),
    [
        (DecodingConfig(), 5, 2, 2),
        (DecodingConfig(prompt_latents=1), 5, 2, 1),
        (DecodingConfig(refill=4), 5, 4, 4),
        (DecodingConfig(refill=1, prompt_latents=5), 5, 1, 5),
        (DecodingConfig(num_latents=3, refill=2, prompt_latents=1), 3, 2, 1),
        (DecodingConfig(num_latents=1), 1, 1, 1),
    ],
)
def test_the_dial_says_how_many_latents_each_token_has(
    decoding: DecodingConfig, num_latents: int, refill: int, start: int
) -> None:
    model = fresh(replace(CONFIG, max_seq_len=23))
    tokens, latents = [SOS, 3, 5, 7, 11], start
    drawn = draw(model, tokens.copy(), max_tokens=17, sampling=GREEDY, decoding=decoding)
    for _ in range(17):
        tokens.append(likeliest(logits_by_hand(model, tokens, num_latents=latents)))
        latents = refill if latents == num_latents else latents + 1
    assert drawn == [tokens[5:]]


PENALIZED = {"repetition_penalty": 1.7, "top_k": 7, "min_p": 0.01}


@pytest.mark.parametrize(
    ("decoding", "samples", "sampling"),
    [
        (DecodingConfig(), 1, {}),
        (DecodingConfig(), 3, {}),
        (DecodingConfig(refill=4, prompt_latents=1), 3, PENALIZED),
        (DecodingConfig(num_latents=3, prompt_latents=3), 3, {}),
        (SLOW, 1, PENALIZED),
        (SLOW, 3, {}),
    ],
)
def test_a_row_is_its_prompt_alone(decoding: DecodingConfig, samples: int, sampling: dict[str, Any]) -> None:
    """Token for token, through rebuilds and past the model's input; row j of a prompt has seed + j."""
    model = fresh()

    def row(prompt: list[int], seed: int) -> list[int | None]:
        config = SamplingConfig(seed=seed, **sampling)
        [drawn] = draw(model, prompt, max_tokens=13, sampling=config, decoding=decoding)
        return drawn

    together = draw(
        model,
        *FEW,
        max_tokens=13,
        samples=samples,
        sampling=SamplingConfig(seed=7, **sampling),
        decoding=decoding,
    )
    assert together == [row(prompt, 7 + j) for prompt in FEW for j in range(samples)]
    assert len({tuple(row) for row in together}) == len(FEW) * samples


def test_a_longer_draw_begins_with_a_shorter_one() -> None:
    model = fresh()
    short, long = (draw(model, [SOS], max_tokens=n)[0] for n in (7, 13))
    assert long[:7] == short


def test_tokens_that_came_score_less_prompt_included() -> None:
    model, tokens = fresh(), [SOS, 3, 5]
    sampling = SamplingConfig(temperature=0.0, repetition_penalty=3.0)
    [drawn] = draw(model, tokens.copy(), max_tokens=11, sampling=sampling, decoding=SLOW)
    for _ in range(11):
        logits = logits_by_hand(model, tokens)
        seen = logits[tokens]
        logits[tokens] = torch.where(seen > 0, seen / 3, seen * 3)
        tokens.append(likeliest(logits))
    assert drawn == tokens[3:]
    assert drawn != greedy_by_hand(model, [SOS, 3, 5], 11)


class Parity:
    """Ids as even or odd as how many came; remembers what it was asked."""

    made: "list[Parity]" = []  # noqa: RUF012

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.made.append(self)

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        assert not self.asked or list(ids[:-1]) == self.asked[-1]
        self.asked.append(list(ids))
        return np.arange(14) % 2 == len(ids) % 2


def test_a_constraint_that_allows_nothing() -> None:
    """Ends the row where it may end, and is an error where it may not."""

    def nothing(ids: list[int]) -> np.ndarray:
        return np.zeros(CONFIG.vocab_size - NUM_SPECIAL, bool)

    assert list(decode(fresh(CONFIG), [[SOS]], max_tokens=3, constraint=lambda: nothing)) == []
    with pytest.raises(ValueError, match="the constraint allows no id after the 0 so far"):
        list(decode(fresh(CONFIG), [[SOS]], max_tokens=3, constraint=lambda: nothing, stop_at_eos=False))


def test_each_row_has_its_own_constraint(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked once a token, about all raw ids; and it decides."""
    monkeypatch.setattr(Parity, "made", [])
    model, prompts = fresh(), [[SOS, 8, 5], [SOS]]
    drawn = draw(model, *prompts, max_tokens=3, samples=2, constraint=Parity)
    assert len(Parity.made) == 4
    for row, made, before in zip(drawn, Parity.made, [[5, 2], [5, 2], [], []], strict=True):
        raw = before + [token - 3 for token in row if token is not None]
        assert made.asked == [raw[:-3], raw[:-2], raw[:-1]]
        assert all(token % 2 == place % 2 for place, token in enumerate(raw) if place >= len(before))
    alone = [
        draw(model, prompt, max_tokens=3, sampling=SamplingConfig(seed=j), constraint=Parity)[0]
        for prompt in prompts
        for j in range(2)
    ]
    assert drawn == alone


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
def test_log_probs_are_the_models_own(temperature: float) -> None:
    """Before the temperature, the constraint, the penalty, and what is never drawn."""
    model, rows = fresh(), [list(prompt) for prompt in PROMPTS]
    sampling = SamplingConfig(temperature=temperature, repetition_penalty=1.5, top_k=5)
    steps = decode(model, PROMPTS, max_tokens=7, sampling=sampling, decoding=SLOW, stop_at_eos=False, constraint=Parity)
    for step in steps:
        for row, token, log_prob in zip(rows, step.tokens, step.log_probs, strict=True):
            assert token is not None
            expected = logits_by_hand(model, row).log_softmax(-1)[token]
            assert log_prob == pytest.approx(float(expected), abs=1e-5)
            row.append(token)
    assert all(len(row) == len(prompt) + 7 for row, prompt in zip(rows, PROMPTS, strict=True))


@pytest.mark.parametrize("decoding", [DecodingConfig(), SLOW])
def test_rows_end_one_by_one(decoding: DecodingConfig) -> None:
    """An end is no token; the others go on as if nothing had happened, until none is left."""
    model = fresh(favour=EOS, bias=5)

    def steps_of(prompts: list[list[int]], seed: int, samples: int = 1) -> list[Step]:
        sampling = SamplingConfig(seed=seed)
        return list(decode(model, prompts, max_tokens=40, samples=samples, sampling=sampling, decoding=decoding))

    steps = steps_of(FEW, 3, samples=3)
    rows = rows_of(steps)
    lengths = [len([token for token in row if token is not None]) for row in rows]
    assert min(lengths) < max(lengths) == len(steps) < 40
    for row, length, prompt, seed in zip(
        rows, lengths, (p for p in FEW for _ in range(3)), [3, 4, 5] * len(FEW), strict=True
    ):
        assert row[length:] == [None] * (len(steps) - length)
        alone = steps_of([prompt], seed)
        assert row[:length] == [step.tokens[0] for step in alone]
    for step in steps:
        assert [log_prob == 0 for log_prob in step.log_probs] == [token is None for token in step.tokens]


def test_who_has_ended_is_asked_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Parity, "made", [])
    model = fresh(favour=EOS, bias=0.5)
    sampling = SamplingConfig(temperature=5.0)
    steps = list(decode(model, [[SOS]], max_tokens=40, samples=7, sampling=sampling, constraint=Parity))
    lengths = [len([token for token in row if token is not None]) for row in rows_of(steps)]
    assert [len(made.asked) for made in Parity.made] == [length + 1 for length in lengths]
    assert min(lengths) < max(lengths) < 40


def test_the_end_ends() -> None:
    model = fresh(favour=EOS)
    assert list(decode(model, [[SOS, 7], [SOS]], max_tokens=7)) == []
    [kept] = draw(model, [SOS, 7], max_tokens=7)
    assert len(kept) == 7
    assert EOS not in kept


@pytest.mark.parametrize("special", [PAD, SOS])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_padding_and_start_are_never_drawn(special: int, temperature: float) -> None:
    model, sampling = fresh(favour=special), SamplingConfig(temperature=temperature)
    for steps in (decode(model, [[SOS]], max_tokens=7, sampling=sampling, stop_at_eos=stop) for stop in (True, False)):
        drawn = [token for step in steps for token in step.tokens if token is not None]
        assert all(token >= 3 for token in drawn)
    assert len(drawn) == 7


def test_nothing_to_draw() -> None:
    assert list(decode(fresh(), [[SOS]], max_tokens=0)) == []


def test_tokens_come_one_by_one() -> None:
    stream = decode(fresh(), [[SOS]], max_tokens=10**9, stop_at_eos=False)
    assert [len(next(stream).tokens) for _ in range(3)] == [1, 1, 1]
    stream.close()  # pyright: ignore


def test_no_gradients() -> None:
    model = fresh()
    for decoding in (DecodingConfig(), SLOW):
        with torch.enable_grad():
            assert len(draw(model, [SOS], max_tokens=7, decoding=decoding)[0]) == 7
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_cache_of_lower_precision() -> None:
    model = fresh().float()

    def log_probs(dtype: Any) -> torch.Tensor:
        steps = decode(model, PROMPTS[:3], max_tokens=3, sampling=GREEDY, decoding=DecodingConfig(cache_dtype=dtype))
        return torch.tensor([step.log_probs for step in steps])

    assert torch.equal(log_probs("auto"), log_probs("float32"))
    assert 0 < (log_probs("auto") - log_probs("bfloat16")).abs().max() < 0.5


def test_compiled_reaches_the_predictor(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    class Spy(module.CachedPerceiverAR):
        def __init__(self, model: PerceiverAR, *, compiled: bool, **options: Any) -> None:
            asked.append(compiled)
            super().__init__(model, **options)

    monkeypatch.setattr(module, "CachedPerceiverAR", Spy)
    for compiled in (False, True):
        assert len(draw(fresh(), [SOS], max_tokens=3, decoding=DecodingConfig(compiled=compiled))[0]) == 3
    assert asked == [False, True]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"positions": TablePositions(), "position_source": "end"}, "its position tables count back from the end"),
        ({"queries": LearnedQueries()}, "its queries are learned by distance from the end"),
    ],
)
def test_what_can_not_be_cached_is_slow_and_says_so(changes: dict[str, Any], reason: str) -> None:
    """From one token on, and without an end."""
    model = fresh(replace(CONFIG, **changes))
    with pytest.warns(UserWarning, match=f"every token takes a full forward pass, nothing can be kept: {reason}"):
        drawn = draw(model, *PROMPTS, max_tokens=13, sampling=GREEDY)
    assert drawn == draw(model, *PROMPTS, max_tokens=13, sampling=GREEDY, decoding=SLOW)
    assert drawn == [greedy_by_hand(model, prompt, 13) for prompt in PROMPTS]
    with pytest.warns(UserWarning, match="nothing can be kept"):
        fewer = draw(model, [SOS], max_tokens=13, sampling=GREEDY, decoding=DecodingConfig(num_latents=2))
    assert fewer == [greedy_by_hand(model, [SOS], 13, num_latents=2)]


@pytest.mark.parametrize("cached", [True, False])
def test_more_latents_than_in_training(cached: bool) -> None:
    kept = {"prompt_latents": 2} if cached else {"cached": False}
    model, decoding = fresh(), DecodingConfig(num_latents=11, **kept)
    with pytest.warns(UserWarning, match="num_latents=11 is more than the 5 of training: slower") as caught:
        drawn = draw(model, [SOS, 5], max_tokens=9, sampling=GREEDY, decoding=decoding)
    assert len(caught) == 1
    assert drawn == [greedy_by_hand(model, [SOS, 5], 9, num_latents=11)]
    assert drawn != [greedy_by_hand(model, [SOS, 5], 9)]


def test_the_longest_prompt_that_is_read_whole() -> None:
    """Tokens until the first rebuild need room beside it: here three, after the first."""
    model, prompt = fresh(), [SOS, *range(3, 17), *range(3, 13)]
    lengths = {n: longest_prompt(model, DecodingConfig(), n) for n in (1, 2, 3, 4, 5, 100)}
    assert lengths == {1: 11, 2: 10, 3: 9, 4: 8, 5: 8, 100: 8}
    assert longest_prompt(model, DecodingConfig(num_latents=3, prompt_latents=1), 100) == 9
    assert longest_prompt(model, SLOW, 100) == 11

    def first(prompt: list[int], max_tokens: int) -> float:
        return next(decode(model, [prompt], max_tokens=max_tokens, sampling=GREEDY, stop_at_eos=False)).log_probs[0]

    for max_tokens, longest in lengths.items():
        assert first(prompt[-longest:], max_tokens) == pytest.approx(first(prompt, max_tokens), abs=1e-6)
        assert abs(first(prompt[-longest + 1 :], max_tokens) - first(prompt, max_tokens)) > 1e-4


@pytest.mark.parametrize("sizes", [None, (12,)])
@pytest.mark.parametrize("decoding", [DecodingConfig(), SLOW])
def test_a_table_of_positions_ends(sizes: tuple[int, ...] | None, decoding: DecodingConfig) -> None:
    """Rows are 0 to 11, and the last token drawn is never read. The longest prompt says how many fit."""
    model = fresh(replace(CONFIG, positions=TablePositions(sizes=sizes)))
    assert len(draw(model, [SOS, 5], [SOS], max_tokens=10, decoding=decoding)[0]) == 10
    with pytest.raises(ValueError, match=r"2 tokens and 11 new ones pass position 11, .* at most 10 new tokens"):
        decode(model, [[SOS], [SOS, 5]], max_tokens=11, decoding=decoding)
    with pytest.raises(ValueError, match="ask for at most 0 new tokens"):
        decode(model, [[SOS] * 20], max_tokens=1, decoding=decoding)


def test_a_table_of_places_in_the_input_ends_where_it_is_cached() -> None:
    model = fresh(replace(CONFIG, positions=TablePositions(), position_source="start"))
    assert len(draw(model, [SOS, 5], max_tokens=10)[0]) == 10
    with pytest.raises(ValueError, match=r"2 tokens and 11 new ones .* at most 10 new tokens, or turn the cache off"):
        decode(model, [[SOS, 5]], max_tokens=11)
    drawn = draw(model, *PROMPTS, max_tokens=13, sampling=GREEDY, decoding=SLOW)
    assert drawn == [greedy_by_hand(model, prompt, 13) for prompt in PROMPTS]


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "there are no prompts: give at least one"),
        ([[SOS]], {"samples": 0}, "samples=0 must be 1 or more"),
        ([[SOS]], {"max_tokens": -1}, "max_tokens=-1 must be 0 or more"),
        ([[SOS]], {"max_tokens": 2.0}, r"max_tokens=2\.0 must be a whole number"),
        ([[SOS]], {"max_tokens": True}, "max_tokens=True must be a whole number"),
        ([[SOS]], {"max_tokens": "3"}, "max_tokens='3' must be a whole number"),
        ([[SOS]], {"samples": 1.5}, r"samples=1\.5 must be a whole number"),
        ([[SOS]], {"stop_at_eos": "no"}, "stop_at_eos='no' must be True or False"),
        ([{SOS: 3}], {}, "the prompt is a dict, which has no order"),
        ([{SOS, 3}], {}, "the prompt is a set, which has no order"),
        ([[SOS], []], {}, "the prompt is empty: give at least the start token"),
        ([[SOS], [SOS, 17]], {}, r"the prompt holds id 17, the model knows 0\.\.16"),
        ([[SOS, -1, 3]], {}, r"the prompt holds id -1, the model knows 0\.\.16"),
        ([[SOS]], {"decoding": DecodingConfig(num_latents=12)}, r"num_latents=12 must lie in 1\.\.11, the length"),
        ([[SOS]], {"decoding": replace(SLOW, num_latents=12)}, r"num_latents=12 must lie in 1\.\.11, the length"),
        ([[SOS]], {"decoding": DecodingConfig(refill=5)}, "refill=5 must be at least 1 and less than num_latents=5"),
        ([[SOS]], {"decoding": DecodingConfig(prompt_latents=6)}, r"prompt_latents=6 must lie in 1\.\.5"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_found_at_the_call(prompts: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(fresh(), prompts, **({"max_tokens": 1} | options))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (np.ones(14), r"returned float64 numbers of shape \[14\]"),
        (np.full(14, np.nan), "returned float64 numbers"),
        (np.ones(1, bool), r"returned bool numbers of shape \[1\]: .* each of the 14 raw ids"),
        (np.ones((1, 14), bool), r"of shape \[1, 14\]"),
        (np.ones(17, bool), r"of shape \[17\]"),
    ],
)
def test_a_constraint_says_true_or_false_of_each_id(said: Any, message: str) -> None:
    """Numbers would be taken for true, and a single one for all."""
    model: Any = fresh()
    with pytest.raises(ValueError, match=message):
        list(decode(model, [[SOS]], max_tokens=1, constraint=lambda: lambda ids: said))


@pytest.mark.filterwarnings("ignore:num_latents=7 is more than")
def test_more_latents_than_learned_queries() -> None:
    model = fresh(replace(CONFIG, queries=LearnedQueries()))
    with pytest.raises(ValueError, match="num_latents=7, but this model learned one query for each of 5 latents"):
        decode(model, [[SOS] * 7], max_tokens=1, decoding=replace(SLOW, num_latents=7))
