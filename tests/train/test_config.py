from collections.abc import Callable
from typing import Any

import pytest

from perceivers.data.config import CopyConfig
from perceivers.models.ecp_config import ECPConfig
from perceivers.models.input_config import LearnedPositions
from perceivers.models.perceiver_ar_config import PerceiverARConfig
from perceivers.train.config import CrossEntropy, OptimConfig, ParallelConfig, TrainConfig, num_targets


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


SHORT = PerceiverARConfig(max_seq_len=40, num_latents=13)


def test_a_sweep_has_room() -> None:
    TrainConfig(model=SHORT, data=CopyConfig(), objective=CrossEntropy(sweep=3))
    assert num_targets(SHORT, CrossEntropy(sweep=3)) == 39
    for model, sweep, message in (
        (SHORT, 0, "sweep=0 must be at least 1 block"),
        (SHORT, 4, "sweep=4 blocks x 13 latents = 52 tokens, but the model reads 40: sweep at most 3"),
        (PerceiverARConfig(prefix_dropout=0.5), 2, "set prefix_dropout to 0, or sweep to 1"),
        (ECPConfig(), 2, "sweep=2 is for Perceiver AR; a model of kind 'ecp' has sweep=1"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainConfig(model=model, data=CopyConfig(), objective=CrossEntropy(sweep=sweep))


def test_runs_that_can_not_be_shared() -> None:
    data = CopyConfig(batch_size=6)
    assert TrainConfig(model=SHORT, data=data, parallel=ParallelConfig(dp=2, fsdp=3, cp=5)).parallel.processes == 30
    for model, parallel, changes, message in (
        (SHORT, {"dp": 0}, {}, "dp=0 must be at least 1 process"),
        (SHORT, {"dp": 2, "fsdp": 2}, {}, "batch_size=6 rows do not divide among dp=2 x fsdp=2 = 4 processes"),
        (ECPConfig(), {"cp": 2}, {}, "cp=2 cuts a Perceiver AR's context; for a 'ecp' use dp or fsdp"),
        (SHORT, {"cp": 2}, {"objective": CrossEntropy(sweep=2)}, "sweep=2 needs the context whole: set cp to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainConfig(model=model, data=data, parallel=ParallelConfig(**parallel), **changes)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: OptimConfig(eps=-1e-8), "eps=-1e-08 must be 0 or more"),
        (lambda: OptimConfig(optimizer="adamw", weight_decay=-0.1), "weight_decay=-0.1 must be 0 or more"),
        (lambda: OptimConfig(betas=(0.9, 1.0)), r"betas=\(0.9, 1.0\) must lie in \[0, 1\)"),
        (lambda: OptimConfig(betas=(-0.1, 0.9)), r"betas=\(-0.1, 0.9\) must lie in \[0, 1\)"),
        (lambda: CrossEntropy(z_loss=-1e-4), "z_loss=-0.0001 must be 0 or more"),
        (lambda: LearnedPositions(init_std=-1.0), "init_std=-1.0 must be 0 or more"),
    ],
)
def test_numbers_below_zero(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
