"""The demo on a few chorales and a tiny model: all its files, and what it says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import perceivers.demo as demo
from perceivers.cli.main import main
from perceivers.data.chorales import chorale_events, chorale_splits
from perceivers.data.config import DataConfig
from perceivers.data.music import seconds
from perceivers.models.perceiver_ar_config import PerceiverARConfig
from perceivers.presets import bach_demo
from perceivers.train.config import TrainConfig

FILES = ("continuation.mid", "continuation.wav", "continuation.png", "training.png")


def tiny() -> TrainConfig:
    preset = bach_demo()
    model = PerceiverARConfig(
        vocab_size=391, max_seq_len=67, num_latents=31, dim=16, depth=1, heads=2, cross_heads=2, dropout=0.0
    )
    return replace(
        preset,
        model=model,
        data=DataConfig(batch_size=4, crop="uniform", transpose=1),
        max_steps=7,
        log_every=1,
        eval_every=3,
        eval_tokens=31,
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {split: chorales[:2] for split, chorales in chorale_splits().items()}
    monkeypatch.setattr(demo, "chorale_splits", lambda: few)
    monkeypatch.setattr(demo, "bach_demo", tiny)
    monkeypatch.setattr(demo, "PROMPT_SECONDS", 2.0)
    monkeypatch.setattr(demo, "CONTINUATION_SECONDS", 3.0)
    monkeypatch.setattr(demo, "PIECE_SECONDS", 4.0)


@pytest.mark.usefixtures("small")
def test_demo_makes_its_files_and_says_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    for name in FILES:
        assert (tmp_path / "demo" / name).stat().st_size > 100
        assert name in printed
    for words in (
        "unigram",
        "Kneser-Ney",
        "mixing counter",
        "Perceiver AR",
        "95 %",
        "What to try next",
        "keys at once",
        "perceivers train music_small",
    ):
        assert words in printed
    assert (tmp_path / "demo" / "run" / "model.safetensors").exists()


@pytest.mark.usefixtures("small")
def test_all_systems_are_scored_on_the_same_events(tmp_path: Path) -> None:
    result = demo.run_demo(tmp_path / "demo", seed=3)
    events = sum(len(chorale_events(chorale)) + 1 for chorale in chorale_splits()["test"][:2])
    assert result.model.tokens.sum() == events
    # After seven steps the model has learned nothing that an n-gram hasn't.
    assert result.counter < result.ngram < result.model.nats_per_token < np.log(391) + 0.1
    difference = result.model.nats_per_token - result.ngram
    assert result.comparison.difference.value == pytest.approx(difference, rel=1e-3)
    assert 3.0 <= result.continuation_seconds < 4.0


@pytest.mark.usefixtures("small")
def test_a_demo_replaces_an_earlier_one(tmp_path: Path) -> None:
    demo.run_demo(tmp_path / "demo")
    first = (tmp_path / "demo" / "continuation.mid").read_bytes()
    demo.run_demo(tmp_path / "demo")
    assert (tmp_path / "demo" / "continuation.mid").read_bytes() == first


def test_an_opening_ends_at_the_first_moment_after_its_length() -> None:
    ids = chorale_events(chorale_splits()["test"][0])
    opening = demo.opening(ids, 2.0)
    assert seconds(opening) >= 2.0 > seconds(opening[:-1])
    assert (opening == ids[: len(opening)]).all()
