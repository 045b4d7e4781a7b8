import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from perceivers.models.perceiver_ar_config import LearnedQueries, PerceiverARConfig, RotaryPositions, TablePositions

SMALL: dict[str, Any] = {"max_seq_len": 11, "num_latents": 5, "dim": 14, "depth": 3, "heads": 2, "cross_heads": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_latents": 0}, r"num_latents=0 must lie in 1\.\.max_seq_len=11"),
        ({"num_latents": 12}, r"num_latents=12 must lie in 1\.\.max_seq_len=11"),
        ({"heads": 4}, "heads=4 must divide the 14 channels that it splits"),
        ({"cross_heads": 5}, "cross_heads=5 must divide the 14 channels"),
        ({"input_dim": 15}, "cross_heads=2 must divide the 15 channels"),
        ({"dropout": 1.0}, r"dropout=1\.0 must lie in \[0, 1\)"),
        ({"prefix_dropout": -0.1}, r"prefix_dropout=-0\.1 must lie in \[0, 1\)"),
        ({"latent_dropout": 1.5}, r"latent_dropout=1\.5 must lie in \[0, 1\)"),
        ({"extra_cross_attends": (1, 3)}, r"extra_cross_attends has layer 3, but the stack has layers 0\.\.2"),
        ({"extra_cross_attends": (-1,)}, "extra_cross_attends has layer -1"),
        ({"extra_cross_attends": (1, 1)}, r"extra_cross_attends=\(1, 1\) names a layer twice"),
        ({"query_offset": True, "positions": TablePositions()}, "query_offset needs rotary positions"),
        ({"latents_per_position": 2, "queries": LearnedQueries()}, "learned queries are one vector a position"),
        (
            {"positions": TablePositions(), "position_source": "negative_end"},
            "position_source='negative_end' needs rotary positions",
        ),
        (
            {"positions": TablePositions(table="fourier"), "input_dim": 7, "cross_heads": 1},
            "a Fourier table needs an even width, got 7 channels",
        ),
        (
            {"positions": TablePositions(sizes=(5, 7)), "position_source": "start"},
            "positions of several axes come from the data",
        ),
        (
            {"positions": RotaryPositions(channel_share=0.2)},
            "no channel of the cross-attend turns, so the prefix's positions would change nothing: channel_share=0.2 ",
        ),
        ({"positions": RotaryPositions(head_share=0.4)}, "no head of the cross-attend turns, .* head_share=0.4 of 2 "),
        ({"positions": RotaryPositions(head_share=0.0)}, "no head of the cross-attend turns"),
        ({"positions": RotaryPositions(cross_head_groups=3)}, "cross_head_groups=3 must divide cross_heads=2"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        PerceiverARConfig(**SMALL | options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel_share": 0.0}, r"channel_share=0\.0 must lie in \(0, 1\]"),
        ({"channel_share": 1.1}, r"channel_share=1\.1 must lie in \(0, 1\]"),
        ({"head_share": -0.5}, r"head_share=-0\.5 must lie in \[0, 1\]"),
    ],
)
def test_shares_of_rotary_positions(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RotaryPositions(**options)


def test_derived_sizes() -> None:
    config = PerceiverARConfig(max_seq_len=13, num_latents=5, dim=14, heads=2, cross_heads=2)
    assert (config.embedding_dim, config.cross_dim, config.max_prefix_len, config.position_axes) == (14, 14, 8, 1)
    wide = dataclasses.replace(config, input_dim=22)
    assert (wide.embedding_dim, wide.cross_dim) == (22, 22)
    assert dataclasses.replace(wide, cross_channels="latent").cross_dim == 14
    tables = dataclasses.replace(config, positions=TablePositions(sizes=(3, 5, 7)))
    assert tables.position_axes == 3


def test_wavelength() -> None:
    config = PerceiverARConfig(max_seq_len=13, num_latents=5)
    assert config.wavelength == 13
    assert dataclasses.replace(config, query_offset=True).wavelength == 14
    longer = dataclasses.replace(config, positions=RotaryPositions(max_wavelength=31), query_offset=True)
    assert longer.wavelength == 32
    with pytest.raises(ValueError, match="only rotary positions have a wavelength"):
        _ = dataclasses.replace(config, positions=TablePositions()).wavelength


def test_turned_channels_are_even() -> None:
    shares = [(0.5, 7, 2), (0.5, 8, 4), (1.0, 7, 6), (0.1, 8, 0), (0.4, 8, 2)]
    for share, head_dim, channels in shares:
        assert RotaryPositions(channel_share=share).channels(head_dim) == channels


def test_turned_heads_are_the_first_of_each_group() -> None:
    half = RotaryPositions(head_share=0.5)
    assert RotaryPositions().heads(6) is None
    assert half.heads(6) == (0, 1, 2)
    assert half.heads(6, groups=3) == (0, 2, 4)
    assert half.heads(6, groups=6) == ()


def test_configs_are_frozen_and_import_no_torch() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PerceiverARConfig().dim = 5  # pyright: ignore[reportAttributeAccessIssue]
    code = "import sys, perceivers.models.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["vocab_size", "dim", "heads", "cross_heads", "widening", "latents_per_position"])
def test_sizes_are_at_least_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}=0 must be at least 1$"):
        PerceiverARConfig(**{name: 0})


@pytest.mark.parametrize("name", ["cross_head_groups", "max_wavelength"])
def test_sizes_of_rotations_are_at_least_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}=0 must be at least 1$"):
        RotaryPositions(**{name: 0})
