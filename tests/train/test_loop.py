import errno
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from perceivers.data.batch import TokenBatch
from perceivers.data.config import CopyConfig, DataConfig
from perceivers.data.loader import TokenLoader
from perceivers.data.tokens import TokenStore
from perceivers.evaluate.copying import score_copying
from perceivers.hub import read_model
from perceivers.models.perceiver_ar_config import PerceiverARConfig, TablePositions
from perceivers.train import clock, loop, run
from perceivers.train.checkpoint import checkpoints
from perceivers.train.config import CrossEntropy, OptimConfig, ParallelConfig, TrainConfig
from perceivers.train.errors import TrainingError
from perceivers.train.loop import own_rows, resource_advice, train, train_step
from perceivers.train.metrics import read_metrics
from perceivers.train.objectives import count_targets
from perceivers.train.parallel import Place
from perceivers.train.run import Run, start

Tiny = Callable[..., TrainConfig]


def started(config: TrainConfig, out: Path, store: TokenStore | None) -> Run:
    return start(config, out, store=store, init=None, resume=False, tensorboard=False)


def gradients_of_a_step(config: TrainConfig, out: Path, store: TokenStore) -> tuple[dict[str, Any], dict[str, float]]:
    """Gradients and numbers of one step in float64, without dropout."""
    begun = started(config, out, store)
    begun.model.double()
    with torch.no_grad():
        begun.model.logits.weight.normal_(generator=torch.Generator().manual_seed(1))  # pyright: ignore
    kept = {}

    def keep() -> None:
        kept.update({name: p.grad.clone() for name, p in begun.model.named_parameters() if p.grad is not None})

    begun.optimizer.step = keep  # pyright: ignore
    values = train_step(begun, iter([begun.loader.batch(step) for step in range(config.accumulate)]))
    assert begun.state.step == 1
    return kept, values


def assert_same_gradients(a: dict[str, Any], b: dict[str, Any], *, factor: float = 1.0) -> None:
    assert a.keys() == b.keys()
    assert sum(value.abs().sum() for value in a.values()) > 1
    for name, value in a.items():
        torch.testing.assert_close(factor * value, b[name], rtol=1e-9, atol=1e-11, msg=name)


