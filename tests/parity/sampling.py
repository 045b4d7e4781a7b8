"""The official sampler's tokens, logits and scores, made by ours."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from perceivers.data.batch import NUM_SPECIAL
from perceivers.generate.config import SamplingConfig
from perceivers.generate.constraints import InterleavedIds
from perceivers.generate.decode import FullForward, Predictor
from perceivers.generate.sampling import process_logits
from perceivers.models.cached import CachedPerceiverAR

from .compared import Consumed
from .official import Case

GROUPS = {
    "image": InterleavedIds(groups=3, size=256),
    "soundstream_12kbps": InterleavedIds(groups=24, size=1024),
    "soundstream_22kbps": InterleavedIds(groups=44, size=1024),
}
"""What may come, by official modality."""
MASKED_OUT = -1e29
"""Official scores below it (-1e30 divided by the temperature) stand for minus infinity."""


REBUILT, ONE_TOKEN = 1, 0
"""Official branches of a cached step; 2 reads the prompt."""


def check_sampling(case: Case, backend: str) -> None:
    """Every run: logits of each step, tokens, and how full the caches are."""
    for name, run in case.info["runs"].items():
        model = case.model(torch.float32, backend)
        if not run["use_memory"]:
            _check_run(case, name, run, FullForward(model))
            continue
        latents = run["z_index_dim_memory"]
        cached = CachedPerceiverAR(model, num_latents=latents, refill=latents // 2, prompt_latents=1)
        _check_run(case, name, run, cached)


def _check_run(case: Case, name: str, run: dict[str, Any], predictor: Predictor) -> None:
    events = case.tensor(f"in/{name}/events")
    prompts = events[:, : run["start_step"]].tolist()
    positions = None
    if predictor.config.position_source == "data":
        positions = list(case.tensor("in/event_idxs"))
    elif "in/event_idxs" in case.arrays:
        case.arrays.skip("in/event_idxs", because="a model that counts positions itself takes none from the data")
    expected = case.tensor(f"out/{name}/logits")
    steps = torch.arange(run["start_step"], run["start_step"] + run["num_steps"])
    assert torch.equal(case.tensor(f"out/{name}/steps"), steps)
    for step in range(run["num_steps"]):
        if step == 0:
            logits = predictor.start(prompts, max_tokens=run["num_steps"], positions=positions)
        else:
            if isinstance(predictor, CachedPerceiverAR):
                branch = REBUILT if predictor.until_refill == 0 else ONE_TOKEN
                assert branch == case.tensor(f"out/{name}/branch")[step]
            logits = predictor.feed(events[:, run["start_step"] + step - 1])
        torch.testing.assert_close(logits, expected[step], atol=case.tolerance["logits_atol"], rtol=0)
        events[:, run["start_step"] + step] = logits.argmax(-1)  # temperature 0 there: no mask, no penalty
        assert torch.equal(events, case.tensor(f"out/{name}/events_after_step")[step])
        if isinstance(predictor, CachedPerceiverAR):
            assert predictor.latents == case.tensor(f"out/{name}/self_attend_memory_count")[step]
            assert predictor.end == case.tensor(f"out/{name}/cross_attend_memory_count")[step]
    assert torch.equal(events, case.tensor(f"out/{name}/final_events"))
    if isinstance(predictor, CachedPerceiverAR) and f"out/{name}/final_memory/0/k" in case.arrays:
        _check_memory(case, f"out/{name}/final_memory", predictor)


def _check_memory(case: Case, where: str, predictor: CachedPerceiverAR) -> None:
    """Keys and values that are kept: the official ones are right-aligned, and turn when they are read."""
    kept = [(predictor.context[-1], predictor.end), *((layer, predictor.latents) for layer in predictor.layers)]
    for layer, (cache, count) in enumerate(kept):
        keys, values = (case.tensor(f"{where}/{layer}/{part}")[:, -count:].transpose(1, 2) for part in "kv")
        positions = case.maybe(f"{where}/{layer}/kv_positions")
        if positions is not None:
            rotation = predictor.model._rotation(positions[:, -count:], cross=layer == 0)
            assert rotation is not None
            keys = rotation(keys)
        for ours, expected in zip(cache.read(0, count), (keys, values), strict=True):
            torch.testing.assert_close(ours, expected, atol=case.tolerance["memory_atol"], rtol=0)
        real = case.tensor(f"{where}/{layer}/memory_mask")
        assert (real[:, -count:] == 1).all()
        assert real.sum() == count * len(real)


def check_process_logits(case: Case) -> None:
    """Compare every result of every call."""
    wanted = {name for name in case.arrays if name.startswith("out/")}
    for name, asked in case.info["calls"].items():
        call = Consumed(asked)
        with call.whole():
            scores = _scores(case, call)
            call.get("mask_only")
            if call["modality"] is None:
                call.skip("i", because="without a modality every index is alike")
        kept = scores > -torch.inf
        if call.get("mask_only"):
            results = {f"out/{name}/keep", f"out/{name}/kept_values_sum"}
            assert torch.equal(kept.long(), case.tensor(f"out/{name}/keep")), name
            total = case.tensor(f"out/{name}/kept_values_sum").double()
            rtol = case.tolerance["kept_values_sum_rtol"]
            torch.testing.assert_close(scores[kept].double().sum(), total, rtol=rtol, atol=0)
        else:
            results = {f"out/{name}"}
            expected = case.tensor(f"out/{name}")
            assert torch.equal(kept, expected >= MASKED_OUT), name
            torch.testing.assert_close(scores[kept], expected[kept], rtol=case.tolerance["rtol"], atol=0)
        assert results <= wanted, name
        wanted -= results
    assert not wanted, f"nothing of ours was compared with {wanted}"


def _scores(case: Case, call: Mapping[str, Any]) -> Tensor:
    """Our scores for the token at index `i`, where the SOS has index 0."""
    logits = case.tensor(call["logits"]) if "logits" in call else torch.zeros(call["logits_zeros"])
    allowed = torch.ones(len(logits), logits.shape[-1], dtype=torch.bool)
    if call["modality"] is not None:
        so_far = [0] * (call["i"] - 1)
        allowed[:, NUM_SPECIAL:] = torch.from_numpy(GROUPS[call["modality"]](so_far))
    config = SamplingConfig(top_p=call["top_p"], temperature=call["temperature"])
    return process_logits(logits, config, allowed=allowed)
