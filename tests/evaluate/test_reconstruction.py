from dataclasses import replace

import numpy as np
import pytest
import torch

from perceivers.data.picture_config import PictureConfig
from perceivers.data.picture_store import PictureSplit
from perceivers.evaluate.reconstruction import linear_decodability, position_decodability, score_reconstruction
from perceivers.models.build import build
from perceivers.models.hip_config import DataSet, HiPConfig, Modality

CONFIG = HiPConfig(
    data_sets=(DataSet(name="pictures", modalities=(Modality(name="image", positions=35, channels=1),)),),
    groups=(1,),
    latents=(3,),
    dims=(8,),
    depths=(1,),
    heads=(2,),
    cross_heads=(1,),
    widening=(1,),
    cross_widening=(1,),
    embed_dim=8,
)


@pytest.fixture
def split() -> PictureSplit:
    pixels = np.random.default_rng(0).integers(0, 256, (11, 5, 7, 1)).astype(np.uint8)
    pixels[:, 0, :3] = 0  # three pixels never vary
    return PictureSplit("validation", pixels, None)


def test_a_model_that_says_nothing_has_the_error_of_zero(split: PictureSplit) -> None:
    torch.manual_seed(0)
    model = build(CONFIG)
    unembed = model.get_submodule("modalities.image.unembed")
    torch.nn.init.zeros_(unembed.weight)  # pyright: ignore
    torch.nn.init.zeros_(unembed.bias)  # pyright: ignore
    score = score_reconstruction(model, split, PictureConfig(batch_size=3, hidden=0.4), precision="float32")
    numbers = split.pixels / 127.5 - 1
    assert score.pictures == 11
    assert score.squared_error == pytest.approx(np.square(numbers).mean(), rel=0.15)
    assert score.mean_squared_error == pytest.approx(numbers.var(0).mean(), rel=0.15)
    assert score.mean_squared_error < score.squared_error


def test_places_can_be_read_off_positions_that_know_them(split: PictureSplit) -> None:
    torch.manual_seed(0)
    model = build(CONFIG)
    positions = model.get_parameter("modalities.image.positions")
    before = position_decodability(model, split)
    assert max(before.values()) < 0.3
    with torch.no_grad():
        places = torch.cartesian_prod(torch.arange(5.0), torch.arange(7.0))
        positions += places @ torch.randn(2, 8)
        positions[:3] = 1000.0  # pixels that never vary don't count
    after = position_decodability(model, split)
    assert min(after.values()) > 0.99


def test_decodability_is_that_of_unseen_places() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=101)
    assert linear_decodability([(rng.normal(size=(101, 40)), y)], ridge=1e-6) < 0.1
    assert linear_decodability([(np.stack([y, rng.normal(size=101)], 1), y)], ridge=1e-6) > 0.999


def test_each_group_may_have_a_code_of_its_own(split: PictureSplit) -> None:
    torch.manual_seed(0)
    sizes = {"latents": 4, "dims": 8, "depths": 1, "heads": 2, "cross_heads": 1, "widening": 1, "cross_widening": 1}
    model = build(replace(CONFIG, groups=(2, 1, 2), **{name: (size,) * 3 for name, size in sizes.items()}))
    positions = model.get_parameter("modalities.image.positions")
    places = torch.cartesian_prod(torch.arange(5.0), torch.arange(7.0))
    code = 10 * torch.randn(2, 8)
    with torch.no_grad():
        positions[:18] += places[:18] @ code  # 35 pixels in two groups are 18 and 17
        positions[18:] -= places[18:] @ code
    scores = position_decodability(model, split)
    assert min(scores["row_in_group"], scores["column_in_group"]) > 0.97
    assert min(scores["row"], scores["column"]) < 0.95


def test_which_group_a_pixel_is_in_says_nothing_in_its_group() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat([0.0, 100.0], 51) + rng.normal(size=102)
    x = rng.normal(size=(102, 5))
    assert linear_decodability([(x[:51], y[:51]), (x[51:], y[51:])], ridge=1e-3) < 0.1
