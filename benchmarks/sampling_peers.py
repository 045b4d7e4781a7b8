"""The part of `sampling.py` that times a decoder written by hand, and other packages in an environment of their own.

The decoder of `plain_decoder.py` keeps keys and values of all layers in buffers that were set aside at the start; it
says what a decoder costs where nothing is wasted, as far as PyTorch's own operations go. perceiver-ar-pytorch keeps
nothing from token to token: each takes a full forward pass. x-transformers is a decoder that keeps keys and values, and
copies them for each token. To fill a decoder's keys and values at a long context takes a time that grows with its
square, so they are random numbers. All are as wide and as deep as ours, in float32, and take turns with it: a package
waits in its process while others work.
"""

import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from plain_decoder import PlainDecoder
from sampling_timing import Row, Scale, Steady, Task, fresh_model, in_turns, timed

ENVIRONMENT = Path.home() / ".cache" / "perceivers-bench"
VERSIONS = {"perceiver-ar-pytorch": "0.0.10", "x-transformers": "2.31.10"}

PLAIN = "plain decoder"
SHORT_BURST = 4
"""Steps of x-transformers in a row: enough for the processor's caches, and some seconds at the longest context."""


def peers(scale: Scale, environment: Path) -> Iterator[Row]:
    installed = installed_peers(environment)
    if not installed:
        for context in scale.contexts:
            yield from _at_context(scale, context, None, [])
        return
    with Worker(environment / "bin" / "python", Path(__file__).with_name("sampling_worker.py")) as worker:
        for context in scale.contexts:
            yield from _at_context(scale, context, worker, installed)


def installed_peers(environment: Path) -> list[str]:
    """The packages that could be installed in an environment, which is made if there is none."""
    python = environment / "bin" / "python"
    if not python.with_name("pip").exists():
        print(f"  making an environment in {environment}", file=sys.stderr)
        venv.create(environment, with_pip=True)
    return [peer for peer in VERSIONS if _install(python, peer)]


def _install(python: Path, peer: str) -> bool:
    """Whether it is there; with the version of torch that we have."""
    wanted = [f"torch=={torch.__version__.split('+')[0]}", f"{peer}=={VERSIONS[peer]}"]
    print(f"  {python} -m pip install {' '.join(wanted)}", file=sys.stderr, flush=True)
    command = [python, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr[-500:]]
        print(f"  {peer} left out, it can't be installed: {errors[-1]}", file=sys.stderr)
    return done.returncode == 0


class Worker:
    """A process that answers requests, such as `sampling_worker.py`."""

    def __init__(self, python: Path, script: Path, environment: Mapping[str, str] | None = None) -> None:
        command = [python, "-I", script, str(torch.get_num_threads())]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request, wait for its answer.

        Raises:
            RuntimeError: It failed there.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"the worker ended with exit code {self.process.wait()}")
        if "error" in (answer := json.loads(line)):
            raise RuntimeError(answer["error"])
        return answer

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()  # which ends it
        self.process.wait()


def _at_context(scale: Scale, context: int, worker: Worker | None, installed: list[str]) -> Iterator[Row]:
    ours = {latents: Steady(fresh_model(scale, context, latents)) for latents in scale.latents}
    tasks: dict[str, Task] = {}
    for latents, steady in ours.items():
        tasks |= {f"ours {latents} step": steady.step(scale.burst), f"ours {latents} refill": steady.refill}
    plain = PlainDecoder(context=context, dim=scale.dim, depth=scale.depth, heads=scale.heads)
    tasks[PLAIN] = timed(lambda: plain(torch.full((1, 1), 3), context - 1), scale.burst)
    models = {"ours": ours[scale.latents[0]].run.model, PLAIN: plain}
    parameters = {name: sum(weight.numel() for weight in model.parameters()) for name, model in models.items()}
    theirs = {f"perceiver-ar-pytorch, N {latents:,}": latents for latents in scale.latents} | {"x-transformers": 0}
    for name, latents in theirs.items():
        if worker is None or (peer := name.split(",")[0]) not in installed:
            continue
        size = {"dim": scale.dim, "depth": scale.depth, "heads": scale.heads, "latents": latents}
        try:
            built = worker.ask(do="build", name=name, peer=peer, context=context, **size)
        except RuntimeError as error:
            print(f"  {name} left out at {context:,}: {error}", file=sys.stderr)
            continue
        parameters[name] = built["parameters"]
        token = {"do": "token", "name": name, "repeats": 1 if latents else SHORT_BURST}
        tasks[name] = lambda token=token: worker.ask(**token)["seconds"]
    seconds = in_turns(tasks, scale.rounds)
    if worker is not None:
        worker.ask(do="forget")
    yield from _rows(context, ours, {PLAIN: 0, **theirs}, seconds, parameters)


def _rows(
    context: int,
    ours: dict[int, Steady],
    theirs: dict[str, int],
    seconds: dict[str, np.ndarray],
    parameters: dict[str, int],
) -> Iterator[Row]:
    about = ("peers", f"M {context:,}")
    for name, count in parameters.items():
        yield Row.of(*about, f"{name}: parameters", count / 1e6, "million")
    rates = {
        latents: steady.per_second(seconds[f"ours {latents} step"], seconds[f"ours {latents} refill"])
        for latents, steady in ours.items()
    }
    for latents, rate in rates.items():
        yield Row.of(*about, f"ours, N {latents:,}", rate, "tokens/s")
    for name, their_latents in theirs.items():
        if name not in seconds:
            continue
        how = "a full forward pass a token" if their_latents else "kept keys and values of all layers, random ones"
        yield Row.of(*about, f"{name}: {how}", 1 / seconds[name], "tokens/s")
        for latents in [their_latents] if their_latents else ours:
            yield Row.of(*about, f"ours, N {latents:,} / {name}", rates[latents] * seconds[name], "x")
