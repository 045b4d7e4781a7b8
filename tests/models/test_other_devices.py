"""Models on a device that is no CPU: nothing they add up was made elsewhere, and ways that are a CPU's own stay away.

The device "meta" computes shapes alone; a sum with a tensor of another device fails there as it does on a GPU.
"""

from typing import Any

import pytest
import torch

from perceivers.models import trace
from perceivers.models.build import build
from perceivers.models.cached import CachedPerceiverAR
from perceivers.models.perceiver_ar import PerceiverAR
from perceivers.models.perceiver_ar_config import PerceiverARConfig, RotaryPositions, TablePositions
from perceivers.presets import PRESETS, preset

TINY = {"vocab_size": 31, "max_seq_len": 13, "num_latents": 5, "dim": 16, "depth": 2, "heads": 2, "cross_heads": 2}
POSITIONS = {"rotary": RotaryPositions(channel_share=0.5), "table": TablePositions(table="sinusoidal")}
AFAR = torch.device("meta")


@pytest.mark.parametrize("name", [name for name in PRESETS if preset(name).model.kind in ("ecp", "perceiver_io")])
@torch.no_grad()
def test_a_forward_pass_of_the_other_families(name: str) -> None:
    """HiP looks at its inputs' values, which are not there."""
    config: Any = preset(name).model
    with AFAR:
        model, inputs = build(config), trace.example(config, 2)
    assert isinstance(inputs, torch.Tensor)
    assert model.train()(inputs).device == AFAR


@pytest.mark.parametrize("positions", list(POSITIONS))
@torch.no_grad()
def test_a_forward_pass_of_perceiver_ar(positions: str) -> None:
    with AFAR:
        model = PerceiverAR(PerceiverARConfig(**TINY, positions=POSITIONS[positions], prefix_dropout=0.5))
        tokens = torch.zeros(2, 13, dtype=torch.long)
    assert model.train()(tokens, positions=tokens[..., None]).device == AFAR


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("positions", list(POSITIONS))
def test_tokens_one_by_one(positions: str, samples: int) -> None:
    with AFAR:
        model = PerceiverAR(PerceiverARConfig(**TINY, positions=POSITIONS[positions])).eval()
    cached = CachedPerceiverAR(model)
    logits = cached.start([[2, 3, 4, 5, 6, 7, 8], [2, 9]], max_tokens=7, samples=samples)
    for _ in range(6):
        logits = cached.feed(logits.argmax(-1))
    assert logits.device == AFAR
    assert logits.shape == (2 * samples, 31)
