from typing import Any

import pytest
import torch
from torch import Tensor, nn

from perceivers.models.build import build
from perceivers.models.config import ModelConfig
from perceivers.models.cost import training_memory
from perceivers.models.ecp_config import ECPConfig
from perceivers.models.feature_config import PixelFeatures
from perceivers.models.hip_config import DataSet, HiPConfig, Modality
from perceivers.models.input_config import FourierPositions, InputConfig
from perceivers.models.output_config import AverageOutputConfig
from perceivers.models.perceiver_ar_config import PerceiverARConfig
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig
from perceivers.models.recompute import recompute_layers

CONFIGS: dict[str, ModelConfig] = {
    "perceiver_ar": PerceiverARConfig(
        vocab_size=13, max_seq_len=43, num_latents=23, dim=14, depth=3, heads=2, cross_heads=2, dropout=0.2
    ),
    "ecp": ECPConfig(vocab_size=13, max_seq_len=22, segment_len=11, dim=12, depth=3, heads=2, dropout=0.2),
    "perceiver_io": PerceiverIOConfig(
        input=InputConfig(features=PixelFeatures(shape=(5, 7, 3)), positions=FourierPositions(bands=2)),
        encoder=EncoderConfig(num_latents=11, dim=12, blocks=2, depth=2, heads=2, cross_attends=2, dropout=0.2),
        output=AverageOutputConfig(classes=5),
    ),
    "hip": HiPConfig(
        data_sets=(DataSet(name="a", modalities=(Modality(name="image", positions=35, channels=3),)),),
        groups=(5, 1, 5),
        latents=(7, 5, 7),
        dims=(12, 20, 12),
        depths=(1, 2, 1),
        heads=(2, 2, 2),
        dropout=0.2,
    ),
}


def example(config: ModelConfig) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(1)
    match config:
        case PerceiverARConfig():
            return torch.randint(13, (2, 43)), {"positions": torch.arange(1, 44).expand(2, -1)[..., None]}
        case ECPConfig():
            return torch.randint(13, (2, 22)), {}
        case HiPConfig():
            return {"image": torch.randn(2, 35, 3)}, {}
        case _:
            return torch.randn(2, 5, 7, 3), {}


def gradients(config: ModelConfig, *, recompute: bool) -> tuple[list[Tensor | None], int]:
    """Gradients of every parameter, and how many products one backward pass took."""
    torch.manual_seed(0)
    model = build(config).train()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    if recompute:
        recompute_layers(model)
    calls = 0

    def count(_module: nn.Module, _inputs: Any) -> None:
        nonlocal calls
        calls += 1

    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(count)
    inputs, options = example(config)
    torch.manual_seed(2)  # of dropout
    result = model(inputs, **options)
    (next(iter(result.values())) if isinstance(result, dict) else result).square().sum().backward()
    return [p.grad for p in model.parameters()], calls


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_stay_the_same_to_the_bit(name: str) -> None:
    plain, calls = gradients(CONFIGS[name], recompute=False)
    recomputed, more_calls = gradients(CONFIGS[name], recompute=True)
    assert more_calls > 1.5 * calls
    for one, other in zip(plain, recomputed, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_takes_less_memory(name: str) -> None:
    plain, less = (
        training_memory(CONFIGS[name], rows=3, bfloat16=False, cpu=True, recompute=recompute).activations
        for recompute in (False, True)
    )
    assert less < 0.75 * plain
