import itertools

import numpy as np
import pytest
import torch

from perceivers.data.picture_config import PictureConfig
from perceivers.data.picture_loader import PictureBatch, PictureLoader, picture_batches
from perceivers.data.picture_store import PictureSplit


def split_of(count: int = 13, rows: int = 5, columns: int = 7, channels: int = 3) -> PictureSplit:
    pixels = np.random.default_rng(0).integers(0, 256, (count, rows, columns, channels), dtype=np.uint8)
    return PictureSplit("train", pixels, np.arange(count))


def same(first: PictureBatch, second: PictureBatch) -> bool:
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


def one(**fields) -> torch.Tensor:
    """A picture of 7 x 7 with one bright pixel, above the centre and left of it, as the loader changes it."""
    pixels = np.zeros((1, 7, 7, 1), dtype=np.uint8)
    pixels[0, 2, 2] = 255
    loader = PictureLoader(PictureSplit("train", pixels, None), PictureConfig(batch_size=200, **fields), seed=0)
    return loader.batch(0).pixels[..., 0]


def test_an_epoch_has_every_picture_once_and_ranks_share_it() -> None:
    split = split_of()
    loader = PictureLoader(split, PictureConfig(batch_size=1), seed=3)
    for epoch in range(2):
        batches = [loader.batch(epoch * 13 + step) for step in range(13)]
        labels = torch.cat([batch.labels for batch in batches])
        assert labels.sort().values.tolist() == list(range(13))
        for batch in batches:
            expected = split.pixels[batch.labels.item()].astype(np.float64) / 127.5 - 1
            assert batch.pixels.dtype == torch.float32
            assert np.abs(batch.pixels[0].numpy() - expected).max() < 1e-6
    config = PictureConfig(batch_size=6, shift=1, rotate=5.0, scale=0.1, flip=True, hidden=0.4)
    whole = PictureLoader(split, config, seed=3).batch(2)
    parts = [PictureLoader(split, config, seed=3, rank=rank, world_size=2).batch(2) for rank in range(2)]
    for rank, part in enumerate(parts):
        assert torch.equal(part.labels, whole.labels[rank::2])
        assert torch.equal(part.pixels, whole.pixels[rank::2])
        assert torch.equal(part.hidden, whole.hidden[rank::2])
    with pytest.raises(ValueError, match="must be a multiple of the 4 processes"):
        PictureLoader(split, config, seed=3, rank=0, world_size=4)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    config = PictureConfig(batch_size=5, shift=2, rotate=20.0, scale=0.1, flip=True, hidden=0.5)
    loader = PictureLoader(split_of(), config, seed=1)
    third = loader.batch(3)
    assert same(PictureLoader(split_of(), config, seed=1).batch(3), third)
    assert not same(PictureLoader(split_of(), config, seed=2).batch(3), third)
    assert third.targets == 5
    assert same(third.to("cpu"), third)


def test_shift() -> None:
    moved = one(shift=2)
    places = {divmod(int(picture.argmax()), 7) for picture in moved}
    assert places == set(itertools.product(range(5), range(5)))
    assert ((moved + 1).abs() > 1e-4).sum((1, 2)).tolist() == [1] * 200  # whole pixels stay sharp


def test_flip() -> None:
    columns = [divmod(int(picture.argmax()), 7) for picture in one(flip=True)]
    assert set(columns) == {(2, 2), (2, 4)}
    assert 70 < columns.count((2, 4)) < 130


def test_rotation_keeps_the_distance_from_the_centre_and_its_limit() -> None:
    pixels = np.zeros((1, 31, 31, 1), dtype=np.uint8)
    pixels[0, 2:5, 14:17] = 255  # 12 above the centre
    split = PictureSplit("train", pixels, None)
    moved = PictureLoader(split, PictureConfig(batch_size=100, rotate=90.0), seed=0).batch(0).pixels[..., 0] + 1
    places = torch.arange(31.0) - 15
    row = (moved.sum(2) * places).sum(1) / moved.sum((1, 2))
    column = (moved.sum(1) * places).sum(1) / moved.sum((1, 2))
    assert (torch.hypot(row, column) - 12).abs().max() < 0.3
    assert row.max() < 0.3  # never below the centre
    assert column.min() < -11
    assert column.max() > 11


def test_scale() -> None:
    pixels = np.zeros((1, 31, 31, 1), dtype=np.uint8)
    pixels[0, 10:21, 10:21] = 255
    split = PictureSplit("train", pixels, None)
    moved = PictureLoader(split, PictureConfig(batch_size=100, scale=0.25), seed=0).batch(0).pixels[..., 0]
    sides = ((moved + 1) / 2).sum((1, 2)).sqrt() / 11
    assert 0.74 < sides.min() < 0.8
    assert 1.2 < sides.max() < 1.26


def test_the_border_is_repeated() -> None:
    split = PictureSplit("train", np.full((1, 5, 7, 3), 200, dtype=np.uint8), None)
    config = PictureConfig(batch_size=9, shift=3, rotate=45.0, scale=0.5)
    assert (PictureLoader(split, config, seed=0).batch(0).pixels - (200 / 127.5 - 1)).abs().max() < 1e-5


def test_one_permutation_for_all_pictures_training_and_evaluation() -> None:
    split = split_of()
    plain, mixed, other = (PictureConfig(batch_size=13, permutation=seed) for seed in (None, 3, 4))
    (first,), (second,), (third,) = (list(picture_batches(split, config)) for config in (plain, mixed, other))
    order = torch.from_numpy(np.random.default_rng(3).permutation(35))
    assert torch.equal(second.pixels.flatten(1, 2), first.pixels.flatten(1, 2)[:, order])
    assert not torch.equal(third.pixels, second.pixels)
    training = PictureLoader(split, mixed, seed=0).batch(0)
    assert torch.equal(training.pixels, second.pixels[training.labels])


def test_hidden_shares_are_exact_on_average() -> None:
    loader = PictureLoader(split_of(), PictureConfig(batch_size=400, hidden=0.5), seed=0)
    hidden = loader.batch(0).hidden
    counts = hidden.sum(1)
    assert hidden.shape == (400, 35)
    assert set(counts.tolist()) == {17, 18}
    assert 160 < (counts == 18).sum() < 240
    assert len(hidden.unique(dim=0)) == 400
    assert hidden.float().mean(0).sub(0.5).abs().max() < 0.12


def test_evaluation_is_in_order_unchanged_and_always_the_same() -> None:
    split = split_of()
    config = PictureConfig(batch_size=5, shift=2, rotate=20.0, flip=True, hidden=0.3)
    batches = list(picture_batches(split, config))
    assert [len(batch.pixels) for batch in batches] == [5, 5, 3]
    assert torch.cat([batch.labels for batch in batches]).tolist() == list(range(13))
    expected = split.pixels.astype(np.float64) / 127.5 - 1
    assert np.abs(torch.cat([batch.pixels for batch in batches]).numpy() - expected).max() < 1e-6
    others = list(picture_batches(split, config, batch_size=4))
    assert torch.equal(torch.cat([b.hidden for b in batches]), torch.cat([b.hidden for b in others]))


def test_without_labels() -> None:
    split = PictureSplit("train", split_of().pixels, None)
    batch = PictureLoader(split, PictureConfig(batch_size=3), seed=0).batch(0)
    assert batch.labels is None
    assert batch.hidden is None
    assert batch.to("cpu").labels is None
