from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perceivers.data.picture_config import PictureConfig, WarpConfig
from perceivers.data.picture_store import PictureStore, PictureWriter
from perceivers.generate.loaded import Loaded
from perceivers.models.feature_config import FlowFeatures, PixelFeatures
from perceivers.models.hip_config import DataSet, HiPConfig, Modality
from perceivers.models.input_config import FourierPositions, InputConfig
from perceivers.models.output_config import AverageOutputConfig, GridHead, InputQueries, QueryOutputConfig
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig
from perceivers.models.perceiver_io import build_perceiver_io
from perceivers.picture_reading import PictureReading
from perceivers.train.config import OptimConfig, Reconstruction, TrainConfig
from perceivers.train.data_record import data_record
from perceivers.train.loop import train
from perceivers.train.pictures import check_scale, known_classes, numbered_as_before

MODEL = PerceiverIOConfig(
    input=InputConfig(features=PixelFeatures(shape=(3, 5, 1)), positions=FourierPositions(bands=2)),
    encoder=EncoderConfig(num_latents=3, dim=10, blocks=1, depth=1, heads=5),
    output=AverageOutputConfig(classes=3),
)
CONFIG = TrainConfig(
    model=MODEL,
    data=PictureConfig(batch_size=2),
    optim=OptimConfig(lr=0.01, warmup_steps=1),
    max_steps=1,
    device="cpu",
    compile=False,
)


def store_of(path: Path, classes: tuple[str, ...]) -> PictureStore:
    rng = np.random.default_rng(0)
    with PictureWriter(path, shape=(3, 5, 1), classes=classes) as writer:
        for split in ("train", "test"):
            writer.append(split, rng.integers(0, 256, (7, 3, 5, 1), dtype=np.uint8), np.arange(7) % len(classes))
    return PictureStore.open(path)


def test_a_run_goes_on_with_the_numbers_of_classes_that_it_started_from(tmp_path: Path) -> None:
    first, other = store_of(tmp_path / "a", ("ash", "oak", "yew")), store_of(tmp_path / "b", ("yew", "ash"))
    train(CONFIG, tmp_path / "first", store=first)
    assert known_classes(tmp_path / "first") == ("ash", "oak", "yew")
    second = train(CONFIG, tmp_path / "second", store=other, init=tmp_path / "first")
    assert second.loader.split.labels.tolist() == [2, 0, 2, 0, 2, 0, 2]
    assert (data_record(second.out) or {})["classes"] == ["ash", "oak", "yew"]
    again = train(replace(CONFIG, max_steps=2), tmp_path / "second", store=other, resume=True)
    assert again.loader.split.labels.tolist() == [2, 0, 2, 0, 2, 0, 2]
    assert Loaded.from_pretrained(second.out).pictures == PictureReading(classes=("ash", "oak", "yew"))
    strange = store_of(tmp_path / "c", ("ash", "elm"))
    with pytest.raises(ValueError, match=r"has 'elm', which the model does not know.*its own are 'ash', 'oak', 'yew'"):
        train(CONFIG, tmp_path / "third", store=strange, init=tmp_path / "first")
    assert numbered_as_before(CONFIG, strange, init=None, resumed=None) is strange


def test_classes_do_not_matter_where_none_are_named(tmp_path: Path) -> None:
    """A model that rebuilds pixels may start a classifier of any classes, and be scored on them."""
    image = DataSet(name="a", modalities=(Modality(name="image", positions=15, channels=1),))
    sizes: dict[str, Any] = {"groups": (1,), "latents": (3,), "dims": (8,), "depths": (1,), "heads": (2,)}
    sizes |= dict.fromkeys(("cross_heads", "widening", "cross_widening"), (1,))
    model = HiPConfig(data_sets=(image,), embed_dim=8, **sizes)
    rebuilds = replace(CONFIG, model=model, data=PictureConfig(batch_size=2, hidden=0.5), objective=Reconstruction())
    run = train(rebuilds, tmp_path / "run", store=store_of(tmp_path / "a", ("ash", "oak")))
    assert known_classes(run.out) is None
    assert Loaded.from_pretrained(run.out).pictures == PictureReading()
    other = store_of(tmp_path / "b", ("elm", "fir", "yew"))
    assert numbered_as_before(CONFIG, other, init=run.out, resumed=None) is other


def test_pixels_are_scaled_as_the_model_that_a_run_starts_from_had_them(tmp_path: Path) -> None:
    store = store_of(tmp_path / "a", ("ash", "oak", "yew"))
    model = build_perceiver_io(MODEL)
    Loaded(model, "pictures", pictures=PictureReading(mean=(0.25,), std=(0.5,))).save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match=r"scaled otherwise: add --data.mean 0\.25 --data.std 0\.5"):
        train(CONFIG, tmp_path / "run", store=store, init=tmp_path / "m")
    config = replace(CONFIG, data=PictureConfig(batch_size=2, mean=(0.25,), std=(0.5,)))
    run = train(config, tmp_path / "run", store=store, init=tmp_path / "m")
    pixels = run.loader.batch(0).pixels
    assert pixels.min() >= -0.5
    assert 1.2 < pixels.max() <= 1.5
    assert Loaded.from_pretrained(run.out).pictures == PictureReading(
        classes=("ash", "oak", "yew"), mean=(0.25,), std=(0.5,)
    )


def test_pixels_stand_in_the_order_of_the_model_that_a_run_starts_from(tmp_path: Path) -> None:
    store = store_of(tmp_path / "a", ("ash", "oak", "yew"))
    permuted = replace(CONFIG, data=PictureConfig(batch_size=2, permutation=5))
    assert Loaded.from_pretrained(train(permuted, tmp_path / "first", store=store).out).pictures == PictureReading(
        classes=("ash", "oak", "yew"), permutation=5
    )
    with pytest.raises(ValueError, match=r"in the order of seed 5, the data .* None: add --data.permutation 5"):
        train(CONFIG, tmp_path / "run", store=store, init=tmp_path / "first")
    run = train(permuted, tmp_path / "run", store=store, init=tmp_path / "first")
    assert known_classes(run.out) == ("ash", "oak", "yew")


def test_flow_is_in_the_unit_of_the_model_that_a_run_starts_from(tmp_path: Path) -> None:
    def flow(scale: float) -> Any:
        return PerceiverIOConfig(
            input=InputConfig(features=FlowFeatures(shape=(2, 5, 7, 3)), positions=FourierPositions(bands=2)),
            encoder=MODEL.encoder,
            output=QueryOutputConfig(queries=InputQueries(), channels=2, head=GridHead(shape=(5, 7), scale=scale)),
        )

    reading = PictureReading(flow_pixels=20.0)
    Loaded(build_perceiver_io(flow(0.01)), "frames", pictures=reading).save_pretrained(tmp_path)
    data = WarpConfig(shape=(5, 7))
    with pytest.raises(ValueError, match=r"scale is 0\.2, this model's is 0\.01: add --model.output.head.scale 0\.2"):
        check_scale(replace(CONFIG, model=flow(0.01), data=data), tmp_path, flow(0.01))
    check_scale(replace(CONFIG, model=flow(0.2), data=data), tmp_path, flow(0.01))
