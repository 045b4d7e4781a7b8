"""What a training run consists of: how it starts or resumes, and how it is saved."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import nn

from perceivers.data.picture_store import PictureStore
from perceivers.data.tokens import TokenStore
from perceivers.device import in_bfloat16, pick_device, seeded
from perceivers.generate.loaded import open_model
from perceivers.hub import WEIGHTS, load_weights, write_model
from perceivers.key_use import KeyUse
from perceivers.models.build import build
from perceivers.models.recompute import recompute_layers
from perceivers.picture_reading import PictureReading
from perceivers.records import to_dict
from perceivers.train.checkpoint import TrainState, checkpoints, load_checkpoint, optimizer_tensors, save_checkpoint
from perceivers.train.clock import Clock
from perceivers.train.compiled import compile_model, pays
from perceivers.train.config import TrainConfig
from perceivers.train.data import Loader, Store, training_data
from perceivers.train.data_record import record_data
from perceivers.train.errors import TrainingError
from perceivers.train.metrics import MetricsLog
from perceivers.train.optim import build_optimizer, learning_rate, warmed_up
from perceivers.train.parallel import Place, fill, join, share, whole
from perceivers.train.pictures import check_scale, numbered_as_before, reading_of
from perceivers.writing import Lock, finish_files, write_text

CLOCK = "clock.txt"
"""What a run's clock said, if one may end it."""


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
    log: MetricsLog | None
    """None where another process writes it."""
    device: torch.device
    place: Place
    clock: Clock
    pictures: PictureReading | None = None
    """How it reads pictures, for whoever loads the model; None where it reads others."""
    keys: KeyUse | None = None
    """How the music uses the keys, likewise."""
    reached_lr: bool | None = None
    """Whether the last update was made after warm-up; None before there was one."""

    @property
    def share_done(self) -> float:
        """Share of the run that is over, by steps or by the clock, whichever is further."""
        by_clock = self.state.minutes / self.config.max_minutes if self.config.max_minutes else 0.0
        return max(self.state.step / self.config.max_steps, by_clock)

    @property
    def lr(self) -> float:
        """Learning rate of the next update."""
        optim = self.config.optim
        to_the_end = max(self.config.max_steps - optim.warmup_steps, 1)
        decay_steps = optim.decay_steps or to_the_end
        return learning_rate(optim, self.state.step, decay_steps=decay_steps, done=self._clocked)

    @property
    def warmed_up(self) -> bool:
        """Whether the next update comes after warm-up."""
        return warmed_up(self.config.optim, self.state.step, done=self._clocked) >= 1

    @property
    def _clocked(self) -> float | None:
        """Share of the run that is over, where a clock ends it."""
        return None if self.config.max_minutes is None else self.share_done


def start(
    config: TrainConfig, out: Path, *, store: Store | None, init: Path | None, resume: bool, tensorboard: bool
) -> Run:
    """Set a run up: model, optimiser, data, directory; at its newest checkpoint if it is resumed.

    Raises:
        ValueError: These don't fit each other.
        FileExistsError: Another process is training in `out`.
    """
    if config.parallel.processes > 1 and os.environ.get("RANK", "0") != "0":
        return _start(config, out, None, store=store, init=init, resume=resume, tensorboard=tensorboard)
    held = Lock.of_directory(out)
    try:
        return _start(config, out, held, store=store, init=init, resume=resume, tensorboard=tensorboard)
    except BaseException:
        held.release()
        with contextlib.suppress(OSError):
            out.rmdir()  # where nothing else is in it
        raise


def _start(
    config: TrainConfig,
    out: Path,
    held: Lock | None,
    *,
    store: Store | None,
    init: Path | None,
    resume: bool,
    tensorboard: bool,
) -> Run:
    """The same in a directory that the first process holds."""
    finish_files(out)
    found = checkpoints(out)
    if not resume and (found or (out / WEIGHTS).exists()):
        what = f"a run that got to {found[-1].name}" if found else "a saved model"
        raise ValueError(f"{out} holds {what}: add --resume to go on, or choose another --out")
    init = None if found else init
    store = numbered_as_before(config, store, init=init, resumed=out if found else None)
    place, device = join(config.parallel, pick_device(config.device))
    tokenizer, loader, fingerprint = training_data(config, store, rank=place.reader, world_size=place.readers)
    # No name for the whole model: it would stay as long as this function.
    model = _own_model(config, _first_model(config, tokenizer, init) if place.rank == 0 else None, place, device)
    optimizer = build_optimizer(model, config.optim)
    state = TrainState(store=fingerprint)
    if found:
        state = load_checkpoint(found[-1], model, optimizer)
        if state.store != fingerprint:
            raise ValueError(
                f"the data has changed since {found[-1]} was saved (fingerprint {state.store}, now {fingerprint}): "
                "give the old store, or start a new run with --init and another --out"
            )
    pictures = reading_of(config, store.classes if isinstance(store, PictureStore) else None)
    keys = store.header.keys if isinstance(store, TokenStore) else None
    if place.rank:
        return Run(config, out, tokenizer, model, optimizer, loader, state, None, device, place, Clock(None), pictures)
    write_text(out / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
    if store is not None:
        record_data(out, store)
    log = MetricsLog(out, step=state.step, tensorboard=tensorboard, held=held)
    record = out / CLOCK if config.max_minutes else None
    clock = Clock(record, step=state.step, minutes=state.minutes, resume=resume)
    return Run(config, out, tokenizer, model, optimizer, loader, state, log, device, place, clock, pictures, keys)


def _first_model(config: TrainConfig, tokenizer: str, init: Path | None) -> nn.Module:
    """The model that training starts from."""
    with seeded(config.seed):
        model = build(config.model)
    if init is not None:
        initial, initial_tokenizer = open_model(init)
        if initial_tokenizer != tokenizer:
            raise ValueError(f"{init} was trained on {initial_tokenizer!r} tokens, the data has {tokenizer!r}")
        check_scale(config, init, initial.config)  # pyright: ignore[reportArgumentType]
        load_weights(model, initial.state_dict(), source=str(init))
    return model


def _own_model(config: TrainConfig, whole: nn.Module | None, place: Place, device: torch.device) -> nn.Module:
    """The model, or this process's part of it; of several processes only the first one ever has it `whole`."""
    if place.alone:
        assert whole is not None
        model = whole.to(device)
    else:
        with torch.device("meta"):
            model = build(config.model)
    model.train()
    if config.recompute:
        recompute_layers(model)
    if pays(config):
        compile_model(model, device)
    if not place.alone:
        share(model, place, device, bfloat16=in_bfloat16(device, config.precision))
        fill(model, whole, device)
    return model


def save(run: Run) -> None:
    """Write the model for `perceivers.load`, and a checkpoint.

    The checkpoint comes last: a run that is killed in between does these steps again and writes both.

    Raises:
        TrainingError: The disk is full or not writable; older checkpoints are as they were.
    """
    try:
        weights = whole(run.model.state_dict(), run.place)
        moments = whole(optimizer_tensors(run.model, run.optimizer), run.place)
        if run.place.rank == 0:
            learned = {"pictures": run.pictures, "keys": run.keys}
            write_model(weights, run.config.model, run.tokenizer, run.out, **learned)
            save_checkpoint(run.out, weights, moments, run.state)
    except OSError as error:
        raise TrainingError(
            f"could not save step {run.state.step} to {run.out}: {error}; older checkpoints are as they were. "
            "Make room and go on with --resume"
        ) from error