def test_rows_are_pinned_for_a_gpu_alone(
    tiny: Tiny, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, pinned = started(tiny(), tmp_path, store), []
    monkeypatch.setattr(TokenBatch, "pin_memory", lambda self: pinned.append(self) or self)
    rows = own_rows(begun, 3)
    assert not pinned
    begun.device = torch.device("cuda")
    assert torch.equal(own_rows(begun, 3).tokens, rows.tokens)  # pyright: ignore[reportAttributeAccessIssue]
    assert len(pinned) == 1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_two_batches_make_one_of_twice_the_size(tiny: Tiny, store: TokenStore, tmp_path: Path, seed: int) -> None:
    """Rows are ragged, so a mean of the two batches' means would be another number."""
    plain = {"model": {"dropout": 0.0, "prefix_dropout": 0.0}, "optim": {"max_grad_norm": 0.0}, "seed": seed}
    one = tiny(**plain, data={"batch_size": 4})
    two = tiny(**plain, data={"batch_size": 2}, accumulate=2)
    whole, values = gradients_of_a_step(one, tmp_path / "one", store)
    parts, values_of_parts = gradients_of_a_step(two, tmp_path / "two", store)
    assert_same_gradients(whole, parts)
    assert values == pytest.approx(values_of_parts, rel=1e-9)
    batches = [TokenLoader.batch(started(two, tmp_path / "three", store).loader, step) for step in (0, 1)]
    assert len({targets(batch, 5) for batch in batches}) == 2


def test_a_sum_is_the_mean_times_the_tokens(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    model = {"dropout": 0.0, "prefix_dropout": 0.0}
    optim = {"max_grad_norm": 0.0}
    config = tiny(model=model, optim=optim, accumulate=2)
    mean, values = gradients_of_a_step(config, tmp_path / "mean", store)
    config = tiny(model=model, optim=optim | {"reduction": "sum"}, accumulate=2)
    total, values_of_sum = gradients_of_a_step(config, tmp_path / "sum", store)
    loader = started(config, tmp_path / "count", store).loader
    count = sum(targets(loader.batch(step), 5) for step in (0, 1))
    assert_same_gradients(mean, total, factor=count)
    assert values["train/nats"] == pytest.approx(values_of_sum["train/nats"])
    assert values["train/grad_norm"] * count == pytest.approx(values_of_sum["train/grad_norm"])


def targets(batch: Any, num_latents: int) -> int:
    return count_targets(batch, PerceiverARConfig(max_seq_len=11, num_latents=num_latents), CrossEntropy())


def test_tokens_that_get_a_loss() -> None:
    batch = TokenBatch(torch.ones(4, 7).long(), torch.ones(4, 7, 1).long(), torch.tensor([1, 2, 5, 7]))
    assert targets(batch, 5) == 0 + 1 + 4 + 5
    assert targets(batch, 11) == 0 + 1 + 4 + 6


def test_numbers_of_a_step(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    train(tiny(max_steps=2), tmp_path / "run", store=store)
    first, second = read_metrics(tmp_path / "run")
    assert first["train/nats"] == pytest.approx(math.log(16))  # logits start at zero
    assert first["train/z_loss"] == pytest.approx(1e-4 * math.log(16) ** 2)
    assert first["train/lr"] == 0
    assert second["train/lr"] == pytest.approx(0.005)
    assert 0 <= first["train/accuracy"] <= 1
    assert first["train/grad_norm"] > 0
    assert 0 < first["minutes"] < second["minutes"]
    loader = TokenLoader(store.split("train"), DataConfig(batch_size=3, min_crop=1), seq_len=12, num_targets=5, seed=1)
    assert [first["tokens"], second["tokens"]] == np.cumsum([targets(loader.batch(i), 5) for i in (0, 1)]).tolist()


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_the_copy_task_is_learned(tmp_path: Path, seed: int) -> None:
    """Chance is 1 in 256 for the seven mirrored tokens, and the EOS is easy: 0.13 without any memory."""
    config = TrainConfig(
        model=PerceiverARConfig(
            max_seq_len=16,
            num_latents=8,
            dim=64,
            depth=1,
            heads=4,
            cross_heads=4,
            positions=TablePositions(),
            dropout=0.0,
        ),
        data=CopyConfig(length=16, batch_size=128, min_mirrored=8),
        optim=OptimConfig(lr=0.01, schedule="cosine", warmup_steps=20),
        max_steps=100,
        seed=seed,
    )
    result = score_copying(train(config, tmp_path / "run").model, 16, count=64, split="test", precision="float32")
    assert result.accuracy > 0.6
    assert result.nats_per_token < 2.0


def poison(at: int) -> Any:
    @torch.no_grad()
    def hook(model: nn.Module, step: int) -> dict[str, float]:
        if step == at:
            next(model.parameters()).fill_(math.nan)
        return {}

    return hook


def test_a_loss_that_is_not_finite_stops_the_run(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as error:
        train(tiny(eval_every=1, save_every=2), tmp_path / "run", store=store, evaluate=poison(5))
    message = str(error.value)
    for part in ("not finite at step 5", "--optim.lr (now 0.01)", "--optim.warmup-steps (now 2)", "--resume"):
        assert part in message
    assert "remove" not in message
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000002", "step-00000004"]
    assert all(value.isfinite().all() for value in read_model(tmp_path / "run")[0].state_dict().values())
    assert train(tiny(), tmp_path / "run", store=store, resume=True).state.step == 10


def test_a_checkpoint_of_weights_that_fail_is_named(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    config = tiny(save_every=1, optim={"lr": 1e30, "warmup_steps": 0})
    with pytest.raises(TrainingError, match=r"remove .*step-0000000[1-3], which has the same weights, earlier"):
        train(config, tmp_path / "run", store=store)


@pytest.mark.parametrize(
    "shortage",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB"),
        RuntimeError("MPS backend out of memory"),
        MemoryError(),
    ],
)
def test_memory_runs_out(
    tiny: Tiny, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shortage: Exception
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise shortage

    monkeypatch.setattr(loop, "objective_loss", fail)
    with pytest.raises(
        TrainingError, match=r"out of memory at step 0: lower --data.batch-size .*, or make the model smaller"
    ):
        train(tiny(), tmp_path / "run", store=store)


def test_memory_really_runs_out() -> None:
    for allocate in (lambda: torch.empty(2**60), lambda: np.empty(2**59)):
        with pytest.raises((RuntimeError, MemoryError)) as error:
            allocate()
        advice = resource_advice(error.value)
        assert advice is not None
        assert advice[0] == "out of memory"


def test_other_errors_are_not_touched_and_no_thread_is_left(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    def fail(model: nn.Module, step: int) -> dict[str, float]:
        raise RuntimeError("a fault in the hook")

    with pytest.raises(RuntimeError) as error:  # kept, and with it all that its traceback knows
        train(tiny(eval_every=1), tmp_path / "run", store=store, evaluate=fail)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
    assert str(error.value) == "a fault in the hook"


def test_the_log_finds_the_disk_full(
    tiny: Tiny, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run.MetricsLog, "write", full)
    with pytest.raises(TrainingError, match="the disk is full at step 1: make room and go on with --resume"):
        train(tiny(), tmp_path / "run", store=store)


def test_hooks_are_called_when_due(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def evaluate(model: nn.Module, step: int) -> dict[str, float]:
        assert not model.training
        seen.append(("evaluate", step))
        return {"validation/nats": 0.5 * step}

    def sample(model: nn.Module, step: int) -> dict[str, float]:
        assert not model.training
        seen.append(("sample", step))
        return {}

    config = tiny(max_steps=7, eval_every=3, sample_every=2, log_every=4)
    finished = train(config, tmp_path / "run", store=store, evaluate=evaluate, sample=sample)
    assert finished.model.training
    due = [("sample", 2), ("evaluate", 3), ("sample", 4), ("evaluate", 6), ("sample", 6), ("evaluate", 7)]
    assert seen == due
    rows = [(row["step"], row.get("validation/nats"), "train/nats" in row) for row in read_metrics(tmp_path / "run")]
    assert rows == [(3, 1.5, False), (4, None, True), (6, 3.0, False), (7, None, True), (7, 3.5, False)]


def test_evaluation_at_the_end_only(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    seen = []

    def look(model: nn.Module, step: int) -> dict[str, float]:
        seen.append(step)
        return {}

    train(tiny(max_steps=3, eval_every=0), tmp_path / "run", store=store, evaluate=look, sample=look)
    assert seen == [3]


@pytest.fixture
def minute_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is a minute later each time it is read."""
    times = iter(range(0, 10_000 * 10**9, 60 * 10**9))
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic_ns=lambda: next(times)))


def test_the_clock_ends_a_run(tiny: Tiny, store: TokenStore, tmp_path: Path, minute_clock: None) -> None:
    config = tiny(max_steps=100, max_minutes=4.0, optim={"warmup_steps": 0})
    finished = train(config, tmp_path / "run", store=store)
    assert (finished.state.step, finished.state.minutes) == (4, 4.0)
    rates = [row["train/lr"] for row in read_metrics(tmp_path / "run")]
    cosine = [0.01 * (1 + math.cos(math.pi * share)) / 2 for share in (0, 0.25, 0.5, 0.75)]
    assert rates == pytest.approx(cosine)


def test_the_clock_goes_on_where_a_run_is_resumed(
    tiny: Tiny, store: TokenStore, tmp_path: Path, minute_clock: None
) -> None:
    optim = {"warmup_steps": 0}
    train(tiny(max_steps=3, max_minutes=100.0, optim=optim), tmp_path / "run", store=store)
    finished = train(tiny(max_steps=100, max_minutes=6.0, optim=optim), tmp_path / "run", store=store, resume=True)
    assert (finished.state.step, finished.state.minutes) == (6, 6.0)
    assert read_metrics(tmp_path / "run")[3]["train/lr"] == pytest.approx(0.005)


def test_schedules_of_their_own_length_ignore_the_clock(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    begun = started(tiny(max_steps=100, max_minutes=4.0, optim={"decay_steps": 8, "warmup_steps": 0}), tmp_path, store)
    begun.state.step, begun.state.minutes = 4, 1.0
    assert begun.lr == pytest.approx(0.005)


def test_the_seed_decides(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    def weights(seed: int, name: str) -> bytes:
        train(tiny(max_steps=2, seed=seed), tmp_path / name, store=store)
        return (tmp_path / name / "model.safetensors").read_bytes()

    assert weights(1, "a") == weights(1, "b") != weights(2, "c")


def test_precision_and_smoothing_train(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    config = replace(tiny(max_steps=3, precision="bfloat16"), objective=CrossEntropy(label_smoothing=0.1, z_loss=0.01))
    finished = train(config, tmp_path / "run", store=store)
    assert {p.dtype for p in finished.model.parameters()} == {torch.float32}
    assert read_metrics(tmp_path / "run")[0]["train/nats"] == pytest.approx(math.log(16))


def test_recomputed_layers_train_alike(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    plain, less = (
        gradients_of_a_step(tiny(recompute=recompute), tmp_path / str(recompute), store)[0]
        for recompute in (False, True)
    )
    assert_same_gradients(plain, less)


def test_each_reader_drops_other_channels(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    """Of the same rows, so that dropout alone differs; those who share rows drop alike."""
    begun = started(tiny(), tmp_path / "run", store)
    with torch.no_grad():
        begun.model.logits.weight.normal_(generator=torch.Generator().manual_seed(1))  # pyright: ignore

    def loss(rank: int) -> float:
        begun.place = Place(ParallelConfig(dp=2, cp=2), rank)
        [of_rows] = loop._differentiate(begun, [begun.loader.batch(0)], 1.0)
        return float(of_rows.sum)

    first, sharing, second, other = (loss(rank) for rank in range(4))
    assert first == sharing
    assert second == other
    assert first != second
    assert len({loop.step_seed(3, 5, reader) for reader in range(7)}) == 7
