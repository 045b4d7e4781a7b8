from typing import Any

import pytest

from perceivers.data.config import CopyConfig
from perceivers.models.perceiver_ar_config import PerceiverARConfig
from perceivers.train.config import CrossEntropy, OptimConfig, TrainConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0.0}, "lr=0.0 must be positive"),
        ({"weight_decay": 0.1}, "weight_decay needs --optim.optimizer adamw"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must be 0 .* or more"),
        ({"decay_steps": 0}, "decay_steps=0 must be at least 1, or None"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0 must be 0 .* or more"),
    ],
)
def test_optimisers_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_steps": 0}, "max_steps=0 must be at least 1"),
        ({"accumulate": 0}, "accumulate=0 must be at least 1"),
        ({"log_every": 0}, "log_every=0 must be at least 1"),
        ({"save_every": 0}, "save_every=0 must be at least 1"),
        ({"eval_tokens": 0}, "eval_tokens=0 must be at least 1"),
        ({"sample_every": -1}, "sample_every=-1 must be 0 or more"),
        ({"seed": -1}, "seed=-1 must be 0 or more"),
        ({"max_minutes": 0.0}, "max_minutes=0.0 must be positive"),
    ],
)
def test_runs_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(model=PerceiverARConfig(), data=CopyConfig(), **values)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_label_smoothing_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match=rf"label_smoothing={share} must lie in \[0, 1\)"):
        CrossEntropy(label_smoothing=share)
