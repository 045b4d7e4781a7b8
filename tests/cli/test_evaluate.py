import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from perceivers.data.tokens import TokenStore
from perceivers.evaluate.likelihood import score
from perceivers.generate.loaded import Loaded, load

from .conftest import TINY, Command, write_store


def test_numbers_as_json(command: Command, text_run: Path, text_store: Path) -> None:
    done = command("evaluate", text_run, "--json", "--device", "cpu")
    assert done.code == 0
    assert done.err == ""
    result = json.loads(done.out)
    expected = score(load(text_run).model, TokenStore.open(text_store).split("test"), precision="float32")
    assert result["nats_per_token"] == pytest.approx(expected.nats_per_token, rel=1e-6)
    assert (result["documents"], result["tokens"]) == (2, 62)  # 29 and 31 bytes, and an end each
    assert result["bits_per_byte"] == pytest.approx(expected.nats.sum() / math.log(2) / 60)
    assert (result["stride"], result["max_seq_len"], result["least_context"]) == (5, 13, 8)
    assert sum(bucket["tokens"] for bucket in result["by_position"]) == 62
    low, high = result["nats_per_token_95"]
    assert low <= result["nats_per_token"] <= high


def test_table(command: Command, text_run: Path, text_store: Path) -> None:
    done = command("evaluate", text_run, "--split", "validation", "--stride", 2)
    assert done.code == 0
    assert f"{text_run} on the validation split of {text_store}: 2 documents, 62 bytes with their ends\n" in done.out
    assert "windows of 13 inputs that score 2: each token has the 11 before it in view" in done.out
    for row in ("nats a token", "95 %: ", "bits a byte", "perplexity a token", "most likely token is right", "0 to on"):
        assert row in done.out


def test_music_has_no_bytes(command: Command, music_run: Path) -> None:
    done = command("evaluate", music_run)
    assert done.code == 0
    assert "bits a byte" not in done.out
    assert "2 documents, 46 events with their ends\n" in done.out


def test_models_that_count_beside_it(command: Command, music_run: Path) -> None:
    result = json.loads(command("evaluate", music_run, "--baselines", "--json").out)
    names = [beside["name"] for beside in result["baselines"]]
    assert names[0] == "unigram"
    assert names[1].endswith("-gram")
    assert names[2] == "mixing counter"
    for beside in result["baselines"]:
        fewer = 100 * (1 - result["nats_per_token"] / beside["nats_per_token"])
        assert beside["percent_fewer"] == pytest.approx(fewer, rel=1e-4)
    done = command("evaluate", music_run, "--baselines")
    assert f"nats a token of the {names[1]}" in done.out
    assert "the model needs " in done.out


def test_one_document_says_nothing_of_others(command: Command, text_run: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "texts" / split).mkdir(parents=True)
        (tmp_path / "texts" / split / f"{split}.txt").write_text(f"some {split} words"[:19].ljust(19, "."))
    assert command("prepare", "text", tmp_path / "texts", "--out", tmp_path / "store").code == 0
    args = ["evaluate", text_run, "--data", tmp_path / "store"]
    assert json.loads(command(*args, "--json").out)["nats_per_token_95"] is None
    shown = command(*args).out
    assert "1 document, 20 bytes with their ends\n" in shown
    assert re.search(r"nats a token +[0-9.]+ +one document\n", shown)


@pytest.mark.parametrize("factor", [1e4, torch.inf])
def test_a_model_whose_numbers_overflow(command: Command, text_run: Path, tmp_path: Path, factor: float) -> None:
    """Its scores are there, as far as they are numbers, and the JSON is valid."""
    model = load(text_run).model
    torch.manual_seed(0)
    model.get_parameter("logits.weight").data.normal_(0, 1).mul_(factor)
    Loaded(model, "bytes").save_pretrained(tmp_path)
    store = json.loads((text_run / "data.json").read_text())["path"]
    done = command("evaluate", tmp_path, "--data", store, "--json")
    assert "NaN" not in done.out
    assert "Infinity" not in done.out
    result = json.loads(done.out)
    assert (result["documents"], result["perplexity"]) == (2, None)
    if factor == torch.inf:
        assert (done.code, result["nats_per_token"]) == (1, None)
        assert "what it predicts is not a number (NaN), and so are nats_per_token, " in done.err
    else:
        assert (done.code, done.err) == (0, "")
        assert result["nats_per_token"] > 709
        assert re.search(r"perplexity a token +inf\n", command("evaluate", tmp_path, "--data", store).out)


