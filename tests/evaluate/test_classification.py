import numpy as np
import pytest
import torch
from torch import nn

from perceivers.data.picture_config import PictureConfig
from perceivers.data.picture_store import PictureSplit
from perceivers.evaluate.classification import score_classes, thinned


class ByBrightness(nn.Module):
    """Says class 0 for dark pictures, 1 for light ones, in proportion."""

    config = None

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        light = self.scale * pixels.mean((1, 2, 3))
        return torch.stack([-light, light], -1)


def split(labels: list[int] | None) -> PictureSplit:
    pixels = np.zeros((5, 2, 3, 1), np.uint8)
    pixels[[1, 3]] = 255
    return PictureSplit("test", pixels, None if labels is None else np.array(labels))


def test_counts_and_nats() -> None:
    score = score_classes(ByBrightness(), split([0, 1, 0, 0, 1]), PictureConfig(batch_size=2), precision="float32")
    assert (score.pictures, score.correct, score.accuracy) == (5, 3, 0.6)
    right, wrong = np.log1p(np.exp(-4)), np.log1p(np.exp(4))
    assert score.nats == pytest.approx(3 * right + 2 * wrong, rel=1e-6)
    assert score.standard_error == pytest.approx((0.6 * 0.4 / 5) ** 0.5)


def test_a_model_without_numbers_is_not_right() -> None:
    model = ByBrightness()
    torch.nn.init.constant_(model.scale, torch.nan)
    score = score_classes(model, split([0, 1, 0, 0, 1]), PictureConfig(batch_size=2), precision="float32")
    assert (score.correct, np.isnan(score.nats)) == (0, True)


def test_one_picture_says_nothing_of_others() -> None:
    score = score_classes(ByBrightness(), split([0, 1, 0, 0, 1]), PictureConfig(), max_pictures=1, precision="float32")
    assert (score.pictures, score.accuracy, score.standard_error) == (1, 1.0, None)


def test_some_pictures_evenly_spread() -> None:
    score = score_classes(ByBrightness(), split([0, 1, 0, 0, 1]), PictureConfig(), max_pictures=3, precision="float32")
    assert (score.pictures, score.correct) == (3, 2)
    assert len(thinned(split(None), 4)) == 3
    assert len(thinned(split(None), None)) == 5


def test_pictures_without_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="split 'test' has no labels"):
        score_classes(ByBrightness(), split(None), PictureConfig())


def test_the_model_stays_in_its_mode() -> None:
    model = ByBrightness().train()
    score_classes(model, split([0, 1, 0, 0, 1]), PictureConfig(), precision="float32")
    assert model.training
