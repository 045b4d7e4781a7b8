"""Random numbers of the program around are neither reset nor used: not by training, opening, scoring or sampling."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import perceivers
from perceivers import PerceiverClassifier, load
from perceivers.data.config import CopyConfig
from perceivers.evaluate.copying import score_copying
from perceivers.generate.config import SamplingConfig
from perceivers.presets import preset
from perceivers.train.config import TrainConfig
from perceivers.train.loop import train


@contextmanager
def untouched() -> Iterator[None]:
    """Check that what is done within leaves all global generators as they were."""
    torch.manual_seed(101)
    np.random.seed(101)  # noqa: NPY002
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    yield
    assert torch.equal(torch.get_rng_state(), torch_state)
    after = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(a, b) for a, b in zip(numpy_state, after, strict=True))


def test_python_has_no_part_in_it() -> None:
    """What checks annotations in these tests draws from `random`, so that its state says nothing here."""
    for path in Path(perceivers.__path__[0]).rglob("*.py"):
        assert not re.search(r"^\s*(import random|from random )", path.read_text(), re.MULTILINE), path


@pytest.fixture
def config() -> TrainConfig:
    tiny = preset("copy_tiny")
    model = replace(tiny.model, dim=8, heads=2, cross_heads=2, dropout=0.2, prefix_dropout=0.3)
    data = CopyConfig(length=32, batch_size=2, min_mirrored=16)
    return replace(tiny, model=model, data=data, max_steps=2, device="cpu")


def test_training_and_what_it_leaves(config: TrainConfig, tmp_path: Path) -> None:
    def look(model: torch.nn.Module, step: int) -> dict[str, float]:
        return {"accuracy": score_copying(model, 32, count=2, split="validation").accuracy}

    with untouched():
        train(config, tmp_path / "a", evaluate=look, progress=False)
        train(replace(config, max_steps=3), tmp_path / "a", resume=True, progress=False)
        train(config, tmp_path / "b", init=tmp_path / "a", progress=False)
        run = load(tmp_path / "a")
        run.generate([1, 2, 3], max_tokens=3, sampling=SamplingConfig(seed=5))
        run.save_pretrained(tmp_path / "c")


def test_hooks_see_the_numbers_of_the_program_around(config: TrainConfig, tmp_path: Path) -> None:
    drawn = []

    def draw(model: torch.nn.Module, step: int) -> dict[str, float]:
        drawn.append(torch.rand(1))
        return {}

    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    train(replace(config, eval_every=1), tmp_path / "a", evaluate=draw, progress=False)
    assert torch.equal(torch.cat(drawn), expected)


@pytest.mark.parametrize("seed", [0, None])
def test_the_estimator(seed: int | None) -> None:
    X = np.random.default_rng(0).normal(size=(11, 3))
    with untouched():
        PerceiverClassifier(max_steps=2, dim=8, random_state=seed).fit(X, X[:, 0] > 0).score(X, X[:, 0] > 0)
