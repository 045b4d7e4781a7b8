from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perceivers.data.picture_config import PictureConfig
from perceivers.data.picture_store import PictureWriter
from perceivers.evaluate.naming import class_probabilities, read_pictures
from perceivers.models.feature_config import PixelFeatures
from perceivers.models.input_config import FourierPositions, InputConfig
from perceivers.models.output_config import AverageOutputConfig
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig
from perceivers.models.perceiver_io import build_perceiver_io
from perceivers.picture_reading import PictureReading

SHAPE = (5, 7, 3)


def pictures(count: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def test_probabilities_of_the_classes() -> None:
    torch.manual_seed(1)
    config = PerceiverIOConfig(
        input=InputConfig(features=PixelFeatures(shape=SHAPE), positions=FourierPositions(bands=2)),
        encoder=EncoderConfig(num_latents=3, dim=10, blocks=1, depth=1, heads=5),
        output=AverageOutputConfig(classes=11),
    )
    model = build_perceiver_io(config).train()
    torch.nn.init.normal_(model.get_parameter("output.linear.weight"))
    probabilities = class_probabilities(model, pixels := pictures(5), PictureConfig(batch_size=2))
    assert model.training
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(pixels).float() / 127.5 - 1).softmax(-1)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4)
    shuffled = class_probabilities(model, pixels, PictureConfig(batch_size=2, permutation=1))
    assert not np.allclose(shuffled, probabilities, rtol=1e-4)
    torch.nn.init.constant_(model.get_parameter("output.linear.weight"), torch.inf)
    with pytest.raises(FloatingPointError, match="is not a number"):
        class_probabilities(model, pixels, PictureConfig(batch_size=2))


def test_labels_keep_no_picture_back(tmp_path: Path) -> None:
    """Neither damaged ones, nor too few, nor none beside some."""
    np.savez(tmp_path / "a.npz", x=pictures(2), y=np.arange(3))
    np.save(tmp_path / "b.npy", pictures(3))
    Image.fromarray(pictures(1)[0]).save(tmp_path / "c.png")
    (tmp_path / "y_labels.npy").write_bytes(b"damaged")
    given = read_pictures([tmp_path], SHAPE, split=None)
    assert (len(given.names), [name for name, _ in given.failed]) == (6, ["y_labels.npy"])
    np.savez(tmp_path / "labels.npz", y=np.arange(3))
    (failed,) = read_pictures([tmp_path / "labels.npz"], SHAPE, split=None).failed
    assert "there are no pictures" in failed[1]


def test_pictures_come_from_arrays_and_stores(tmp_path: Path) -> None:
    train, test = pictures(4), pictures(2, seed=1)
    np.savez(tmp_path / "a.npz", x_train=train, x_test=test)
    given = read_pictures([tmp_path / "a.npz"], SHAPE, split="test")
    assert len(given.names) == 2
    assert read_pictures([tmp_path / "a.npz"], SHAPE, split="Testing").names == given.names
    assert np.array_equal(given.pixels, test)
    given = read_pictures([tmp_path / "a.npz"], SHAPE, split=None)
    assert len(given.names) == len(given.pixels) == 6
    assert (given.failed, given.changed) == ([], None)
    np.save(tmp_path / "damaged.npy", np.zeros(3, dtype=object), allow_pickle=True)
    np.savez(tmp_path / "floats.npz", numbers=np.zeros(SHAPE))
    given = read_pictures([tmp_path], SHAPE, split=None)
    assert (len(given.names), sorted(name for name, _ in given.failed)) == (6, ["damaged.npy", "floats.npz/numbers"])
    with PictureWriter(tmp_path / "store", shape=SHAPE) as writer:
        writer.append("train", train)
    given = read_pictures([tmp_path / "store"], SHAPE, split="train")
    assert given.names == ["train[0]", "train[1]", "train[2]", "train[3]"]
    assert np.array_equal(given.pixels, train)
    with pytest.raises(ValueError, match="is a store: say which of its splits with --split: train"):
        read_pictures([tmp_path / "store"], SHAPE, split=None)
    with pytest.raises(ValueError, match=r"holds pictures of shape \(5, 7, 3\), the model reads \(3, 3, 1\)"):
        read_pictures([tmp_path / "store"], (3, 3, 1), split="train")


def test_files_take_the_models_size_and_colours(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    grey, colours = np.arange(35, dtype=np.uint8).reshape(5, 7), pictures(1)[0]
    image.fromarray(grey).save(tmp_path / "grey.png")
    image.fromarray(colours).save(tmp_path / "colour.png")
    given = read_pictures([tmp_path / "grey.png", tmp_path / "colour.png"], SHAPE, split=None)
    assert given.names == ["grey.png", "colour.png"]
    assert np.array_equal(given.pixels[0], grey[..., None].repeat(3, -1))
    assert given.changed == "pictures as the model reads them: 1 of 2 given colours"
    given = read_pictures([tmp_path], (3, 3, 1), split=None)
    assert given.pixels.shape == (2, 3, 3, 1)
    assert given.changed == "pictures as the model reads them: 2 of 2 resized to 3 x 3, 1 of 2 turned grey"
    given = read_pictures([tmp_path / "colour.png"], (5, 7, 1), split=None)
    weighed = colours @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(given.pixels[0, ..., 0], weighed, atol=0.6)
    with pytest.raises(ValueError, match="no pictures of split 'test'; leave --split out"):
        read_pictures([tmp_path], SHAPE, split="test")


def test_a_file_that_cannot_be_read_keeps_none_of_the_others_back(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    noise = np.random.default_rng(0).integers(0, 256, (31, 37, 3), dtype=np.uint8)
    image.fromarray(noise).save(tmp_path / "good.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "good.png").read_bytes()[:900])
    (tmp_path / "none.png").write_bytes(b"none")
    np.save(tmp_path / "odd.npy", np.zeros(3))
    sources = [tmp_path / name for name in ("half.png", "none.png", "nowhere", "odd.npy", "good.png")]
    given = read_pictures(sources, SHAPE, split=None)
    assert given.names == ["good.png"]
    assert len(given.pixels) == 1
    reasons = {Path(name).name: reason for name, reason in given.failed}
    assert set(reasons) == {"half.png", "none.png", "nowhere", "odd.npy"}
    assert "truncated" in reasons["half.png"]
    assert read_pictures([tmp_path / "half.png"], SHAPE, split=None).pixels.shape == (0, *SHAPE)


def test_a_reading_says_what_of_a_picture_is_resized_and_how(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (23, 31, 3), dtype=np.uint8)
    image.fromarray(pixels).save(tmp_path / "a.png")
    crop = PictureReading(fit="crop", crop=(0.5, 0.75), resample="bilinear")
    middle = image.fromarray(pixels[6:17, 7:24])  # 11 of 23 rows, 17 of 31 columns
    given = read_pictures([tmp_path / "a.png"], SHAPE, split=None, reading=crop)
    assert np.array_equal(given.pixels[0], np.asarray(middle.resize((7, 5), image.Resampling.BILINEAR)))
    whole = image.fromarray(pixels).resize((7, 5), image.Resampling.NEAREST)
    stretch = PictureReading(fit="stretch", resample="nearest")
    given = read_pictures([tmp_path / "a.png"], SHAPE, split=None, reading=stretch)
    assert np.array_equal(given.pixels[0], np.asarray(whole))
