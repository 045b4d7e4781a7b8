"""The decoder that sampling is compared with is a decoder."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "plain_decoder.py"


@pytest.fixture
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plain_decoder", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_token_from_what_is_kept_is_that_of_a_full_pass(benchmark: ModuleType) -> None:
    torch.manual_seed(0)
    decoder = benchmark.PlainDecoder(context=13, dim=12, depth=2, heads=3, vocab_size=17).double()
    for layer in decoder.layers:
        layer.kept = layer.kept.double()
    tokens = torch.randint(17, (1, 13))
    whole = decoder(tokens)
    steps = [decoder(tokens[:, :5]), *(decoder(tokens[:, [i]], i) for i in range(5, 13))]
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-6, rtol=1e-6)
    other = tokens.clone()
    other[0, 7] = (other[0, 7] + 1) % 17
    changed = (decoder(other) - whole).abs().amax(-1)[0] > 1e-6
    assert changed.tolist() == [False] * 7 + [True] * 6
