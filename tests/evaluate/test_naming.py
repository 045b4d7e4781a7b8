from pathlib import Path

import numpy as np
import pytest
import torch

from perceivers.data.picture_config import PictureConfig
from perceivers.data.picture_store import PictureWriter
from perceivers.evaluate.naming import class_probabilities, read_pictures
from perceivers.models.feature_config import PixelFeatures
from perceivers.models.input_config import FourierPositions, InputConfig
from perceivers.models.output_config import AverageOutputConfig
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig
from perceivers.models.perceiver_io import build_perceiver_io

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


def test_pictures_come_from_arrays_and_stores(tmp_path: Path) -> None:
    train, test = pictures(4), pictures(2, seed=1)
    np.savez(tmp_path / "a.npz", x_train=train, x_test=test)
    names, pixels = read_pictures([tmp_path / "a.npz"], SHAPE, split="test")
    assert len(names) == 2
    assert np.array_equal(pixels, test)
    names, pixels = read_pictures([tmp_path / "a.npz"], SHAPE, split=None)
    assert len(names) == len(pixels) == 6
    with PictureWriter(tmp_path / "store", shape=SHAPE) as writer:
        writer.append("train", train)
    names, pixels = read_pictures([tmp_path / "store"], SHAPE, split="train")
    assert names == ["train[0]", "train[1]", "train[2]", "train[3]"]
    assert np.array_equal(pixels, train)
    with pytest.raises(ValueError, match="is a store: say which of its splits with --split: train"):
        read_pictures([tmp_path / "store"], SHAPE, split=None)
    with pytest.raises(ValueError, match=r"holds pictures of shape \(5, 7, 3\), the model reads \(3, 3, 1\)"):
        read_pictures([tmp_path / "store"], (3, 3, 1), split="train")


def test_files_are_resized_and_colours_need_channels(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    grey = np.arange(35, dtype=np.uint8).reshape(5, 7)
    image.fromarray(grey).save(tmp_path / "grey.png")
    image.fromarray(pictures(1)[0]).save(tmp_path / "colour.png")
    names, pixels = read_pictures([tmp_path / "grey.png", tmp_path / "colour.png"], SHAPE, split=None)
    assert names == ["grey.png", "colour.png"]
    assert np.array_equal(pixels[0], grey[..., None].repeat(3, -1))
    assert read_pictures([tmp_path / "grey.png"], (3, 3, 1), split=None)[1].shape == (1, 3, 3, 1)
    with pytest.raises(ValueError, match=r"colour.png is in colour, the model reads grey pictures"):
        read_pictures([tmp_path], (5, 7, 1), split=None)
    with pytest.raises(ValueError, match="no pictures of split 'test'; leave --split out"):
        read_pictures([tmp_path], SHAPE, split="test")
    (tmp_path / "broken.png").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"broken\.png"):
        read_pictures([tmp_path], SHAPE, split=None)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_pictures([tmp_path / "nowhere"], SHAPE, split=None)
