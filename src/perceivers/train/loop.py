"""The training loop."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import yaml
from torch import nn
from tqdm import tqdm

from perceivers.data.batch import NUM_SPECIAL, TokenBatch
from perceivers.data.config import CopyConfig
from perceivers.data.loader import TokenLoader
from perceivers.data.synthetic import MirroredLoader
from perceivers.data.tokens import TokenStore
from perceivers.device import autocast, pick_device
from perceivers.hub import load_weights, read_model, replace_file, write_model
from perceivers.models.build import build
from perceivers.records import to_dict
from perceivers.train.checkpoint import TrainState, checkpoints, load_checkpoint, save_checkpoint
from perceivers.train.config import TrainConfig
from perceivers.train.data_record import record_data
from perceivers.train.errors import TrainingError
from perceivers.train.metrics import MetricsLog
from perceivers.train.objectives import Loss, next_token
from perceivers.train.optim import build_optimizer, clip_gradients, learning_rate


class Loader(Protocol):
    """Batches as a function of the step."""

    def batch(self, step: int) -> TokenBatch:
        """The batch of one step."""
        ...

    def iterate(self, first_step: int) -> Iterator[TokenBatch]:
        """All batches from `first_step` on."""
        ...


class Hook(Protocol):
    """Called every so often with the model, in evaluation mode; returns numbers for the log."""

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        """Look at the model after `step` updates."""
        ...


@dataclass
class Run:
    """Everything that a training run consists of."""

    config: TrainConfig
    out: Path
    tokenizer: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loader: Loader
    state: TrainState
    log: MetricsLog
    device: torch.device

    @property
    def share_done(self) -> float:
        """Share of the run that is over, by steps or by the clock, whichever is further."""
        by_clock = self.state.minutes / self.config.max_minutes if self.config.max_minutes else 0.0
        return max(self.state.step / self.config.max_steps, by_clock)


def train(
    config: TrainConfig,
    out: Path,
    *,
    store: TokenStore | None = None,
    init: Path | None = None,
    resume: bool = False,
    evaluate: Hook | None = None,
    sample: Hook | None = None,
    tensorboard: bool = False,
) -> Run:
    """Train as `config` says and leave the model in `out`.

    Args:
        config: The run.
        out: Run directory: config.yaml, data.json, metrics.jsonl, config.json, model.safetensors, checkpoints/.
        store: Training data; None for the copy task, which makes its own.
        init: Directory of a saved model whose weights to start from.
        resume: Go on from the newest checkpoint in `out`; without one, start.
        evaluate: Called every `eval_every` steps and at the end.
        sample: Called every `sample_every` steps.
        tensorboard: Write TensorBoard events too.

    Raises:
        ValueError: Configuration, data and directory don't fit each other.
        TrainingError: The loss is no longer finite, or memory ran out.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was saved.
    """
    run = start(config, out, store=store, init=init, resume=resume, tensorboard=tensorboard)
    bar = _progress_bar(run)
    batches = run.loader.iterate(run.state.step * config.accumulate)
    started, minutes_before = time.monotonic(), run.state.minutes
    try:
        while run.share_done < 1:
            values = train_step(run, batches)
            state = run.state
            state.step += 1
            state.minutes = minutes_before + (time.monotonic() - started) / 60
            last = run.share_done >= 1
            if state.step % config.log_every == 0 or last:
                run.log.write(state.step, values | {"minutes": state.minutes, "tokens": state.tokens})
            _show(bar, run, values)
            if evaluate is not None and (last or (config.eval_every and state.step % config.eval_every == 0)):
                _look(run, evaluate, bar)
            if sample is not None and config.sample_every and state.step % config.sample_every == 0:
                _look(run, sample, bar)
            if last or state.step % config.save_every == 0:
                save(run)
    except KeyboardInterrupt:
        save(run)
        raise
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory at step {run.state.step}: lower --data.batch-size (raise --accumulate to make up for it), "
            "--model.num-latents or --model.max-seq-len"
        ) from error
    finally:
        bar.close()
        run.log.close()
    return run


def train_step(run: Run, batches: Iterator[TokenBatch]) -> dict[str, float]:
    """One update; returns its numbers."""
    config, step = run.config, run.state.step
    # Dropout depends on the seed and the step alone, so that a resumed run repeats an undisturbed one.
    torch.manual_seed(hash((config.seed, step)) % 2**63)
    group = [next(batches).to(run.device) for _ in range(config.accumulate)]
    num_latents = run.model.config.num_latents  # pyright: ignore[reportAttributeAccessIssue]
    count = sum(targets_in(batch, num_latents) for batch in group)
    total: Loss | None = None
    for batch in group:
        with autocast(run.device, config.precision):
            loss = next_token(run.model, batch, config.objective, num_latents=num_latents)  # pyright: ignore
        (loss.sum / count if config.optim.reduction == "mean" else loss.sum).backward()
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
    grad_norm = float(clip_gradients(run.model, config.optim.max_grad_norm))
    lr = _learning_rate(run)
    if not math.isfinite(grad_norm) or not math.isfinite(float(total.sum)):
        raise TrainingError(
            f"the loss is not finite at step {step} (gradient norm {grad_norm}); the checkpoints before it are good. "
            f"Lower --optim.lr (now {config.optim.lr:g}), lengthen --optim.warmup-steps, or use --precision float32"
        )
    for parameters in run.optimizer.param_groups:
        parameters["lr"] = lr
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.state.tokens += int(total.count)
    per_token = {"nats": total.nats, "z_loss": total.z, "accuracy": total.correct}
    values = {f"train/{name}": float(value / total.count) for name, value in per_token.items()}
    return values | {"train/grad_norm": grad_norm, "train/lr": lr}


def targets_in(batch: TokenBatch, num_latents: int) -> int:
    """Tokens of a batch that get a loss."""
    return int((batch.lengths - 1).clamp(0, min(num_latents, batch.tokens.shape[1] - 1)).sum())


def start(
    config: TrainConfig, out: Path, *, store: TokenStore | None, init: Path | None, resume: bool, tensorboard: bool
) -> Run:
    """Set a run up: model, optimiser, data, directory; at its newest checkpoint if it is resumed."""
    device = pick_device(config.device)
    tokenizer, loader, fingerprint = training_data(config, store)
    torch.manual_seed(config.seed)
    model = build(config.model)
    if init is not None:
        initial, initial_tokenizer = read_model(init)
        if initial_tokenizer != tokenizer:
            raise ValueError(f"{init} was trained on {initial_tokenizer!r} tokens, the data has {tokenizer!r}")
        load_weights(model, initial.state_dict(), source=str(init))
    model.to(device).train()
    optimizer = build_optimizer(model, config.optim)
    state = TrainState(store=fingerprint)
    found = checkpoints(out)
    if found and not resume:
        raise ValueError(
            f"{out} holds a run that got to {found[-1].name}: add --resume to go on, or choose another --out"
        )
    if found:
        state = load_checkpoint(found[-1], model, optimizer)
        if state.store != fingerprint:
            raise ValueError(
                f"the data has changed since {found[-1]} was saved (fingerprint {state.store}, now {fingerprint}): "
                "give the old store, or start a new run with --init and another --out"
            )
    out.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(to_dict(config), sort_keys=False)
    replace_file(out / "config.yaml", lambda path: path.write_text(text, encoding="utf-8"))
    if store is not None:
        record_data(out, store)
    log = MetricsLog(out, step=state.step, tensorboard=tensorboard)
    return Run(config, out, tokenizer, model, optimizer, loader, state, log, device)


def training_data(config: TrainConfig, store: TokenStore | None) -> tuple[str, Loader, str]:
    """Tokenizer, training batches and fingerprint of a run's data.

    Raises:
        ValueError: The store is missing, not needed, or has more ids than the model.
    """
    if isinstance(config.data, CopyConfig):
        if store is not None:
            raise ValueError("this preset makes its own data (the copy task): leave --data out")
        return "copy", MirroredLoader(config.data, seed=config.seed), to_fingerprint(config.data)
    if store is None:
        raise ValueError("this preset needs training data: --data STORE, made by `perceivers prepare`")
    check_vocabulary(store, config.model.vocab_size)
    if (axes := config.model.position_axes) != 1:
        raise ValueError(
            f"this model's positions have {axes} axes, those of a token store have one; training on images is not built"
        )
    loader = TokenLoader(
        store.split("train"),
        config.data,
        seq_len=config.model.max_seq_len + 1,
        num_targets=config.model.num_latents,
        seed=config.seed,
        tokenizer=store.header.tokenizer,
    )
    return store.header.tokenizer, loader, store.fingerprint


def to_fingerprint(config: CopyConfig) -> str:
    """Synthetic data is its description."""
    return f"copy-{config.length}"


def check_vocabulary(store: TokenStore, vocab_size: int) -> None:
    """Refuse a store with more ids than the model has.

    Raises:
        ValueError: Says what to set.
    """
    needed = store.header.vocab_size + NUM_SPECIAL
    if needed > vocab_size:
        raise ValueError(
            f"the store holds {store.header.tokenizer!r} tokens, {store.header.vocab_size} ids and {NUM_SPECIAL} special "
            f"ones; the model knows {vocab_size}: choose a preset for this kind of data, or --model.vocab-size {needed}"
        )


def save(run: Run) -> None:
    """Write a checkpoint, and the model for `perceivers.load`.

    Raises:
        TrainingError: The disk is full or not writable; older checkpoints are as they were.
    """
    try:
        save_checkpoint(run.out, run.model, run.optimizer, run.state)
        write_model(run.model, run.config.model, run.tokenizer, run.out)
    except OSError as error:
        raise TrainingError(
            f"could not save step {run.state.step} to {run.out}: {error}; the last good checkpoint is untouched. "
            "Make room and go on with --resume"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch or Python could not get memory."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text


def _learning_rate(run: Run) -> float:
    optim, step = run.config.optim, run.state.step
    steps = optim.decay_steps or max(run.config.max_steps - optim.warmup_steps, 1)
    by_clock = None
    if optim.decay_steps is None and run.config.max_minutes is not None:
        by_clock = max(run.share_done, (step - optim.warmup_steps) / steps)
    return learning_rate(optim, step, decay_steps=steps, decayed=by_clock)


def _look(run: Run, hook: Hook, bar: tqdm) -> None:
    run.model.eval()
    values = hook(run.model, run.state.step)
    run.model.train()
    run.log.write(run.state.step, values)
    shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
    if shown:
        bar.write(f"step {run.state.step}  {shown}")


def _progress_bar(run: Run) -> tqdm:
    return tqdm(
        total=1.0,
        initial=run.share_done,
        desc=f"training {run.out}",
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed} < {remaining}{postfix}",
        mininterval=0.5,
    )


def _show(bar: tqdm, run: Run, values: dict[str, float]) -> None:
    bar.set_postfix_str(
        f"step {run.state.step}, {values['train/nats']:.3f} nats a token, lr {values['train/lr']:.1e}", refresh=False
    )
    bar.update(min(run.share_done, 1.0) - bar.n)
