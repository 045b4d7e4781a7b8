"""Every family from files to answers, by commands alone: tiny models, a few steps."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from perceivers.cli import evaluate_io, hooks
from perceivers.data.masked_config import MaskedTextConfig
from perceivers.data.picture_config import PictureConfig, WarpConfig
from perceivers.data.picture_store import PictureStore, PictureWriter
from perceivers.generate.loaded import Loaded
from perceivers.models.config import ModelConfig
from perceivers.models.ecp_config import ECPConfig
from perceivers.models.feature_config import FlowFeatures, PixelFeatures, TokenFeatures
from perceivers.models.hip_config import DataSet, HiPConfig, Modality
from perceivers.models.input_config import FourierPositions, InputConfig, LearnedPositions
from perceivers.models.output_config import (
    AverageOutputConfig,
    GridHead,
    GridQueries,
    InputQueries,
    QueryOutputConfig,
    TiedHead,
)
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig
from perceivers.models.perceiver_io import build_perceiver_io
from perceivers.picture_reading import PictureReading
from perceivers.presets import preset
from perceivers.records import to_dict
from perceivers.train.config import EndPointError, Reconstruction, TrainConfig

from .conftest import Command

QUICK = {"max_steps": 3, "max_minutes": None, "eval_every": 2, "eval_tokens": 20, "save_every": 2, "log_every": 1}
ENCODER = EncoderConfig(num_latents=3, dim=8, blocks=1, depth=1, heads=2)


def settings(path: Path, config: TrainConfig) -> Path:
    """A file with a whole configuration that makes three quick steps."""
    optim = replace(config.optim, warmup_steps=0)
    quick = replace(config, **QUICK, optim=optim, device="cpu", precision="float32", compile=False)
    path.write_text(yaml.safe_dump(to_dict(quick)))
    return path


def with_model(name: str, model: ModelConfig, data: Any, **changes: Any) -> TrainConfig:
    return replace(preset(name), model=model, data=data, **changes)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three classes."""
    path = tmp_path_factory.mktemp("pictures") / "store"
    rng = np.random.default_rng(0)
    with PictureWriter(path, shape=(5, 7, 1), classes=("ash", "oak", "yew")) as writer:
        for split, count in (("train", 11), ("validation", 7), ("test", 5)):
            pixels = rng.integers(0, 256, (count, 5, 7, 1)).astype(np.uint8)
            writer.append(split, pixels, rng.integers(0, 3, count))
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos without classes."""
    path = tmp_path_factory.mktemp("photos") / "store"
    rng = np.random.default_rng(0)
    with PictureWriter(path, shape=(23, 29, 3)) as writer:
        for split in ("train", "validation", "test"):
            writer.append(split, rng.integers(0, 256, (2, 23, 29, 3)).astype(np.uint8))
    return path


def perceiver(**changes: Any) -> PerceiverIOConfig:
    picture = InputConfig(features=PixelFeatures(shape=(5, 7, 1)), positions=FourierPositions(bands=2))
    return PerceiverIOConfig(
        **{"input": picture, "encoder": ENCODER, "output": AverageOutputConfig(classes=3), **changes}
    )


def hip() -> HiPConfig:
    modalities = (
        Modality(name="image", positions=35, channels=1),
        Modality(name="label", positions=1, channels=3),
    )
    return HiPConfig(
        data_sets=(DataSet(name="pictures", modalities=modalities),),
        label_modalities=("label",),
        groups=(5, 1, 5),
        latents=(2, 5, 2),
        dims=(8, 8, 8),
        heads=(2, 2, 2),
        embed_dim=8,
    )


def test_a_perceiver_names_pictures(command: Command, pictures: Path, tmp_path: Path) -> None:
    config = with_model("mnist", perceiver(), PictureConfig(batch_size=3, shift=1, permutation=5))
    run = tmp_path / "run"
    trained = command("train", settings(tmp_path / "a.yaml", config), "--data", pictures, "--out", run)
    assert trained.code == 0, trained.err
    assert "3 steps, 9 pictures" in trained.out
    asked = next(line for line in trained.out.splitlines() if "perceivers predict" in line)
    assert command(*asked.split()[1:]).code == 0  # as it is printed
    scored = command("evaluate", run, "--json")
    result = json.loads(scored.out)
    assert result["pictures"] == 5
    assert 0 <= result["accuracy"] <= 1
    assert "right" in command("evaluate", run, "--split", "validation").out
    assert json.loads(command("evaluate", run, "--split", "val", "--json").out)["split"] == "validation"
    assert "35 of 11 channels" in command("show", run).out
    again = command("train", run, "--resume", "--max-steps", "5")
    assert again.code == 0, again.err
    assert "5 steps, 15 pictures" in again.out
    assert command("evaluate", run, "--stride", "3").err.count("--stride has no meaning for a model that reads") == 1


def test_classes_of_another_store_are_compared_by_name(command: Command, pictures: Path, tmp_path: Path) -> None:
    """A store that numbers the same classes otherwise scores as the first one does; another class is named."""
    run = tmp_path / "run"
    config = with_model("mnist", perceiver(), PictureConfig(batch_size=3))
    assert command("train", settings(tmp_path / "a.yaml", config), "--data", pictures, "--out", run).code == 0
    expected = json.loads(command("evaluate", run, "--json").out)
    (run / "data.json").rename(tmp_path / "data.json")  # names stand in the saved model, too
    split = PictureStore.open(pictures).split("test")
    assert split.labels is not None
    for names, places in ((("yew", "ash", "oak"), (1, 2, 0)), (("yew", "ash", "elm"), (1, 2, 0))):
        with PictureWriter(tmp_path / names[-1], shape=(5, 7, 1), classes=names) as writer:
            writer.append("test", split.pixels, np.array(places)[split.labels])
    scored = command("evaluate", run, "--data", tmp_path / "oak", "--json")
    assert scored.code == 0, scored.err
    result = json.loads(scored.out)
    assert (result["accuracy"], result["nats_per_picture"]) == (expected["accuracy"], expected["nats_per_picture"])
    refused = command("evaluate", run, "--data", tmp_path / "elm")
    assert refused.code == 2
    assert "has 'elm', which the model does not know" in refused.err


def test_a_saved_model_keeps_the_order_of_its_pixels(command: Command, pictures: Path, tmp_path: Path) -> None:
    config = with_model("mnist", perceiver(), PictureConfig(batch_size=3, permutation=5))
    run, saved = tmp_path / "run", tmp_path / "saved"
    assert command("train", settings(tmp_path / "a.yaml", config), "--data", pictures, "--out", run).code == 0
    Loaded.from_pretrained(run).save_pretrained(saved)
    scores = [json.loads(command("evaluate", one, "--data", pictures, "--json").out) for one in (run, saved)]
    assert scores[0]["nats_per_picture"] == pytest.approx(scores[1]["nats_per_picture"], rel=1e-6)
    said = [command("predict", one, pictures, "--split", "Testing").out for one in (run, saved)]
    assert said[0] == said[1]
    assert said[0].startswith("test[0] ")


def test_a_saved_model_is_scored_on_pixels_as_it_wants_them(command: Command, pictures: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = build_perceiver_io(perceiver())
    torch.nn.init.normal_(model.get_parameter("output.linear.weight"))
    reading = PictureReading(classes=("yew", "ash", "oak"), mean=(0.25,), std=(0.125,))
    Loaded(model, "pictures", pictures=reading).save_pretrained(tmp_path / "model")
    result = json.loads(command("evaluate", tmp_path / "model", "--data", pictures, "--json").out)
    split = PictureStore.open(pictures).renumbered(reading.classes).split("test")
    assert split.labels is not None
    numbers = (torch.from_numpy(split.pixels.copy()).float() / 255 - 0.25) / 0.125
    with torch.no_grad():
        logits = model.eval()(numbers)
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(split.labels.copy()))
    assert result["nats_per_picture"] == pytest.approx(float(expected), rel=1e-4)


def test_a_hierarchical_perceiver_learns_from_hidden_pixels_and_then_names(
    command: Command, pictures: Path, tmp_path: Path
) -> None:
    hidden = with_model("fashion_mae", hip(), PictureConfig(batch_size=3, hidden=0.5), objective=Reconstruction())
    first, second = tmp_path / "mae", tmp_path / "classes"
    trained = command("train", settings(tmp_path / "a.yaml", hidden), "--data", pictures, "--out", first)
    assert trained.code == 0, trained.err
    assert "squared error" in trained.err
    result = json.loads(command("evaluate", first, "--json").out)
    assert result["squared_error"] > 0
    assert result["row_r2"] < 1
    assert result["column_in_group_r2"] < 1
    named = with_model("fashion_classes", hip(), PictureConfig(batch_size=3))
    trained = command(
        "train", settings(tmp_path / "b.yaml", named), "--data", pictures, "--init", first, "--out", second
    )
    assert trained.code == 0, trained.err
    assert json.loads(command("evaluate", second, "--json").out)["pictures"] == 5


def test_perceiver_io_fills_blanks(command: Command, text_store: Path, tmp_path: Path) -> None:
    positions = LearnedPositions(channels=8)
    model = perceiver(
        input=InputConfig(features=TokenFeatures(seq_len=11, dim=8), positions=positions, combine="add"),
        output=QueryOutputConfig(
            queries=GridQueries(shape=(11,), positions=positions), channels=None, head=TiedHead(), value_dim=8
        ),
    )
    config = with_model("masked_small", model, MaskedTextConfig(batch_size=3, unit="bytes"))
    run = tmp_path / "run"
    trained = command("train", settings(tmp_path / "a.yaml", config), "--data", text_store, "--out", run)
    assert trained.code == 0, trained.err
    assert "masked bytes" in trained.out
    result = json.loads(command("evaluate", run, "--json").out)
    assert 0 < result["bits_per_masked_byte"] < 100
    predicted = command("predict", run, "a ___ b", "--json")
    assert predicted.code == 0, predicted.err


def test_perceiver_io_sees_motion(
    command: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_io, "FLOW_PAIRS", 8)
    monkeypatch.setattr(hooks, "FLOW_PAIRS", 8)
    model = perceiver(
        input=InputConfig(features=FlowFeatures(shape=(2, 11, 13, 3), channels=8), positions=FourierPositions(bands=2)),
        output=QueryOutputConfig(queries=InputQueries(), channels=2, head=GridHead(shape=(11, 13))),
    )
    data = WarpConfig(batch_size=2, shape=(11, 13), mean=0.5, spacing=5)
    config = with_model("flow_small", model, data, objective=EndPointError())
    run = tmp_path / "run"
    trained = command("train", settings(tmp_path / "a.yaml", config), "--data", photos, "--out", run)
    assert trained.code == 0, trained.err
    assert f"3 steps, {3 * 2 * 11 * 13:,} pixels" in trained.out
    result = json.loads(command("evaluate", run, "--json").out)
    assert (result["photos"], result["pairs"]) == (2, 8)
    assert result["zero_flow"] == pytest.approx(0.5, rel=0.3)
    if find_spec("skimage"):
        assert 0 < result["lucas_kanade"] < 5
        assert "optical_flow_ilk" in command("evaluate", run).out


def test_ecp_writes(command: Command, text_store: Path, tmp_path: Path) -> None:
    model = ECPConfig(max_seq_len=13, segment_len=5, dim=8, depth=2, heads=2)
    config = replace(preset("bytes_ecp"), model=model, data=replace(preset("bytes_ecp").data, batch_size=2))
    run = tmp_path / "run"
    trained = command("train", settings(tmp_path / "a.yaml", config), "--data", text_store, "--out", run)
    assert trained.code == 0, trained.err
    assert json.loads(command("evaluate", run, "--json").out)["stride"] == 6
    assert command("generate", run, "--max-tokens", "20", "--out", tmp_path / "new.txt").code == 0
    refused = command("generate", run, "--refill", "3", "--out", tmp_path / "other.txt")
    assert (refused.code, "refill=3 is for Perceiver AR" in refused.err) == (2, True)


def test_what_does_not_fit(command: Command, pictures: Path, photos: Path, text_store: Path, tmp_path: Path) -> None:
    naming = settings(tmp_path / "a.yaml", with_model("mnist", perceiver(), PictureConfig(batch_size=3)))
    few = settings(
        tmp_path / "b.yaml",
        with_model("mnist", perceiver(output=AverageOutputConfig(classes=2)), PictureConfig(batch_size=3)),
    )
    for file, store, message in (
        (naming, text_store, "holds 'bytes', which data of kind 'pictures' are not made of"),
        (naming, photos, "has no classes, which training a classifier needs"),
        (few, pictures, "the pictures have 3 classes, the model knows 2"),
        ("mnist", pictures, r"5 x 7 with 1 channels, the model reads (28, 28, 1): --model.input.features.shape 5 7 1"),
        ("text_small", pictures, "holds 'pictures', which data of kind 'tokens' are not made of: give a store made by"),
        ("text_small", pictures, "`perceivers prepare text DIR --out STORE`, or choose another preset, such as mnist"),
        ("music_small", text_store, "holds 'bytes', which is not what this preset learns from: give a store made by "),
        (
            "music_small",
            text_store,
            "prepare music DIR --out STORE`, or choose another preset, such as text_small",
        ),
    ):
        done = command("train", file, "--data", store, "--out", tmp_path / "run")
        assert done.code == 2
        assert message in done.err
        assert not (tmp_path / "run").exists()
