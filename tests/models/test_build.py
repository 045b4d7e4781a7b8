import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from perceivers.models.build import build
from perceivers.models.config import ModelConfig
from perceivers.models.ecp_config import ECPConfig
from perceivers.models.feature_config import TokenFeatures
from perceivers.models.hip_config import DataSet, HiPConfig, Modality
from perceivers.models.input_config import InputConfig
from perceivers.models.output_config import GridQueries, QueryOutputConfig
from perceivers.models.perceiver_ar import LatentQueries, PerceiverAR
from perceivers.models.perceiver_ar_config import LearnedQueries, MLPQueries, PerceiverARConfig, TablePositions
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig
from perceivers.nn.blocks import FeedForward
from perceivers.nn.options import ActivationName

CONFIG = PerceiverARConfig(
    vocab_size=17, max_seq_len=13, num_latents=5, dim=14, depth=2, heads=2, cross_heads=2, zero_logits=False
)
CONFIGS = {
    "rotary": CONFIG,
    "table": dataclasses.replace(CONFIG, positions=TablePositions(table="random", learned=True)),
    "fixed-table": dataclasses.replace(CONFIG, positions=TablePositions(table="fourier")),
    "mlp": dataclasses.replace(CONFIG, queries=MLPQueries(layers=3), extra_cross_attends=(1,)),
    "learned": dataclasses.replace(CONFIG, queries=LearnedQueries()),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_saved_weights_give_the_same_logits_bit_for_bit(config: PerceiverARConfig, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = build(config).eval()
    assert isinstance(model, PerceiverAR)
    assert model.config is config
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    again = build(config).eval()
    again.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    tokens, positions = torch.randint(3, 17, (2, 11)), torch.arange(1, 12).expand(2, -1)[..., None]
    assert torch.equal(again(tokens, positions=positions), model(tokens, positions=positions))


def test_the_seed_decides_the_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build(CONFIG).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_fresh_weights_have_the_sizes_of_the_reference() -> None:
    torch.manual_seed(1)
    config = dataclasses.replace(
        CONFIG, vocab_size=101, dim=210, positions=TablePositions(table="random"), latents_per_position=3
    )
    model = build(config)
    assert isinstance(model, PerceiverAR)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            wanted = module.in_features**-0.5
            assert module.weight.std().item() == pytest.approx(wanted, rel=0.05), name
            assert module.weight.abs().max() <= 2 * wanted / 0.8796 + 1e-6, name  # cut at two standard deviations
            assert (module.bias == 0).all(), name
    assert model.token_embedding.weight.std().item() == pytest.approx(0.8796, rel=0.05)
    assert model.token_embedding.weight.abs().max() <= 2
    assert model.position_tables is not None
    assert model.position_tables.table(0).std().item() == pytest.approx(0.8796, rel=0.05)
    assert model.latent_offsets.std().item() == pytest.approx(0.02 * 0.8796, rel=0.1)
    learned = build(dataclasses.replace(CONFIG, dim=210, queries=LearnedQueries()))
    assert isinstance(learned, PerceiverAR)
    assert learned.queries.learned is not None
    assert learned.queries.learned.std().item() == pytest.approx(0.02 * 0.8796, rel=0.1)


def test_zero_logits_make_every_token_equally_likely() -> None:
    model = build(dataclasses.replace(CONFIG, zero_logits=True)).eval()
    tokens, positions = torch.randint(3, 17, (2, 11)), torch.arange(1, 12).expand(2, -1)[..., None]
    assert (model(tokens, positions=positions) == 0).all()


FAMILIES: dict[str, Callable[[Any], ModelConfig]] = {
    "perceiver_ar": lambda name: dataclasses.replace(CONFIG, activation=name, queries=MLPQueries(activation=name)),
    "ecp": lambda name: ECPConfig(
        vocab_size=17, max_seq_len=13, segment_len=5, dim=14, depth=1, heads=7, activation=name
    ),
    "perceiver_io": lambda name: PerceiverIOConfig(
        input=InputConfig(features=TokenFeatures(vocab_size=17, seq_len=13, dim=14)),
        encoder=EncoderConfig(dim=14, num_latents=3, depth=1, heads=7, activation=name),
        output=QueryOutputConfig(queries=GridQueries(shape=(5,)), activation=name),
    ),
    "hip": lambda name: HiPConfig(
        data_sets=(DataSet(name="pictures", modalities=(Modality(name="image", positions=12, channels=3),)),),
        groups=(3, 1, 3),
        latents=(2, 6, 2),
        dims=(4, 6, 4),
        depths=(1, 1, 1),
        heads=(2, 2, 2),
        embed_dim=5,
        activation=name,
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("unchecked")
def test_every_family_has_every_activation(family: str) -> None:
    for name in get_args(ActivationName):
        model = build(FAMILIES[family](name))
        assert {m.activation for m in model.modules() if isinstance(m, FeedForward | LatentQueries)} == {name}
    with pytest.raises(ValueError, match=r"activation='glu' is not built.*: choose one of sq_relu, relu, "):
        FAMILIES[family]("glu")
