import math
from typing import Any

import pytest
import torch
from torch import nn

from perceivers.models.build import build
from perceivers.models.perceiver_ar_config import LearnedQueries, PerceiverARConfig, TablePositions
from perceivers.train.config import OptimConfig
from perceivers.train.optim import build_optimizer, clip_gradients, learning_rate


def rates(steps: range | list[int], *, decay_steps: int = 100, done: float | None = None, **values: Any) -> list[float]:
    config = OptimConfig(**{"lr": 2.0, "warmup_steps": 0} | values)
    return [learning_rate(config, step, decay_steps=decay_steps, done=done) for step in steps]


def test_warm_up_is_linear_from_zero_and_the_schedule_counts_from_its_end() -> None:
    assert rates(range(6), warmup_steps=4) == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates([4, 54, 104], warmup_steps=4, schedule="cosine") == pytest.approx([2.0, 1.0, 0.0])
    assert rates([4, 53, 54], warmup_steps=4, schedule="steps") == pytest.approx([2.0, 2.0, 0.2])


def test_no_warm_up() -> None:
    for schedule in ("constant", "cosine", "steps", "rsqrt"):
        assert rates([0], schedule=schedule) == [2.0]


def test_cosine_ends_and_stays() -> None:
    expected = [0.5 + 1.5 * (1 + math.cos(math.pi * share)) / 2 for share in (0, 0.25, 0.5, 1, 1)]
    assert rates([0, 25, 50, 100, 1000], schedule="cosine", end_lr=0.5) == pytest.approx(expected)
    assert rates([0, 1, 2], schedule="cosine", decay_steps=1) == pytest.approx([2.0, 0.0, 0.0])


def test_steps_fall_by_ten() -> None:
    expected = [2.0, 0.2, 0.2, 0.02, 0.02, 0.002, 0.002]
    assert rates([49, 50, 79, 80, 94, 95, 10_000], schedule="steps") == pytest.approx(expected)


def test_reciprocal_root_starts_where_warm_up_ends() -> None:
    assert rates([3, 4, 16, 400], schedule="rsqrt", warmup_steps=4) == pytest.approx([1.5, 2.0, 1.0, 0.2])
    assert rates([0, 3, 99], schedule="rsqrt") == pytest.approx([2.0, 1.0, 0.2])


@pytest.mark.parametrize("schedule", ["cosine", "steps"])
def test_a_clock_takes_the_place_of_the_step(schedule: str) -> None:
    for share in (0.0, 0.3, 0.5, 0.85, 1.0, 1.5):
        by_step = rates([int(100 * share)], schedule=schedule)
        assert rates([7], schedule=schedule, done=share) == pytest.approx(by_step)


def test_schedules_without_an_end_ignore_the_clock() -> None:
    for schedule in ("constant", "rsqrt"):
        assert rates([7], schedule=schedule, done=0.9) == rates([7], schedule=schedule)


@pytest.mark.parametrize(
    ("done", "step", "expected"), [(0.0, 0, 0.0), (0.025, 1, 1.0), (0.01, 2, 1.0), (0.049, 0, 1.96)]
)
def test_warm_up_is_a_share_of_a_clocked_run_and_at_most_its_steps(done: float, step: int, expected: float) -> None:
    assert rates([step], warmup_steps=4, done=done) == pytest.approx([expected])
    assert rates([4], warmup_steps=4, done=done) == [2.0]
    assert rates([0], warmup_steps=4, done=0.05) == [2.0]


def test_after_a_twentieth_of_a_clocked_run_steps_decide_nothing() -> None:
    for done in (0.05, 0.07, 0.5, 1.0):
        for schedule in ("constant", "cosine", "steps"):
            few, more = (rates([step], warmup_steps=1000, done=done, schedule=schedule) for step in (3, 3000))
            assert few == more


def test_warm_up_starts_anywhere() -> None:
    assert rates(range(6), warmup_steps=4, warmup_lr=1.0) == [1.0, 1.25, 1.5, 1.75, 2.0, 2.0]
    assert rates([0, 1, 2], warmup_steps=2, warmup_lr=4.0, schedule="cosine") == [4.0, 3.0, 2.0]
    assert rates([0], warmup_lr=1.0) == [2.0]
    assert rates([0], warmup_steps=4, warmup_lr=1.0, done=0.025) == pytest.approx([1.5])


def test_steps_fall_where_and_by_what_is_said() -> None:
    own = {"schedule": "steps", "decay_at": (0.75, 0.25), "decay_factor": 0.5}
    assert rates([0, 24, 25, 74, 75, 1000], **own) == [2.0, 2.0, 1.0, 1.0, 0.5, 0.5]
    assert rates([0, 2, 3], decay_steps=11, schedule="steps", decay_at=(0.3, 0.31), decay_factor=0.5) == [2.0, 2.0, 1.0]
    assert rates([0, 99], schedule="steps", decay_at=()) == [2.0, 2.0]


def test_only_weights_of_linear_layers_decay() -> None:
    config = PerceiverARConfig(
        vocab_size=13,
        max_seq_len=11,
        num_latents=5,
        dim=14,
        depth=1,
        heads=7,
        cross_heads=2,
        positions=TablePositions(learned=True),
        queries=LearnedQueries(),
    )
    model = build(config)
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = build_optimizer(model, OptimConfig(optimizer="adamw", lr=0.5, weight_decay=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed = set()
    for name, parameter in model.named_parameters():
        if torch.allclose(parameter, 0.95 * before[name]) and before[name].any():
            decayed.add(name)
        else:
            assert torch.equal(parameter, before[name]), name
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert decayed == linear - {"logits.weight"}  # which starts at zero
    assert "token_embedding.weight" not in linear
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(before)


def test_adam_as_in_the_paper() -> None:
    """Two updates by hand: bias correction, epsilon outside the root, no decay."""
    weight = nn.Linear(1, 1, bias=False)
    nn.init.constant_(weight.weight, 1.0)
    optimizer = build_optimizer(weight, OptimConfig(lr=0.1, betas=(0.9, 0.99), eps=0.01))
    expected, m, v = 1.0, 0.0, 0.0
    for step, gradient in enumerate((0.5, -0.25), start=1):
        weight.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.99 * v + 0.01 * gradient**2
        expected -= 0.1 * (m / (1 - 0.9**step)) / (math.sqrt(v / (1 - 0.99**step)) + 0.01)
        assert weight.weight.item() == pytest.approx(expected)


def with_gradient(*values: float) -> nn.Module:
    model = nn.Linear(len(values), 1, bias=False)
    model.weight.grad = torch.tensor([values])
    return model


@pytest.mark.parametrize(
    ("limit", "expected"), [(1.0, [0.6, 0.8]), (5.0, [3.0, 4.0]), (7.0, [3.0, 4.0]), (0.0, [3.0, 4.0])]
)
def test_gradients_are_clipped_to_exactly_the_limit(limit: float, expected: list[float]) -> None:
    model = with_gradient(3.0, 4.0)
    assert clip_gradients(model, limit).item() == 5.0
    assert model.weight.grad.flatten().tolist() == pytest.approx(expected, rel=1e-7)  # pyright: ignore


def test_no_gradient_is_not_divided_by() -> None:
    model = with_gradient(0.0, 0.0)
    assert clip_gradients(model, 1.0).item() == 0.0
    assert model.weight.grad.flatten().tolist() == [0.0, 0.0]  # pyright: ignore


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_reported(value: float) -> None:
    assert not math.isfinite(clip_gradients(with_gradient(value, 1.0), 1.0).item())
