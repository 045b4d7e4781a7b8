"""Training what `torch.compile` makes of a model: when it pays, what is said meanwhile, and what if it fails."""

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from perceivers.models.config import SequenceConfig
from perceivers.train.clock import Clock
from perceivers.train.config import TrainConfig

PAYS_MINUTES = 120.0
"""A clock from which on compiling pays: it takes up to five minutes, and steps then take 0.85 to 1.06 of the time."""

PAYS_TOKENS = 8192
"""A context up to which it does: keys of longer ones are read in parts, but not by what is compiled."""

PATIENCE = "120"
"""Seconds to wait for a lock in the compiler's cache; its own default is ten minutes."""


def pays(config: TrainConfig) -> bool:
    """Whether to compile: as `config` says, or where a clock ends the run, if that is late enough (docs/speed.md)."""
    if config.compile != "auto":
        return config.compile
    if isinstance(config.model, SequenceConfig) and config.model.max_seq_len > PAYS_TOKENS:
        return False
    return config.max_minutes is not None and config.max_minutes >= PAYS_MINUTES


def compile_model(model: nn.Module, device: torch.device) -> None:
    """Let the model be compiled when it is first called; where nothing could do it, say so and leave it."""
    known = (os.environ.get("CXX") or "g++", "clang++", "cl")
    if device.type == "cpu" and not any(shutil.which(name) for name in known):
        _say(f"no C++ compiler is here ({', '.join(known)}): training goes on without --compile")
        return
    os.environ.setdefault("TORCHINDUCTOR_FILE_LOCK_TIMEOUT", PATIENCE)
    try:
        model.compile()
    except Exception as error:  # already here the compiler looks for its cache
        give_up(model, error)


def is_compiled(model: nn.Module) -> bool:
    """Whether calls go to what was, or will be, compiled."""
    return model._compiled_call_impl is not None


def give_up(model: nn.Module, error: Exception) -> None:
    """Go on without compiling, and say why."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    model._compiled_call_impl = None
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or default_cache_dir()
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:200]
    _say(
        f"the model could not be compiled ({type(error).__name__}: {reason}): training goes on without; if it happens "
        f"again, remove {cache}, or add --compile False"
    )


def _say(text: str) -> None:
    tqdm.write(f"perceivers: {text}", file=sys.stderr)


@contextmanager
def announced(clock: Clock, bar: tqdm) -> Iterator[None]:
    """Within, whatever is compiled is shown, and its time does not count."""
    from torch._dynamo.callback import callback_handler  # takes a second

    ended, said = threading.Event(), []

    def start(_: Any) -> None:
        clock.stop()
        if bar.disable:
            return
        if not said:
            said.append(True)
            _say("compiling the model, which takes minutes and does not count as training time")
        ended.clear()
        threading.Thread(target=_spin, args=(bar, ended), daemon=True).start()

    def end(_: Any) -> None:
        ended.set()
        clock.go_on()

    callback_handler.register_start_callback(start)
    callback_handler.register_end_callback(end)
    try:
        yield
    finally:
        callback_handler.remove_start_callback(start)
        callback_handler.remove_end_callback(end)


def _spin(bar: tqdm, ended: threading.Event) -> None:
    began = time.monotonic()
    while not ended.wait(0.5):
        sign = "|/-\\"[int(2 * (time.monotonic() - began)) % 4]
        bar.set_postfix_str(f"{sign} compiling, {time.monotonic() - began:.0f} s")
