"""A run small enough to be repeated: seven ragged documents, a model of a few thousand weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perceivers.data.config import CopyConfig, DataConfig
from perceivers.data.tokens import StoreWriter, TokenStore
from perceivers.models.perceiver_ar_config import PerceiverARConfig, TablePositions
from perceivers.train.config import OptimConfig, TrainConfig

MODEL = PerceiverARConfig(
    vocab_size=16,
    max_seq_len=11,
    num_latents=5,
    dim=14,
    depth=2,
    heads=7,
    cross_heads=2,
    widening=2,
    cross_widening=2,
    dropout=0.2,
    prefix_dropout=0.3,
)

CONFIG = TrainConfig(
    model=MODEL,
    data=DataConfig(batch_size=3, min_crop=1),
    optim=OptimConfig(lr=0.01, optimizer="adamw", weight_decay=0.1, schedule="cosine", warmup_steps=2),
    max_steps=10,
    log_every=1,
    save_every=3,
    seed=1,
    device="cpu",
)


def write_store(path: Path, *, seed: int = 0) -> TokenStore:
    rng = np.random.default_rng(seed)
    with StoreWriter(path, tokenizer="ids", vocab_size=13) as writer:
        for split, lengths in (("train", (1, 2, 3, 5, 7, 11, 23)), ("validation", (2, 13))):
            for length in lengths:
                writer.append(split, rng.integers(13, size=length), name=f"{split} {length}")
    return TokenStore.open(path)


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return write_store(tmp_path / "store")


@pytest.fixture
def other_store(tmp_path: Path) -> TokenStore:
    return write_store(tmp_path / "other store", seed=1)


@pytest.fixture
def tiny() -> Callable[..., TrainConfig]:
    """Configurations that differ from `CONFIG`: `tiny(max_steps=7, optim={"lr": 1.0})`."""

    def change(**changes: Any) -> TrainConfig:
        nested = {
            name: replace(getattr(CONFIG, name), **value) for name, value in changes.items() if type(value) is dict
        }
        return replace(CONFIG, **changes | nested)

    return change


@pytest.fixture
def copying() -> TrainConfig:
    """The copy task, with tables of positions."""
    model = replace(MODEL, vocab_size=259, positions=TablePositions())
    return replace(CONFIG, model=model, data=CopyConfig(length=12, batch_size=3, min_mirrored=2))
