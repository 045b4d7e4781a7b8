from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from perceivers.data.picture_config import WarpConfig
from perceivers.data.picture_store import PictureSplit
from perceivers.data.warps import flow_batches
from perceivers.evaluate.flow import LucasKanade, colour_wheel, flow_picture, plot_flow, score_flow

CONFIG = WarpConfig(batch_size=3, shape=(7, 11), mean=2.0, spacing=12)


def photos(count: int = 3) -> PictureSplit:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 31, 37, 3), dtype=np.uint8)
    return PictureSplit("test", pixels, None)


class Answers(nn.Module):
    """Gives the true flow of evaluation, batch by batch, moved by (3, 4) for every pair of the first photo."""

    def __init__(self, split: PictureSplit, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.waiting = list(flow_batches(split, CONFIG, count=count))
        self.pair, self.photos = 0, len(split)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        assert not self.training
        batch = self.waiting.pop(0)
        assert torch.equal(batch.frames, frames)
        flow = batch.flow.clone()
        for row in range(len(flow)):
            if (self.pair + row) % self.photos == 0:
                flow[row] += torch.tensor([3.0, 4.0])
        self.pair += len(flow)
        return flow


def test_end_point_error_by_photo() -> None:
    split = photos()
    model = Answers(split, 7).train()
    score = score_flow(model, split, CONFIG, count=7)
    assert model.training
    assert (score.pairs, score.photos) == (7, 3)
    assert score.pixels.tolist() == [3 * 77, 2 * 77, 2 * 77]
    assert np.allclose(score.errors / score.pixels, [5, 0, 0], atol=1e-5)
    assert score.end_point_error == score.interval.value == pytest.approx(5 * 3 / 7)
    assert (score.interval.low, score.interval.high) == (pytest.approx(0), pytest.approx(5))
    flow = torch.cat([batch.flow for batch in flow_batches(split, CONFIG, count=7)])
    assert score.zero_flow == pytest.approx(flow.norm(dim=-1).mean().item())
    expected = score.end_point_error - score.zero_flow
    assert score.against_zero.difference.value == pytest.approx(expected)


class Zero(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.weight * frames[:, 0, ..., :2]


class Grey(Zero):
    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.weight * frames.squeeze(-1).movedim(1, -1)


def test_frames_without_colours() -> None:
    score = score_flow(Grey(), photos(), CONFIG, count=4, grey=True)
    assert score.end_point_error == pytest.approx(score.zero_flow)


def test_a_model_that_says_zero_is_as_good_as_zero() -> None:
    score = score_flow(Zero(), photos(), CONFIG, count=4, progress=False)
    assert score.end_point_error == score.zero_flow
    assert score.against_zero.percent_fewer.value == 0
    with pytest.raises(ValueError, match="count=0 must be 1 or more"):
        score_flow(Zero(), photos(), CONFIG, count=0)


def test_lucas_kanade_knows_what_moved_and_in_which_direction() -> None:
    pytest.importorskip("skimage", reason="the baseline of optical flow: pip install 'perceivers[flow]'")
    rows, columns = np.mgrid[:101, :113]
    waves = np.sin(rows / 5) * np.sin(columns / 7) + np.sin((rows + 2 * columns) / 11)
    smooth = PictureSplit("test", ((waves + 2) * 63).astype(np.uint8)[None, ..., None], None)
    config = WarpConfig(batch_size=3, shape=(47, 53), mean=1.0, spacing=24)
    score = score_flow(LucasKanade(), smooth, config, count=4)
    assert score.end_point_error < 0.3 * score.zero_flow


def test_the_colour_wheel_goes_round() -> None:
    wheel = colour_wheel()
    assert wheel.shape == (55, 3)
    corners = {0: (1, 0, 0), 15: (1, 1, 0), 21: (0, 1, 0), 25: (0, 1, 1), 36: (0, 0, 1), 49: (1, 0, 1)}
    for place, colour in corners.items():
        assert tuple(wheel[place]) == colour
    assert len(np.unique(wheel, axis=0)) == 55


def test_flow_picture() -> None:
    # As in the published code, to the right is red, the left is cyan; rows count downwards.
    flow = np.array([[[0, 0], [2, 0], [-2, 0], [1, 0], [4, 0]]], dtype=np.float32)
    white, right, left, half, beyond = flow_picture(flow, longest=2.0)[0].tolist()
    assert white == [255, 255, 255]
    assert (right[0], right[1]) == (255, 0)
    assert left[0] == 0
    assert left[2] == 255
    assert half[0] == 255
    assert 100 < half[1] < 140
    assert beyond[0] == 191
    assert flow_picture(flow)[0, 4].tolist()[0] == 255  # the longest that is there
    assert (flow_picture(np.zeros((2, 3, 2), dtype=np.float32)) == 255).all()
    up, down = flow_picture(np.array([[[0, -1], [0, 1]]], dtype=np.float32))[0].tolist()
    assert up[2] > up[1]  # violet
    assert down[1] > down[2]  # yellow


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (batch,) = flow_batches(photos(), CONFIG, count=2)
    flow = batch.flow.numpy()
    plot_flow(batch.frames.numpy(), flow, np.zeros_like(flow), tmp_path / "flow.png")
    assert (tmp_path / "flow.png").read_bytes().startswith(b"\x89PNG")
    plot_flow(batch.frames[:1, ..., :1].numpy(), flow[:1], flow[:1], tmp_path / "grey.png")
    assert (tmp_path / "grey.png").stat().st_size > 1000