def test_other_data(command: Command, text_run: Path, tmp_path: Path) -> None:
    write_store(tmp_path / "store", tokenizer="bytes", vocab_size=256, splits="test")
    done = command("evaluate", text_run, "--data", tmp_path / "store", "--json")
    assert json.loads(done.out)["data"] == str(tmp_path / "store")


def test_copy_task(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perceivers.cli.evaluate.COPY_TOKENS", 64)
    flags = ["--max-steps", 1, "--eval-tokens", 16, "--model.dim", 8, "--data.batch-size", 2, "--device", "cpu"]
    assert command("train", "copy_tiny", "--out", tmp_path / "run", *flags).code == 0
    result = json.loads(command("evaluate", tmp_path / "run", "--json").out)
    assert (result["length"], result["sequences"], result["mirrored_tokens"]) == (32, 4, 64)
    shown = command("evaluate", tmp_path / "run", "--split", "val")
    assert "the copy task, validation sequences" in shown.out
    assert "right in the mirrored half" in shown.out
    assert "of 4" in shown.out
    assert "--stride has no meaning" in command("evaluate", tmp_path / "run", "--stride", 2).err
    (tmp_path / "run/config.yaml").unlink()
    assert command("evaluate", tmp_path / "run").code == 2


def test_copy_sequences_in_a_store(command: Command, tmp_path: Path) -> None:
    assert command("prepare", "copy", "--out", tmp_path / "store", "--length", 32, "--count", 3).code == 0
    flags = ["--max-steps", 1, "--eval-tokens", 16, "--model.dim", 8, "--data.batch-size", 2, "--device", "cpu"]
    assert command("train", "copy_tiny", "--out", tmp_path / "run", *flags).code == 0
    result = json.loads(command("evaluate", tmp_path / "run", "--data", tmp_path / "store", "--json").out)
    assert result["tokens"] == 31


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere/of/all"], "nowhere/of/all does not exist"),
        (["EMPTY"], "has no config.json: it holds no saved model"),
        (["RUN", "--split", "tset"], "no split 'tset'; it has"),
        (["RUN", "--stride", "6"], "stride=6 must lie in 1..5"),
        (["RUN", "--data", "nowhere"], "nowhere: there is no store"),
        (["RUN", "--data", "EMPTY"], "not a store"),
        (["RUN", "--data", "MUSIC"], "holds 'performance' tokens"),
        (["RUN", "--splitt", "test"], "--split"),
        ([], "run"),
    ],
)
def test_mistakes(
    command: Command, text_run: Path, music_store: Path, tmp_path: Path, args: list[str], said: str
) -> None:
    places = {"RUN": text_run, "EMPTY": tmp_path, "MUSIC": music_store}
    done = command("evaluate", *(places.get(arg, arg) for arg in args))
    assert done.code == 2
    assert said in done.err.lower() if not args else said in done.err


def test_half_a_run(command: Command, text_run: Path, tmp_path: Path) -> None:
    config = (text_run / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    assert "has no model.safetensors" in command("evaluate", tmp_path).err
    weights = (text_run / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    done = command("evaluate", tmp_path)
    assert (done.code, "model.safetensors is damaged" in done.err) == (2, True)
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert "has no data.json, which would say what it was trained on: give --data" in command("evaluate", tmp_path).err
    (tmp_path / "config.json").write_text(config.replace('"depth": 1', '"depth": 2'))
    assert "does not fit the model: missing layers.1." in command("evaluate", tmp_path).err
    (tmp_path / "config.json").write_text("{")
    assert "config.json is not a model's config" in command("evaluate", tmp_path).err


def test_ids_of_another_vocabulary(command: Command, tmp_path: Path) -> None:
    """Both are stores of ids, but the model knows fewer."""
    for name, size in (("small", 7), ("large", 11)):
        np.save(tmp_path / f"{name}.npy", np.arange(30).reshape(3, 10) % size)
        args = ["prepare", "tokens", tmp_path / f"{name}.npy", "--out", tmp_path / name, "--vocab-size", size]
        assert command(*args).code == 0
    flags = ["--model.vocab-size", 10, "--max-steps", 1, *TINY]
    assert command("train", "text_small", "--data", tmp_path / "small", "--out", tmp_path / "run", *flags).code == 0
    done = command("evaluate", tmp_path / "run", "--data", tmp_path / "large")
    assert (done.code, "the model knows 10" in done.err) == (2, True)
