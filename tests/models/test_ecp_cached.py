import shutil
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from perceivers.models.ecp import ECP
from perceivers.models.ecp_cached import CachedECP
from perceivers.models.ecp_config import ECPConfig
from perceivers.nn.cache import KVCache

CONFIG = ECPConfig(vocab_size=17, max_seq_len=13, segment_len=5, dim=12, depth=2, heads=2, widening=2)
VARIANTS = {
    "clean": CONFIG,
    "segments of one": replace(CONFIG, segment_len=1),
    "one layer": replace(CONFIG, depth=1, segment_len=3),
    "many layers": replace(CONFIG, depth=5, segment_len=2),
    "one long segment": replace(CONFIG, max_seq_len=64, segment_len=64),
    "keys normalised": replace(CONFIG, key_norm=True),
    "authors'": replace(CONFIG, tied_kv=True, rotary="first", first_output=True),
}
PROMPTS = [[2, *range(3, 16)], [2], [2, 5, 9, 4, 7], [2, 5, 9, 4, 7, 3]]
"""In the third segment of five, at the beginning of the first, at its end, and at the beginning of the second."""


def fresh(config: ECPConfig, dtype: torch.dtype = torch.float64) -> ECP:
    torch.manual_seed(5)
    model = ECP(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype).eval()


def largest_error(run: CachedECP, prompts: list[list[int]], *, tokens: int, samples: int = 1) -> float:
    """Difference from full passes over the same rows, while random tokens are added."""
    rows = [list(prompt) for prompt in prompts for _ in range(samples)]
    new = torch.randint(3, 17, (tokens - 1, len(rows)), generator=torch.Generator().manual_seed(1))
    got = [run.start(prompts, max_tokens=tokens, samples=samples)] + [run.feed(column) for column in new]
    worst = 0.0
    for i, row in enumerate(rows):
        whole = torch.tensor([row + new[:, i].tolist()])
        with torch.no_grad():
            expected = run.model(whole)[0, len(row) - 1 :]
        worst = max(worst, float((torch.stack([logits[i] for logits in got]) - expected).abs().max()))
    return worst


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("name", VARIANTS)
def test_kept_keys_give_what_full_passes_give(name: str, samples: int) -> None:
    """For rows of different lengths, through seven segments of five."""
    assert largest_error(CachedECP(fresh(VARIANTS[name])), PROMPTS, tokens=31, samples=samples) < 1e-12


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("lengths", [(39,), (40, 47), (41, 20, 60)])
def test_of_a_long_prompt_only_what_can_be_seen_is_read(name: str, lengths: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(3, 17, (length,), generator=generator).tolist() for length in lengths]
    run = CachedECP(fresh(VARIANTS[name]))
    read = 0

    def count(_module: object, inputs: tuple[torch.Tensor], _out: torch.Tensor) -> None:
        nonlocal read
        read += inputs[0].shape[1]

    hook = run.model.token_embedding.register_forward_hook(count)
    run.start(prompts, max_tokens=1)
    hook.remove()
    config = run.config
    assert read <= max(lengths) - min(lengths) + (config.depth + 1) * config.segment_len
    assert largest_error(run, prompts, tokens=13) < 1e-12


def test_single_precision() -> None:
    assert largest_error(CachedECP(fresh(CONFIG, torch.float32)), PROMPTS, tokens=29, samples=2) < 1e-5


def test_a_cache_of_lower_precision() -> None:
    model = fresh(CONFIG, torch.float32)
    exact, rough = CachedECP(model), CachedECP(model, dtype=torch.bfloat16)
    one, other = (run.start(PROMPTS, max_tokens=9) for run in (exact, rough))
    for token in range(3, 11):
        one, other = (run.feed(torch.tensor([token] * 4)) for run in (exact, rough))
        assert 0 < (one - other).abs().max() < 0.1
    assert rough.nbytes * 2 == exact.nbytes


def test_memory_is_two_segments_whatever_comes() -> None:
    run = CachedECP(fresh(CONFIG))
    run.start([[2, 3]], max_tokens=40)
    assert run.nbytes == 2 * 2 * 10 * 12 * 8  # layers, keys and values, places, channels, bytes
    buffers = [buffer.data_ptr() for ring in run.rings for buffer in (ring.keys, ring.values)]
    for _ in range(39):
        run.feed(torch.tensor([5]))
    assert buffers == [buffer.data_ptr() for ring in run.rings for buffer in (ring.keys, ring.values)]
    run.start([[2] * 99], max_tokens=40, samples=3)
    assert run.nbytes == 3 * 2 * 2 * 10 * 12 * 8
    assert run.longest_prompt(40) > 10**9


class FreshMemory(KVCache):
    """Holds what memory that nobody wrote to may hold."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.keys.fill_(torch.nan)
        self.values.fill_(torch.nan)


def test_what_memory_held_before_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perceivers.models.ecp_cached.KVCache", FreshMemory)
    assert largest_error(CachedECP(fresh(CONFIG)), PROMPTS, tokens=7) < 1e-12


def test_patterns_with_latents_are_not_cached() -> None:
    model = ECP(replace(CONFIG, pattern="double", num_latents=5))
    with pytest.raises(ValueError, match=r"can't be kept: in pattern 'double' each .* without a cache"):
        CachedECP(model)


COMPILED = """
import torch
from perceivers.generate.lean import lighten
from perceivers.models.ecp import ECP
from perceivers.models.ecp_cached import CachedECP
from perceivers.models.ecp_config import ECPConfig

config = ECPConfig(vocab_size=17, segment_len=3, dim=16, depth=1, heads=2, first_output=True)
torch.manual_seed(5)
model = ECP(config).eval()
torch.nn.init.normal_(model.logits.weight)
for weights, tolerance in (("float32", 1e-5), ("int8", 0.1)):
    lighten(model, weights)
    plain, compiled = CachedECP(model), CachedECP(model, compiled=True)
    for run in (plain, compiled):
        run.start([[2, 5]], max_tokens=9)
    for token in range(3, 14):
        one, other = (run.feed(torch.tensor([token])) for run in (plain, compiled))
        assert (one - other).abs().max() < tolerance, (weights, token, (one - other).abs().max())
    assert not torch._dynamo.utils.counters["graph_break"]
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_step_says_the_same() -> None:
    """In a process of its own: annotations that are checked at run time can't be compiled."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True, timeout=900)
