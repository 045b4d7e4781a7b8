from pathlib import Path

import pytest
import torch

from perceivers.generate.lean import lighten
from perceivers.generate.loaded import Loaded
from perceivers.models.build import build
from perceivers.models.perceiver_ar_config import PerceiverARConfig

CONFIG = PerceiverARConfig(
    vocab_size=17, max_seq_len=11, num_latents=5, dim=64, depth=2, heads=4, cross_heads=2, zero_logits=False
)


def nbytes(model: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())


@pytest.mark.parametrize(
    ("weights", "share", "tolerance"), [("float32", 1, 0), ("bfloat16", 0.5, 0.1), ("int8", 0.28, 0.1)]
)
def test_smaller_weights_say_nearly_the_same(weights: str, share: float, tolerance: float) -> None:
    torch.manual_seed(0)
    model = build(CONFIG).eval()
    tokens, positions = torch.tensor([[2, 5, 7, 11, 3]]), torch.arange(1, 6)[None, :, None]
    with torch.no_grad():
        before, size = model(tokens, positions=positions), nbytes(model)
        after = lighten(model, weights)(tokens, positions=positions)
    assert nbytes(model) <= share * size * 1.05
    assert (after - before).abs().max() <= tolerance
    assert (weights == "float32") == torch.equal(after.float(), before)
    assert len(Loaded(model, "ids").generate([3, 5], max_tokens=9, stop_at_end=False)) == 9


def test_unknown_weights() -> None:
    with pytest.raises(ValueError, match="weights='int4' must be one of float32, bfloat16, int8"):
        lighten(build(CONFIG), "int4")


def test_integers_are_not_saved(tmp_path: Path) -> None:
    loaded = Loaded(lighten(build(CONFIG), "int8"), "ids")
    with pytest.raises(
        ValueError, match="weights of 8-bit integers can't be saved: load the model with weights='float32'"
    ):
        loaded.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
