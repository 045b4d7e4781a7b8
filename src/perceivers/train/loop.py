"""The training loop."""

import errno
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from tqdm import tqdm

from perceivers.data.loader import prefetch
from perceivers.device import autocast, seeded
from perceivers.train.checkpoint import checkpoint_path
from perceivers.train.clock import TICK
from perceivers.train.compiled import announced, give_up, is_compiled
from perceivers.train.config import TrainConfig
from perceivers.train.data import Store
from perceivers.train.errors import TrainingError
from perceivers.train.objectives import Batch, Loss, count_targets, objective_loss
from perceivers.train.optim import clip_gradients
from perceivers.train.parallel import leave, total
from perceivers.train.run import Run, save, start

Hook = Callable[[nn.Module, int], dict[str, float]]
"""Called every so often with the model, in evaluation mode, and the updates done; returns numbers for the log."""


def train(
    config: TrainConfig,
    out: Path,
    *,
    store: Store | None = None,
    init: Path | None = None,
    resume: bool = False,
    evaluate: Hook | None = None,
    sample: Hook | None = None,
    tensorboard: bool = False,
    progress: bool = True,
) -> Run:
    """Train as `config` says and leave the model in `out`.

    Args:
        config: The run.
        out: Run directory: config.yaml, data.json, metrics.jsonl, config.json, model.safetensors, checkpoints/, and
            clock.txt where a clock may end the run.
        store: Training data; None for the copy task, which makes its own.
        init: Directory of a saved model whose weights to start from.
        resume: Go on from the newest checkpoint in `out`; without one, start.
        evaluate: Called every `eval_every` steps and at the end.
        sample: Called every `sample_every` steps.
        tensorboard: Write TensorBoard events too.
        progress: Show a bar with ETA.

    Raises:
        ValueError: Configuration, data and directory don't fit each other.
        TrainingError: The loss is no longer finite, or memory or the disk is full.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was saved.
    """
    run = start(config, out, store=store, init=init, resume=resume, tensorboard=tensorboard)
    state, sample_every = run.state, config.sample_every if run.place.alone else 0
    batches = prefetch(lambda step: own_rows(run, step), state.step * config.accumulate)
    with ExitStack() as stack:
        stack.enter_context(run.log or nullcontext())
        stack.enter_context(closing(batches))
        bar = stack.enter_context(_progress_bar(run, progress and run.log is not None))
        if is_compiled(run.model):
            stack.enter_context(announced(run.clock, bar))
        try:
            while run.share_done < 1:
                values = train_step(run, batches)
                last = run.share_done >= 1
                if run.log is not None and (last or state.step % config.log_every == 0):
                    run.log.write(state.step, values | {"minutes": state.minutes, "tokens": state.tokens})
                _show(bar, run, values)
                if evaluate is not None and (last or (config.eval_every and state.step % config.eval_every == 0)):
                    _look(run, evaluate, bar)
                if sample is not None and sample_every and state.step % sample_every == 0:
                    _look(run, sample, bar)
                if last or state.step % config.save_every == 0:
                    save(run)
        except KeyboardInterrupt:
            if run.place.alone:  # of several, some may be a step further
                save(run)
            raise
        except Exception as error:
            advice = resource_advice(error) or (None if run.place.alone else lost_advice(error))
            if advice is None:
                raise
            raise TrainingError(f"{advice[0]} at step {state.step}: {advice[1]}") from error
    leave()
    return run


def own_rows(run: Run, step: int) -> Batch:
    """This process's rows of a batch; for a GPU in memory from which copies overlap with its work."""
    batch = run.loader.batch(step)
    return batch.pin_memory() if run.device.type == "cuda" else batch


