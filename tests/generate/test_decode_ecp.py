"""`decode` with ECP models; see `test_decode` for Perceiver AR."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from perceivers.data.batch import SOS
from perceivers.generate import decode as module
from perceivers.generate.config import DecodingConfig, SamplingConfig
from perceivers.generate.decode import decode, longest_prompt
from perceivers.generate.loaded import Loaded
from perceivers.models.ecp import ECP
from perceivers.models.ecp_config import ECPConfig
from perceivers.models.hip import HiP
from perceivers.models.hip_config import DataSet, HiPConfig, Modality

CONFIG = ECPConfig(vocab_size=17, max_seq_len=11, segment_len=3, dim=14, depth=2, heads=7, widening=2)
LATENTS = replace(CONFIG, pattern="double", num_latents=5)
GREEDY = SamplingConfig(temperature=0.0)
SLOW = DecodingConfig(cached=False)
PROMPTS = [[SOS], [SOS, 7], [SOS, 3, 5, 7, 11], [SOS, *range(3, 17), *range(12, 2, -1)]]
"""In the first segment of three, the second, and far beyond an input of eleven."""


def fresh(config: ECPConfig = CONFIG) -> ECP:
    torch.manual_seed(5)
    model = ECP(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def draw(model: ECP, *prompts: list[int], **options: Any) -> list[list[int | None]]:
    """New tokens of each row; no row ends early."""
    steps = decode(model, list(prompts), stop_at_eos=False, **options)
    return [list(row) for row in zip(*(step.tokens for step in steps), strict=True)]


def greedy_by_hand(model: ECP, prompt: list[int], count: int) -> list[int]:
    """From one full pass a token: over the whole row, or over what patterns with latents were trained to read."""
    tokens, config = list(prompt), model.config
    for _ in range(count):
        row = tokens if config.pattern == "ecp" else tokens[-config.max_seq_len :]
        with torch.no_grad():
            logits = model(torch.tensor([row]))[0, -1]
        tokens.append(int(logits[3:].argmax()) + 3)
    return tokens[len(prompt) :]


@pytest.mark.parametrize("decoding", [DecodingConfig(), SLOW])
def test_every_token_is_that_of_a_full_pass(decoding: DecodingConfig) -> None:
    """Rows of all lengths at once, through segments, and past the input of training."""
    model = fresh()
    drawn = draw(model, *PROMPTS, max_tokens=17, sampling=GREEDY, decoding=decoding)
    assert drawn == [greedy_by_hand(model, prompt, 17) for prompt in PROMPTS]
    assert len({tuple(row) for row in drawn}) > 2
    assert all(len(set(row)) > 2 for row in drawn)


def test_samples_of_a_prompt() -> None:
    """Row j of a prompt is what seed + j draws alone, kept or not."""
    model = fresh()

    def rows(decoding: DecodingConfig, seed: int, samples: int) -> list[list[int | None]]:
        sampling = SamplingConfig(seed=seed)
        return draw(model, *PROMPTS[2:], max_tokens=13, samples=samples, sampling=sampling, decoding=decoding)

    together = rows(DecodingConfig(), 7, 3)
    assert together == rows(SLOW, 7, 3)
    for j in range(3):
        assert together[j::3] == rows(DecodingConfig(), 7 + j, 1)
    assert len({tuple(row) for row in together}) == 6


def test_any_length_is_read() -> None:
    for decoding in (DecodingConfig(), SLOW):
        assert longest_prompt(fresh(), decoding, 100) > 10**9
    with pytest.warns(UserWarning, match="nothing can be kept"):
        assert longest_prompt(fresh(LATENTS), DecodingConfig(), 100) == 11


def test_dtype_and_compiling_reach_the_predictor(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[torch.dtype | None, bool]] = []

    class Spy(module.CachedECP):
        def __init__(self, model: ECP, *, dtype: torch.dtype | None, compiled: bool) -> None:
            asked.append((dtype, compiled))
            super().__init__(model, dtype=dtype)

    monkeypatch.setattr(module, "CachedECP", Spy)
    for decoding in (DecodingConfig(), DecodingConfig(cache_dtype="bfloat16", compiled=True)):
        assert len(draw(fresh(), [SOS], max_tokens=3, decoding=decoding)[0]) == 3
    assert asked == [(None, False), (torch.bfloat16, True)]


@pytest.mark.parametrize("pattern", ["double", "compressed", "ssplit", "perceiver_ar"])
def test_patterns_with_latents_are_slow_and_say_so(pattern: Any) -> None:
    model = fresh(replace(LATENTS, pattern=pattern, compressed_len=3))
    with pytest.warns(UserWarning, match=f"full forward pass, nothing can be kept: in pattern '{pattern}' each new"):
        drawn = draw(model, *PROMPTS, max_tokens=7, sampling=GREEDY)
    assert drawn == draw(model, *PROMPTS, max_tokens=7, sampling=GREEDY, decoding=SLOW)
    assert drawn == [greedy_by_hand(model, prompt, 7) for prompt in PROMPTS]


@pytest.mark.parametrize("config", [CONFIG, LATENTS])
@pytest.mark.parametrize("flag", ["num_latents", "refill", "prompt_latents"])
def test_no_latents_to_rebuild(config: ECPConfig, flag: str) -> None:
    with pytest.raises(ValueError, match=f"{flag}=2 is for Perceiver AR: an ECP rebuilds no latents; leave it out"):
        decode(fresh(config), [[SOS]], max_tokens=3, decoding=DecodingConfig(**{flag: 2}))


def test_a_model_of_bytes() -> None:
    """Through the whole interface: text that continues text."""
    loaded = Loaded(fresh(replace(CONFIG, vocab_size=259)), "bytes")
    one, other = (
        loaded.generate("A long prompt", max_tokens=13, stop_at_end=False, decoding=decoding)
        for decoding in (DecodingConfig(), SLOW)
    )
    assert one.tolist() == other.tolist()
    assert len(one) == 13


def test_a_model_that_predicts_no_next_tokens() -> None:
    data_set = DataSet(name="a", modalities=(Modality(name="x", positions=32, channels=3),))
    model = HiP(HiPConfig(data_sets=(data_set,), groups=(2, 1, 2), latents=(2, 2, 2)))
    with pytest.raises(ValueError, match=r"a HiP predicts no next tokens, .*: take a Perceiver AR or an ECP"):
        decode(model, [[SOS]], max_tokens=3)
