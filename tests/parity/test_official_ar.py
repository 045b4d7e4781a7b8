"""The numbers of the official Perceiver AR, from forward passes to optimiser steps and sampling."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from perceivers.convert.official_ar import convert_params
from perceivers.models.perceiver_ar import PerceiverAR, latent_steps
from perceivers.train.config import CrossEntropy, OptimConfig
from perceivers.train.objectives import Loss, count_targets, cross_entropy, objective_loss, predict
from perceivers.train.optim import build_optimizer, clip_gradients, learning_rate

from .compared import Consumed
from .official import Case, cases, compare_output, evaluation_metrics, run, shifted, token_batch
from .sampling import check_process_logits, check_sampling
from .units import check_call

CASES = cases()
WITH_MODEL = ("forward", "forward_variants", "loss_grad", "optimizer", "eval", "sampling_runs")
SCHEDULES = {"t5": "rsqrt"}
"""Our names of official schedules, where they differ."""


def combinations() -> list[Any]:
    """Every case; those with a model in each precision that has numbers, with each attention back end."""
    found = []
    for case in CASES:
        name = case.path.stem
        if case.kind not in WITH_MODEL:
            found.append(pytest.param(case, torch.float32, "reference", id=name))
            continue
        for dtype in case.dtypes:
            for backend in ("reference", "sdpa"):
                label = f"{name}-{str(dtype).removeprefix('torch.')}-{backend}"
                found.append(pytest.param(case, dtype, backend, id=label))
    return found


@pytest.mark.parametrize(("case", "dtype", "backend"), combinations())
def test_case(case: Case, dtype: torch.dtype, backend: str) -> None:
    with case.arrays.whole("in/", "params/"):
        check(case, dtype, backend)


def check(case: Case, dtype: torch.dtype, backend: str) -> None:
    match case.kind:
        case "forward":
            check_forward(case, dtype, backend)
        case "forward_variants":
            for variant, options in case.info["variants"].items():
                check_forward(case, dtype, backend, where=f"{variant}/", **options)
        case "loss_grad":
            for name, smoothing in case.info["label_smoothings"].items():
                check_loss(case, dtype, backend, name, smoothing)
        case "optimizer":
            check_optimizer(case, dtype, backend)
        case "schedules":
            check_schedules(case)
        case "eval":
            check_evaluation(case, dtype, backend)
        case "units":
            for name, call in case.info["calls"].items():
                asked = Consumed(call)
                with asked.whole():
                    check_call(case, name, asked)
        case "sampling_runs":
            check_sampling(case, backend)
        case "process_logits":
            check_process_logits(case)
        case kind:
            pytest.fail(f"{case.path} is of an unknown kind: {kind}")


def check_forward(
    case: Case,
    dtype: torch.dtype,
    backend: str,
    *,
    where: str = "",
    call_z_index_dim: int | None = None,
    use_inputs: str = "",
    **options: Any,
) -> None:
    model = case.model(dtype, backend, **options)
    positions = case.maybe(f"in/input_idxs{use_inputs}")
    output = run(model, case.tensor(f"in/inputs{use_inputs}"), positions, z_index_dim=call_z_index_dim)
    exact = dtype == torch.float64 and f"ref64/{where}logits" in case.arrays  # some variants have no float64 run
    name = "float64_vs_ref64_atol" if exact else "float32_atol"
    compare_output(case, output, where, atol=case.tolerance[name], dtype=dtype)


def check_loss(case: Case, dtype: torch.dtype, backend: str, name: str, smoothing: float) -> None:
    model = case.model(dtype, backend).train()
    batch = token_batch(case.tensor("in/events"), case.maybe("in/event_idxs"))
    inputs, positions, targets = shifted(batch)
    assert torch.equal(inputs, case.tensor("out/input_events"))
    assert torch.equal(targets, case.tensor("out/target_events"))
    real = inputs > 0
    if (stored := case.maybe("out/input_idxs")) is not None:
        assert torch.equal(positions[real], stored[real])

    config = CrossEntropy(z_loss=case.info["loss"]["z_loss"], label_smoothing=smoothing)
    logits, (labels, mask, _) = predict(model, batch, num_latents=model.config.num_latents)
    assert torch.equal(mask.long(), case.tensor("out/loss_mask"))
    if (stored := case.maybe("out/latent_last_steps")) is not None:
        assert torch.equal(latent_steps(batch.lengths - 1, mask.shape[1]).clamp(min=-1), stored)
    assert torch.equal(labels[mask], case.tensor("out/labels")[mask])
    atol = case.tolerance["per_position_atol"]
    torch.testing.assert_close(logits[mask].float(), case.tensor("out/logits")[mask], atol=atol, rtol=0)
    per_position = cross_entropy(logits, labels, z_loss=config.z_loss, label_smoothing=smoothing)
    # The official loss makes its soft targets in float32 even where the rest is float64.
    rtol = case.tolerance["scalars_rtol"] if dtype == torch.float32 else case.tolerance["float64_vs_ref64_rtol"]
    for kind, actual in zip(("loss", "z_loss"), per_position, strict=True):
        expected = case.expected(f"{name}/per_position_{kind}_unmasked", dtype)
        precision = {"atol": atol, "rtol": 0.0} if dtype == torch.float32 else {"atol": 0.0, "rtol": rtol}
        torch.testing.assert_close(actual[mask], expected[mask], **precision)

    loss = objective_loss(model, batch, config)
    for scalar, actual in scalars(loss, count_targets(batch, model.config, config)).items():
        expected = case.expected(f"{name}/scalar/{scalar}", dtype).to(actual.dtype)
        torch.testing.assert_close(actual.detach(), expected, atol=0, rtol=rtol)
    loss.sum.backward()
    official = convert_params(case.tree(f"out/{name}/grad/"), model.config)
    compare_gradients(model, official, atol=case.tolerance["grad_atol"])
    norm = clip_gradients(model, 0.0)
    torch.testing.assert_close(norm, case.expected(f"{name}/grad_global_norm", dtype), atol=0, rtol=rtol)


def scalars(loss: Loss, count: int) -> dict[str, Tensor]:
    z_loss = loss.shown["z_loss"]
    return {
        "total_loss": loss.sum,
        "total_z_loss": z_loss,
        "next_events_loss": loss.sum,
        "next_events_z_loss": z_loss,
        "num_next_events": torch.tensor(count),
        "next_events_loss_per_event": loss.sum / count,
        "next_events_z_loss_per_event": z_loss / count,
    }


def compare_gradients(model: PerceiverAR, official: dict[str, Tensor], *, atol: float) -> None:
    parameters = dict(model.named_parameters())
    for name, expected in official.items():
        gradient = parameters[name].grad if name in parameters else None
        if gradient is None:  # a fixed table, or one that no position reads
            gradient = torch.zeros_like(expected)
        torch.testing.assert_close(gradient.float(), expected, atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def optim_config(official: dict[str, Any]) -> OptimConfig:
    """Ours for the official `config.optimizer`, every value of which is taken or refused."""
    given = copy.deepcopy(official)
    assert given.pop("optimizer") == "adam"
    training_steps = given.pop("training_steps")
    assert training_steps > 0  # who asks for a rate says it
    adam, cosine, steps = (given.pop(f"{name}_kwargs") for name in ("adam", "cosine_decay", "step_decay"))
    schedule = given.pop("schedule_type")
    config = OptimConfig(
        lr=given.pop("base_lr"),
        betas=(adam.pop("b1"), adam.pop("b2")),
        eps=adam.pop("eps"),
        max_grad_norm=max(given.pop("max_norm"), 0.0),
        reduction="sum",
        schedule=SCHEDULES.get(schedule, schedule),
        warmup_steps=int(given.pop("warmup_steps")),
        warmup_lr=given.pop("warmup_initial_lr"),
        decay_at=tuple(steps.pop("decay_boundaries")),
        decay_factor=steps.pop("decay_rate"),
        end_lr=cosine.pop("end_value"),
    )
    left = {name: value for part in (given, adam, cosine, steps) for name, value in part.items()}
    assert left.keys() <= {"sgd_kwargs", "lamb_kwargs"}, left  # of other optimisers
    return config


def check_optimizer(case: Case, dtype: torch.dtype, backend: str) -> None:
    model = case.model(dtype, backend).train()
    config = optim_config(case.info["optimizer"])
    objective = CrossEntropy(
        z_loss=case.info["loss"]["z_loss"], label_smoothing=case.info["training"]["label_smoothing"]
    )
    optimizer = build_optimizer(model, config)
    events, positions = case.tensor("in/events"), case.maybe("in/event_idxs")
    compared, rates = 0, []
    for step in range(case.info["num_steps"]):
        rates.append(learning_rate(config, step, decay_steps=case.info["optimizer"]["training_steps"]))
        optimizer.param_groups[0]["lr"] = rates[-1]
        losses, count = [], 0
        for micro in range(case.info["training"]["num_microbatches"]):
            batch = token_batch(events[step, micro], None if positions is None else positions[step, micro])
            losses.append(objective_loss(model, batch, objective))
            count += count_targets(batch, model.config, objective)
            losses[-1].sum.backward()
        norm = clip_gradients(model, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        total = sum(losses[1:], start=losses[0]).detach()
        logged = {"global_gradient_norm": norm, "learning_rate": torch.tensor(rates[-1])}
        logged |= {f"train_{scalar}": value for scalar, value in scalars(total, count).items()}
        for scalar, actual in logged.items():
            expected = case.expected(f"scalars/{scalar}", dtype)[step].to(actual.dtype)
            rtol = case.tolerance["scalars_rtol"]
            torch.testing.assert_close(actual, expected, atol=0, rtol=rtol, msg=lambda m, n=scalar: f"{n}: {m}")
        compared += compare_parameters(case, model, f"step{step + 1}/params/", dtype, sum(rates))
    assert compared >= len(case.info["store_params_after"]) or dtype == torch.float64
    source = "ref64/step" if dtype == torch.float64 else "out/step"
    assert compared == len({name.split("/")[1] for name in case.arrays if name.startswith(source)})


def compare_parameters(case: Case, model: PerceiverAR, where: str, dtype: torch.dtype, moved: float) -> bool:
    """Compare where the case has parameters; `moved` is the sum of learning rates."""
    source = "ref64" if dtype == torch.float64 else "out"
    stored = case.tree(f"{source}/{where}")
    if not stored:
        return False
    name = "params_atol" if dtype == torch.float32 else "params_atol_in_float64_vs_ref64"
    atol = {official: np.full(value.shape, case.tolerance[name]) for official, value in stored.items()}
    if dtype == torch.float32:
        # A key's bias shifts all scores of a query: its gradient is rounding noise, of which Adam makes full steps.
        for official in atol:
            if official.endswith("attention/linear_1/b"):
                atol[official][:] = 2 * moved
    allowed = convert_params(atol, model.config)
    actual = model.state_dict()
    for ours, expected in convert_params(stored, model.config).items():
        worst = ((actual[ours].double() - expected.double()).abs() - allowed[ours]).max()
        assert worst <= 0, f"{where}{ours} is {worst} farther off than allowed"
    return True


def check_schedules(case: Case) -> None:
    assert case.tolerance["atol"] == "1e-6 times base_lr"
    for name, official in case.info["schedules"].items():
        config = optim_config(official)
        rates = [
            learning_rate(config, int(step), decay_steps=official["training_steps"]) for step in case.tensor("in/steps")
        ]
        torch.testing.assert_close(torch.tensor(rates), case.tensor(f"out/{name}"), atol=1e-6 * config.lr, rtol=0)


def check_evaluation(case: Case, dtype: torch.dtype, backend: str) -> None:
    model = case.model(dtype, backend)
    outputs = []
    blocks = "in/inputs" in case.arrays
    stored = case.maybe("in/input_idxs" if blocks else "in/event_idxs")
    for i in range(len(case.tensor("out/logits"))):
        positions = None if stored is None else stored[i]
        if blocks:
            inputs = case.tensor("in/inputs")[i]
        else:
            inputs, positions, _ = shifted(token_batch(case.tensor("in/events")[i], positions))
        outputs.append(run(model, inputs, positions))
        steps = case.tensor("out/latent_last_steps")[i]
        assert torch.equal(outputs[-1].latent_last_steps, steps)
        expected = case.tensor("out/logits")[i][steps >= 0]
        actual = outputs[-1].logits[steps >= 0].float()
        torch.testing.assert_close(actual, expected, atol=case.tolerance["logits_atol"], rtol=0)
    metrics = evaluation_metrics(case, outputs)
    stored = {name.removeprefix("out/metrics/") for name in case.arrays if name.startswith("out/metrics/")}
    assert metrics.keys() == stored
    for name, actual in metrics.items():
        expected = float(case.expected(f"metrics/{name}", dtype))
        if isinstance(actual, int):
            assert actual == expected, name
        else:
            assert actual == pytest.approx(expected, rel=case.tolerance["metrics_rtol"]), name