def train_step(run: Run, batches: Iterator[Batch]) -> dict[str, float]:
    """One update; returns its numbers.

    Raises:
        TrainingError: The loss is not finite; nothing was updated.
    """
    config, state = run.config, run.state
    run.clock.start()
    group = [next(batches) for _ in range(config.accumulate)]
    own = sum(count_targets(batch, config.model, config.objective) for batch in group)  # before a GPU has them
    count = own
    if not run.place.alone:
        count = round(float(total(torch.tensor(own, dtype=torch.float32, device=run.device), run.place)))
    # Gradients of several processes are averaged, and a step's are a sum over all rows.
    scale = run.place.readers / (count if config.optim.reduction == "mean" else 1)
    try:
        losses = _differentiate(run, group, scale)
    except Exception as error:
        if not (is_compiled(run.model) and run.place.alone):
            raise
        give_up(run.model, error)  # what failed may be the compiler; an error of another kind comes again
        run.optimizer.zero_grad()
        run.clock.start()
        losses = _differentiate(run, group, scale)
    summed = sum(losses[1:], losses[0]).reduced(lambda values: total(values, run.place))
    norm, lr = clip_gradients(run.model, config.optim.max_grad_norm), run.lr
    # Read together: each number that is read waits for a GPU.
    grad_norm, loss_sum, *shown = torch.stack([norm.to(summed.sum), summed.sum, *summed.shown.values()]).tolist()
    if not math.isfinite(grad_norm) or not math.isfinite(loss_sum):
        raise TrainingError(_not_finite(run, grad_norm))
    for parameters in run.optimizer.param_groups:
        parameters["lr"] = lr
    with interrupts_wait():
        run.optimizer.step()
        run.reached_lr = run.warmed_up
        state.step += 1
        state.tokens += count
        state.minutes += run.place.agreed(run.clock.read(), run.device) * TICK
    run.optimizer.zero_grad()
    values = {f"train/{name}": value / count for name, value in zip(summed.shown, shown, strict=True)}
    return values | {"train/grad_norm": grad_norm, "train/lr": lr}


def _differentiate(run: Run, group: list[Batch], scale: float) -> list[Loss]:
    """Losses of an update's batches; the sum of their gradients is left in the parameters."""
    config, losses = run.config, []
    with seeded(step_seed(config.seed, run.state.step, run.place.reader), run.device):
        for i, batch in enumerate(group):
            if isinstance(run.model, FSDPModule):
                run.model.set_requires_gradient_sync(i == len(group) - 1)
            with autocast(run.device, config.precision):
                loss = objective_loss(run.model, batch.to(run.device), config.objective)
            (loss.sum * scale).backward()
            losses.append(loss.detach())
    return losses


def step_seed(seed: int, step: int, reader: int = 0) -> int:
    """Seed of dropout in one update: of nothing else, so that a resumed run repeats an undisturbed one.

    Processes that read different rows, numbered by `reader`, drop different channels.
    """
    entropy = (seed, step, reader) if reader else (seed, step)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C within takes effect afterwards, so that weights, moments and step are always of one update."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread is interrupted
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        signal.raise_signal(signal.SIGINT)


def resource_advice(error: Exception) -> tuple[str, str] | None:
    """What ran out, and what to do; None for any other error."""
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return "out of memory", "lower --data.batch-size (and raise --accumulate as much), or make the model smaller"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full", "make room and go on with --resume"
    return None


def lost_advice(error: Exception) -> tuple[str, str] | None:
    """What to do where another process of the run has gone; None for any other error."""
    text = str(error).lower()
    if isinstance(error, dist.DistError) or any(
        word in text for word in ("gloo", "nccl", "closed by peer", "reset by peer")
    ):
        return "another process of this run has ended", "see what it said, and start all of them again with --resume"
    return None


def _not_finite(run: Run, grad_norm: float) -> str:
    same = checkpoint_path(run.out, run.state.step)
    remove = f"remove {same}, which has the same weights, " if same.exists() else ""
    optim = run.config.optim
    return (
        f"the loss is not finite at step {run.state.step} (gradient norm {grad_norm}): lower --optim.lr "
        f"(now {optim.lr:g}), lengthen --optim.warmup-steps (now {optim.warmup_steps}), or use --precision float32; "
        f"{remove}earlier checkpoints are good: go on from them with --resume"
    )


def _look(run: Run, hook: Hook, bar: tqdm) -> None:
    run.model.eval()
    with torch.compiler.set_stance("force_eager"):  # few steps, of other shapes: compiling would take longer
        values = hook(run.model, run.state.step)
    run.model.train()
    if values and run.log is not None:
        run.log.write(run.state.step, values)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        bar.write(f"step {run.state.step}  {shown}")


def _progress_bar(run: Run, shown: bool) -> tqdm:
    return tqdm(
        disable=not shown,
        total=1.0,
        initial=min(run.share_done, 1.0),
        desc=f"training {run.out}",
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed} < {remaining}{postfix}",
        mininterval=0.5,
    )


def _show(bar: tqdm, run: Run, values: dict[str, float]) -> None:
    name, value = next(iter(values.items()))
    shown = f"{value:.3f} {name.removeprefix('train/').replace('_', ' ')}"
    bar.set_postfix_str(f"step {run.state.step}, {shown}, lr {values['train/lr']:.1e}", refresh=False)
    bar.update(min(run.share_done, 1.0) - bar.n)
