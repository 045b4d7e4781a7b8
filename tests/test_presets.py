from dataclasses import replace

import pytest
import torch
import yaml

from perceivers.data.config import CopyConfig
from perceivers.data.synthetic import MirroredLoader
from perceivers.models.build import build
from perceivers.models.cost import count_parameters
from perceivers.presets import PRESETS, preset, summary
from perceivers.records import from_dict, to_dict
from perceivers.train.config import TrainConfig
from perceivers.train.objectives import count_targets, objective_loss

SMALL = ("bach_demo", "music_small", "text_small", "copy_tiny", "copy_4096")
MILLION = 1e6


@pytest.mark.parametrize("name", PRESETS)
def test_written_as_yaml_and_read_again(name: str) -> None:
    text = yaml.safe_dump(to_dict(preset(name)), sort_keys=False)
    assert from_dict(TrainConfig, yaml.safe_load(text)) == preset(name)


@pytest.mark.parametrize("name", PRESETS)
def test_summary_is_one_sentence_that_fits_a_line(name: str) -> None:
    assert summary(name).endswith(".")
    assert 20 < len(summary(name)) < 110


@pytest.mark.parametrize("name", SMALL)
def test_small_ones_make_a_step(name: str) -> None:
    """On the last 11 of 17 tokens, with one layer; all else is the preset's."""
    config = preset(name)
    small = replace(config.model, max_seq_len=17, num_latents=11, depth=1)
    batch = MirroredLoader(CopyConfig(length=16, batch_size=2), seed=0, split="test").batch(0)
    loss = objective_loss(build(small), batch, config.objective)
    loss.sum.backward()
    assert torch.isfinite(loss.sum)
    assert count_targets(batch, small, config.objective) == 2 * 11


@pytest.mark.parametrize(
    ("name", "millions"),
    [("maestro_symbolic", 165.6), ("pg19", 974.2), ("imagenet64", 770.1), ("copy_32", 26.8), ("copy_131072", 89.8)],
)
def test_published_sizes(name: str, millions: float) -> None:
    """The paper gives 770.1 M for ImageNet and 974.6 M for PG-19."""
    assert count_parameters(preset(name).model) / MILLION == pytest.approx(millions, abs=0.05)


def test_published_batches_have_the_published_rows() -> None:
    rows = {name: preset(name).data.batch_size * preset(name).accumulate for name in PRESETS}
    assert rows["copy_32"] == 1024
    assert rows["copy_131072"] == 4096
    assert rows["imagenet64"] == rows["pg19"] == 2048


def test_copy_presets_fit_their_sequences() -> None:
    for name in ("copy_tiny", "copy_4096", "copy_32", "copy_131072"):
        config = preset(name)
        assert isinstance(config.data, CopyConfig)
        assert config.model.max_seq_len >= config.data.length - 1


def test_misspelt() -> None:
    with pytest.raises(ValueError, match="called 'music_smal'; did you mean music_small"):
        preset("music_smal")
    with pytest.raises(ValueError, match="there are bach_demo, music_small"):
        preset("qqq")
