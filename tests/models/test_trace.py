"""The cost of families that are run to find it."""

from typing import Any

import pytest
import torch
from torch import nn

from perceivers.models import cost, trace
from perceivers.models.build import build
from perceivers.models.config import ModelConfig
from perceivers.models.cost import count_parameters, forward_flops, parts, training_memory
from perceivers.models.ecp_config import ECPConfig
from perceivers.models.feature_config import MelFeatures, PixelFeatures, TokenFeatures, VectorFeatures
from perceivers.models.hip_config import DataSet, HiPConfig, Modality
from perceivers.models.input_config import FourierPositions, InputConfig, LearnedPositions, MultimodalInputConfig
from perceivers.models.input_config import Modality as InputModality
from perceivers.models.output_config import AverageOutputConfig, GridQueries, QueryOutputConfig, TiedHead
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig

ECP = ECPConfig(vocab_size=31, max_seq_len=15, segment_len=5, dim=12, depth=2, heads=2, widening=3)
ENCODER = EncoderConfig(num_latents=5, dim=12, blocks=2, depth=1, heads=3, cross_heads=1, widening=2)
PICTURES = InputConfig(features=PixelFeatures(shape=(5, 7, 3)), positions=FourierPositions(bands=2))
SOUND = InputConfig(features=MelFeatures(samples=64, sample_rate=100, window=16, hop=16, bands=2))
BOTH = (
    InputModality(name="picture", input=PICTURES),
    InputModality(name="label", input=InputConfig(features=VectorFeatures(dim=11)), mask_share=1.0),
)
HIP = HiPConfig(
    data_sets=(
        DataSet(name="small", modalities=(Modality(name="x", positions=2, channels=3),)),
        DataSet(
            name="large",
            modalities=(Modality(name="y", positions=13, channels=2), Modality(name="z", positions=7, channels=1)),
        ),
    ),
    groups=(2, 1, 2),
    latents=(4, 4, 4),
    dims=(8, 12, 8),
    heads=(2, 3, 2),
    widening=(2, 2, 2),
    train_latents=2,
    embed_dim=6,
)
LANGUAGE = PerceiverIOConfig(
    input=InputConfig(
        features=TokenFeatures(vocab_size=31, seq_len=13, dim=8), positions=LearnedPositions(channels=8), combine="add"
    ),
    encoder=ENCODER,
    output=QueryOutputConfig(
        queries=GridQueries(shape=(13,), positions=LearnedPositions(channels=8)),
        channels=None,
        head=TiedHead(vocab_size=31),
        heads=2,
        qk_dim=8,
        value_dim=8,
    ),
)
CONFIGS: dict[str, Any] = {
    "ecp": ECP,
    "double": ECPConfig(vocab_size=31, max_seq_len=15, num_latents=5, dim=12, depth=2, heads=2, pattern="double"),
    "pictures": PerceiverIOConfig(input=PICTURES, encoder=ENCODER, output=AverageOutputConfig(classes=7)),
    "sound": PerceiverIOConfig(input=SOUND, encoder=ENCODER, output=AverageOutputConfig(classes=7)),
    "several": PerceiverIOConfig(input=MultimodalInputConfig(modalities=BOTH), encoder=ENCODER),
    "language": LANGUAGE,
    "hip": HIP,
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@every_config
def test_parameters_are_those_of_the_model(config: ModelConfig) -> None:
    found = parts(config)
    assert sum(part.parameters for part in found) == sum(p.numel() for p in build(config).parameters())
    assert count_parameters(config) == sum(part.parameters for part in found)
    assert all(part.shape for part in found)


@every_config
def test_memory_is_what_a_real_pass_keeps(config: Any) -> None:
    """Storages that autograd holds after a pass over zeros, and the numbers that came out."""
    model, saved = build(config).train(), {}
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            saved[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = trace._call(model, config, trace.example(config, 3))
    real = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    traced = trace.kept(config, rows=3, bfloat16=False)
    assert traced.activations == pytest.approx(real, rel=0.02)
    assert traced.results == 4 * sum(tensor.numel() for tensor in trace._tensors(results))
    memory, parameters = training_memory(config, rows=3, bfloat16=False, cpu=True), count_parameters(config)
    assert (memory.weights, memory.gradients, memory.moments) == (4 * parameters, 4 * parameters, 8 * parameters)
    assert memory.activations == round(1.25 * traced.activations)
    assert memory.logits == cost.LOGITS_WORK * traced.results


def test_flops_of_ecp_by_hand() -> None:
    """Projections and feed-forward layers of each token; a segment with itself, two with two before them."""
    d, n, s = 12, 15, 5
    token = 4 * d * d + 2 * 3 * d * d
    pairs = s * s + 2 * s * 2 * s
    assert forward_flops(ECP) == 2 * (2 * (n * token + 2 * d * pairs) + n * d * 31)


def test_flops_of_a_perceiver_by_hand() -> None:
    """One head reads the pixels as they are: its latents and what they read are projected, which are fewer."""
    config, n, m, d = CONFIGS["pictures"], 5, 5 * 7, 12
    c = config.input.dim
    cross = n * 2 * c * c + n * 2 * d * c + 2 * n * m * c + 2 * n * d * d
    layer = n * (4 * d * d + 4 * d * d) + 2 * n * n * d
    assert forward_flops(config) == 2 * (cross + 2 * layer + d * 7)


def test_latents_that_training_leaves_out_cost_nothing() -> None:
    assert forward_flops(HIP, training=True) < forward_flops(HIP)


def test_memory_grows_with_rows_and_shrinks_with_precision() -> None:
    one, two = (trace.kept(ECP, rows=rows, bfloat16=False).activations for rows in (1, 2))
    assert 1.8 < two / one <= 2.05
    large = ECPConfig(vocab_size=31, max_seq_len=64, segment_len=16, dim=64, depth=2, heads=1)
    assert trace.kept(large, rows=8, bfloat16=True).activations < trace.kept(large, rows=8, bfloat16=False).activations


def test_nothing_is_allocated() -> None:
    """A model of a trillion parameters is counted as fast as a small one."""
    config = ECPConfig(dim=2**17, depth=5, heads=2**10)
    assert count_parameters(config) > 10**12
    assert all(isinstance(module, nn.Module) for module in trace._model(config).modules())
