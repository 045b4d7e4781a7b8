import numpy as np
import pytest
import torch

from perceivers.data.picture_config import WarpConfig
from perceivers.data.picture_store import PictureSplit
from perceivers.data.warps import FlowBatch, WarpLoader, flow_batches, warp

CONFIG = WarpConfig(batch_size=6, shape=(11, 13), mean=2.0, spacing=12)


def slopes(count: int = 3, rows: int = 41, columns: int = 53) -> PictureSplit:
    """Photos whose first channel tells the column and whose second the row, so that a pixel says where it is from."""
    row, column = np.mgrid[:rows, :columns]
    photo = np.stack([4 * column, 6 * row, np.full_like(row, 7)], -1).astype(np.uint8)
    photos = np.stack([photo] * count)
    photos[..., 2] += np.arange(count, dtype=np.uint8)[:, None, None]
    return PictureSplit("train", photos, None)


def places(frame: torch.Tensor) -> torch.Tensor:
    """Columns and rows, as the first two channels tell them."""
    return (frame[..., :2] + 1) * 127.5 / torch.tensor([4.0, 6.0])


def test_the_first_frame_shows_at_x_what_the_second_shows_at_x_plus_flow() -> None:
    for batch in flow_batches(slopes(), CONFIG, count=12):
        first, second = places(batch.frames[:, 0]), places(batch.frames[:, 1])
        assert (first - second - batch.flow).abs().max() < 1e-3
        assert second[:, 0, 1, 0].sub(second[:, 0, 0, 0]).sub(1).abs().max() < 1e-3  # a plain crop


def test_mirrored_pairs_have_mirrored_flow() -> None:
    batch = WarpLoader(slopes(), CONFIG, seed=0).batch(0)
    first, second = places(batch.frames[:, 0]), places(batch.frames[:, 1])
    direction = second[:, 0, 1, 0] - second[:, 0, 0, 0]
    assert set(direction.round().tolist()) == {-1.0, 1.0}
    moved = first - second
    moved[..., 0] *= direction[:, None, None]
    assert (moved - batch.flow).abs().max() < 1e-3
    plain = WarpConfig(batch_size=6, shape=(11, 13), mean=2.0, spacing=12, flip=False)
    unflipped = WarpLoader(slopes(), plain, seed=0).batch(0)
    turned = direction.round() < 0
    assert torch.equal(unflipped.flow[~turned], batch.flow[~turned])
    assert torch.equal(unflipped.frames[turned].flip(3), batch.frames[turned])


def test_flow_has_the_length_that_was_asked_for_is_smooth_and_does_not_fold() -> None:
    config = WarpConfig(batch_size=100, shape=(29, 37), mean=4.0, spacing=24)
    flow = WarpLoader(slopes(), config, seed=0).batch(0).flow
    means = flow.norm(dim=-1).mean((1, 2))
    assert 1.99 < means.min() < 2.4
    assert 5.6 < means.max() < 6.01
    assert flow.abs().max() <= 16
    assert abs(means.mean() - 4) < 0.3
    stretch_x, stretch_y = 1 + flow.diff(dim=2)[..., 0], 1 + flow.diff(dim=1)[..., 1]
    assert stretch_x.min() > 0
    assert stretch_y.min() > 0
    assert flow.diff(n=2, dim=2).abs().max() < 0.2
    assert flow.flatten(0, 2).mean(0).norm() < 1  # no preferred direction


def test_grey_frames_show_how_bright_the_coloured_ones_are() -> None:
    coloured, grey = (WarpLoader(slopes(), CONFIG, grey=grey, seed=3).batch(2) for grey in (False, True))
    assert grey.frames.shape == (6, 2, 11, 13, 1)
    assert torch.equal(grey.flow, coloured.flow)
    expected = coloured.frames @ torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(grey.frames[..., 0], expected, rtol=0, atol=1.01 / 127.5)
    already = PictureSplit("train", slopes().pixels[..., :1], None)
    assert WarpLoader(already, CONFIG, grey=True, seed=3).batch(2).frames.shape == grey.frames.shape


def test_batches_are_functions_of_seed_and_step_which_ranks_share() -> None:
    loader = WarpLoader(slopes(), CONFIG, seed=3)
    batch = loader.batch(2)
    assert (batch.frames.shape, batch.flow.shape) == ((6, 2, 11, 13, 3), (6, 11, 13, 2))
    assert (batch.frames.dtype, batch.flow.dtype) == (torch.float32, torch.float32)
    assert batch.targets == 6 * 11 * 13
    assert batch.frames.abs().max() <= 1
    assert torch.equal(WarpLoader(slopes(), CONFIG, seed=3).batch(2).frames, batch.frames)
    for rank in range(2):
        part = WarpLoader(slopes(), CONFIG, seed=3, rank=rank, world_size=2).batch(2)
        assert torch.equal(part.frames, batch.frames[rank::2])
        assert torch.equal(part.flow, batch.flow[rank::2])
    assert not torch.equal(WarpLoader(slopes(), CONFIG, seed=4).batch(2).flow, batch.flow)
    shown = (batch.frames[:, 1, 0, 0, 2] + 1) * 127.5 - 7
    assert sorted(shown.round().int().tolist()) == [0, 0, 1, 1, 2, 2]  # two epochs of three photos
    copy = batch.to("cpu")
    assert isinstance(copy, FlowBatch)
    assert torch.equal(copy.flow, batch.flow)


def test_evaluation_is_always_the_same_and_goes_through_the_photos() -> None:
    batches = list(flow_batches(slopes(), CONFIG, count=7, batch_size=3))
    assert [len(batch.flow) for batch in batches] == [3, 3, 1]
    shown = torch.cat([(batch.frames[:, 1, 0, 0, 2] + 1) * 127.5 - 7 for batch in batches])
    assert shown.round().int().tolist() == [0, 1, 2, 0, 1, 2, 0]
    (again,) = flow_batches(slopes(), CONFIG, count=7, batch_size=7)
    assert torch.equal(torch.cat([batch.flow for batch in batches]), again.flow)
    with pytest.raises(ValueError, match="count=0 must be at least 1 pair"):
        next(flow_batches(slopes(), CONFIG, count=0))


def test_photos_as_small_as_frames_repeat_their_border() -> None:
    split = slopes(rows=11, columns=13)
    batch = WarpLoader(split, CONFIG, seed=0).batch(0)
    column = places(batch.frames[:, 0])[..., 0]
    assert (column > -1e-3).all()
    assert (column < 12 + 1e-3).all()
    with pytest.raises(ValueError, match="photos of 10 x 13 are smaller than frames of 11 x 13; prepare them larger"):
        WarpLoader(slopes(rows=10, columns=13), CONFIG, seed=0)


def test_warp_reads_where_it_is_told() -> None:
    pictures = torch.arange(35.0).reshape(1, 5, 7, 1)
    flow = torch.tensor([2.0, -1.0]).expand(1, 3, 3, 2)
    assert torch.allclose(warp(pictures, flow), pictures[:, 0:3, 4:7], atol=1e-4)
    half = torch.tensor([0.5, 0.0]).expand(1, 5, 7, 2)
    expected = (pictures[:, :, :-1] + pictures[:, :, 1:]) / 2
    assert torch.allclose(warp(pictures, half)[:, :, :-1], expected, atol=1e-4)
