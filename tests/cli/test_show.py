from pathlib import Path

import pytest

from perceivers.cli.presets import run as presets
from perceivers.presets import PRESETS
from perceivers.train.metrics import read_metrics

from .conftest import Command


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset(command: Command, name: str) -> None:
    done = command("show", name)
    assert done.code == 0
    assert done.out.startswith(f"{name}: ")
    for row in ("token embedding", "latent stack", "inputs", "a predicted token", "memory, float32", "optimiser"):
        assert row in done.out


def test_numbers_of_a_preset(command: Command) -> None:
    """Of the published ImageNet model, which no machine need build for it."""
    out = command("show", "imagenet64").out
    assert "770,094,339" in out
    assert "random table, 66 + 66 + 5 x 1024" in out
    assert "1,024 latents and 11,392 before them" in out
    assert "750,000, of 1 rows in each of 2,048 batches: random crops" in out


def test_run(command: Command, text_run: Path, text_store: Path) -> None:
    out = command("show", text_run).out
    tokens = read_metrics(text_run)[-2]["tokens"]
    assert f"{text_store} (bytes, " in out
    assert "train 2 documents, 60 tokens" in out
    assert f"3 steps, {tokens:,} tokens, 0.0 minutes" in out
    assert "validation/nats" in out


def test_run_that_has_not_begun(command: Command, text_run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((text_run / "config.yaml").read_text())
    out = command("show", tmp_path).out
    assert "no step on record" in out
    assert "none saved yet" in out
    assert "made as it is needed" in out
    (tmp_path / "data.json").write_text("{}")
    assert "data.json is damaged" in command("show", tmp_path).err


def test_saved_model(command: Command, text_run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((text_run / "config.json").read_text())
    out = command("show", tmp_path).out
    assert "reads 'bytes' tokens; how it was trained is not on record" in out
    (tmp_path / "config.json").write_text("{}")
    assert "is not a model's config" in command("show", tmp_path).err


def test_mistakes(command: Command, tmp_path: Path) -> None:
    assert (command("show", "music_smal").code, command("show", tmp_path).code) == (2, 2)
    assert "did you mean music_small" in command("show", "music_smal").err
    assert "is neither a run nor a saved model" in command("show", tmp_path).err


def test_presets(command: Command) -> None:
    out = command("presets").out
    assert [line.split()[0] for line in out.splitlines()] == list(PRESETS)
    assert command("presets", "--help").code == 0
    with pytest.raises(ValueError, match="takes no arguments, got 'pg19'; try perceivers show pg19"):
        presets(["pg19"])
