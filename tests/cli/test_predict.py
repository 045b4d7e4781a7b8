import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from perceivers.generate.fill import fill
from perceivers.generate.loaded import Loaded
from perceivers.models.feature_config import FlowFeatures, PixelFeatures, TokenFeatures
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

from .conftest import Command, Outcome


@pytest.fixture(scope="module")
def language_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model that has learnt nothing."""
    torch.manual_seed(1)
    positions = LearnedPositions(channels=6)
    config = PerceiverIOConfig(
        input=InputConfig(features=TokenFeatures(seq_len=13, dim=6), positions=positions, combine="add"),
        encoder=EncoderConfig(num_latents=3, dim=10, blocks=1, depth=1, heads=5),
        output=QueryOutputConfig(
            queries=GridQueries(shape=(13,), positions=positions), channels=None, head=TiedHead(), heads=2
        ),
    )
    path = tmp_path_factory.mktemp("language")
    Loaded(build_perceiver_io(config), "masked_bytes").save_pretrained(path)
    return path


def test_blanks_as_json(command: Command, language_run: Path) -> None:
    done = command("predict", language_run, "ab__c", "__", "--json", "--top", 3, "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    result = json.loads(done.out)
    assert (result["run"], result["tokenizer"]) == (str(language_run), "masked_bytes")
    first, second = result["predictions"]
    expected = fill(Loaded.from_pretrained(language_run).model, "ab__c", top=3)
    assert first["text"] == expected.text
    assert [choice["text"] for choice in first["blanks"][0]["choices"]] == [c.text for c in expected.blanks[0].choices]
    assert (first["blanks"][0]["start"], second["blanks"][0]["length"]) == (2, 2)


def test_blanks_as_a_table(command: Command, language_run: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("a__ é[MASK]\n", encoding="utf-8")
    done = command("predict", language_run, tmp_path / "note.txt", "--top", 2, "--device", "cpu")
    assert done.code == 0
    expected = fill(Loaded.from_pretrained(language_run).model, "a__ é[MASK]", top=2)
    assert done.out.startswith(expected.text + "\n")
    assert done.out.count("%") == 4
    assert "  blank 1  " in done.out
    assert "  blank 2  " in done.out


def test_text_from_the_standard_input(command: Command, language_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"xy[MASK]\n")))
    done = command("predict", language_run, "-", "--json", "--device", "cpu")
    assert json.loads(done.out)["predictions"][0]["text"].startswith("xy")


@pytest.fixture
def picture_run(tmp_path: Path) -> Path:
    """A model of three classes that finds everything an eel."""
    config = PerceiverIOConfig(
        input=InputConfig(features=PixelFeatures(shape=(5, 7, 1)), positions=FourierPositions(bands=2)),
        encoder=EncoderConfig(num_latents=3, dim=10, blocks=1, depth=1, heads=5),
        output=AverageOutputConfig(classes=3),
    )
    model = build_perceiver_io(config)
    model.get_parameter("output.linear.bias").data[:] = torch.tensor([0.0, 1.0, 3.0])
    path = tmp_path / "run"
    Loaded(model, "pictures").save_pretrained(path)
    return path


def test_classes(command: Command, picture_run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 5, 7), np.uint8))
    done = command("predict", picture_run, tmp_path / "x.npy", "--json", "--top", 2, "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    predictions = json.loads(done.out)["predictions"]
    assert len(predictions) == 2
    best = torch.tensor([0.0, 1.0, 3.0]).softmax(-1)
    assert [one["class"] for one in predictions[1]["classes"]] == ["2", "1"]
    assert [one["probability"] for one in predictions[1]["classes"]] == pytest.approx(
        [float(best[2]), float(best[1])], rel=1e-5
    )
    names = {"path": "x", "fingerprint": "0", "tokenizer": "pictures", "splits": {}, "classes": ["cat", "dog", "eel"]}
    (picture_run / "data.json").write_text(json.dumps(names))
    done = command("predict", picture_run, tmp_path / "x.npy", "--device", "cpu")
    assert done.out.count("eel 84.4%  dog 11.4%  cat 4.2%") == 2
    done = command("predict", picture_run, tmp_path / "x.npy", "--out", "y.png", "--device", "cpu")
    assert (done.code, "--out is for motion" in done.err) == (2, True)


def test_names_of_classes_go_with_a_saved_model(command: Command, picture_run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 5, 7), np.uint8))
    loaded = Loaded.from_pretrained(picture_run)
    assert loaded.pictures is None
    loaded.pictures = PictureReading(classes=("cat", "dog", "eel"), mean=(0.25,), std=(0.125,))
    loaded.save_pretrained(tmp_path / "named")
    again = Loaded.from_pretrained(tmp_path / "named")
    assert again.pictures == loaded.pictures
    done = command("predict", tmp_path / "named", tmp_path / "x.npy", "--device", "cpu")
    assert "eel 84.4%  dog 11.4%  cat 4.2%" in done.out
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "named" / "config.json").read_text()


def test_a_broken_picture_is_named_and_the_others_go_on(command: Command, picture_run: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    noise = np.random.default_rng(0).integers(0, 256, (31, 37, 3), dtype=np.uint8)
    image.fromarray(noise).save(tmp_path / "colour.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "colour.png").read_bytes()[:900])
    inputs = [tmp_path / name for name in ("half.png", "colour.png", "nowhere.png")]
    done = command("predict", picture_run, *inputs, "--json", "--device", "cpu")
    assert done.code == 2
    changed, *errors = done.err.splitlines()
    assert changed.endswith("pictures as the model reads them: 1 of 1 resized to 5 x 7, 1 of 1 turned grey")
    assert [name in line for name, line in zip(("nowhere.png", "half.png"), errors, strict=True)] == [True, True]
    predictions = json.loads(done.out)["predictions"]
    assert [one["picture"] for one in predictions if "classes" in one] == ["colour.png"]
    assert sum("error" in one for one in predictions) == 2
    done = command("predict", picture_run, inputs[0], "--device", "cpu")
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1


def test_what_cannot_be_filled(command: Command, language_run: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9__")
    next_run = tmp_path / "next"
    Loaded(Loaded.from_pretrained(language_run).model, "bytes").save_pretrained(next_run)
    cases = {
        (language_run, "no blank"): "the text 'no blank' has no blank: write two underscores or more",
        (language_run, "twelve bytes__"): "the text has 14 bytes, this model reads 13: shorten it",
        (language_run, tmp_path / "none.txt"): "none.txt",
        (language_run, tmp_path / "latin.txt"): "latin.txt is not UTF-8 text (byte 3): save it as UTF-8",
        (language_run, "a__", "--top", 0): "--top 0 must be at least 1",
        (language_run, "a__", "--split", "test"): "--split and --out are for pictures",
        (language_run,): "name something to predict: perceivers predict",
        (next_run, "a__"): "reads 'bytes': no command makes anything of that: take perceivers.load in Python",
    }
    for arguments, message in cases.items():
        done = command("predict", *arguments, "--device", "cpu")
        assert done.code == 2
        assert message in done.err
        assert done.err.count("\n") == 1


@pytest.mark.parametrize("tokenizer", ["films", "labelled_bytes", "ids"])
def test_what_no_command_reads_is_told_of(command: Command, language_run: Path, tmp_path: Path, tokenizer: str) -> None:
    """Of a model that no store is for, --data is not asked for."""
    run = tmp_path / "run"
    Loaded(Loaded.from_pretrained(language_run).model, tokenizer).save_pretrained(run)
    for words in (["evaluate", run], ["evaluate", run, "--data", "store"], ["predict", run, "a__"], ["generate", run]):
        done = command(*words, "--device", "cpu")
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(f"perceivers: error: {run} reads {tokenizer!r}")
        assert done.err.endswith("take perceivers.load in Python\n")


def test_a_text_that_fails_keeps_none_of_the_others_back(command: Command, language_run: Path) -> None:
    inputs = ["ab__c", "no blank", "nowhere.txt", "xy__"]
    done = command("predict", language_run, *inputs, "--json", "--device", "cpu")
    assert done.code == 2
    assert len(done.err.splitlines()) == 2
    results = json.loads(done.out)["predictions"]
    assert [result.get("input") for result in results] == [None, "no blank", "nowhere.txt", None]
    assert results[3]["text"].startswith("xy")
    done = command("predict", language_run, *inputs, "--device", "cpu")
    assert (done.code, done.out.count("  blank 1  ")) == (2, 2)


def test_who_generates_and_who_predicts(command: Command, text_run: Path, language_run: Path, tmp_path: Path) -> None:
    done = command("predict", text_run, "a__")
    assert (done.code, done.out) == (2, "")
    assert f"predicts what comes next: perceivers generate {text_run}\n" in done.err
    (tmp_path / "my run").symlink_to(language_run)
    done = command("generate", tmp_path / "my run")
    assert (done.code, done.out) == (2, "")
    assert f"perceivers predict '{tmp_path}/my run' 'text with ____'\n" in done.err


@pytest.mark.parametrize(("channels", "mode"), [(3, "L"), (1, "RGB")])
def test_motion(channels: int, mode: str, command: Command, tmp_path: Path) -> None:
    """Grey pictures for a model that knows colours, and the other way round."""
    image = pytest.importorskip("PIL.Image")
    config = PerceiverIOConfig(
        input=InputConfig(
            features=FlowFeatures(shape=(2, 5, 7, channels), channels=6), positions=FourierPositions(bands=2)
        ),
        encoder=EncoderConfig(num_latents=3, dim=10, blocks=1, depth=1, heads=5),
        output=QueryOutputConfig(queries=InputQueries(), channels=2, head=GridHead(shape=(5, 7)), zero_channels=True),
    )
    model = build_perceiver_io(config)
    model.get_parameter("output.linear.bias").data[:] = torch.tensor([3.0, -4.0])  # right 3, up 4
    Loaded(model, "frames").save_pretrained(tmp_path / "run")
    for name, size in {"a.png": (11, 8), "b.png": (11, 8), "c.png": (11, 9)}.items():
        image.new(mode, size).save(tmp_path / name)

    def predict(*arguments: object) -> Outcome:
        return command("predict", tmp_path / "run", *arguments, "--device", "cpu")

    done = predict(tmp_path / "a.png", tmp_path / "b.png", "--out", tmp_path / "new" / "flow.png", "--json")
    assert (done.code, done.err) == (0, "")
    (result,) = json.loads(done.out)["predictions"]
    assert (result["rows"], result["columns"]) == (8, 11)
    assert (result["mean_right"], result["mean_down"]) == pytest.approx((3, -4), rel=1e-5)
    assert (result["mean_length"], result["longest"]) == pytest.approx((5, 5), rel=1e-5)
    with image.open(tmp_path / "new" / "flow.png") as picture:
        assert (picture.size, picture.mode) == ((11, 8), "RGB")
    done = predict(tmp_path / "a.png", tmp_path / "b.png")
    assert "length, longest      5.00 pixels\n" in done.out
    for arguments, message in {
        ("a.png",): "motion needs two pictures, 1 are given",
        ("a.png", "."): "holds 4 pictures, motion is from one to another: name each file",
        ("a.png", "c.png"): "the pictures differ in size: a.png has (8, 11), c.png (9, 11)",
    }.items():
        done = predict(*(tmp_path / name for name in arguments))
        assert done.code == 2
        assert message in done.err
    done = predict(tmp_path / "a.png", tmp_path / "b.png", "--out", "flow.jpg")
    assert "--out flow.jpg must end in .png" in done.err
