"""What the parts of `sampling.py` share: sizes, models of random weights, generations to time, rounds and medians."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from perceivers.models.cached import CachedPerceiverAR
from perceivers.models.perceiver_ar import PerceiverAR
from perceivers.models.perceiver_ar_config import PerceiverARConfig, RotaryPositions


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is."""

    dim: int
    depth: int
    heads: int
    contexts: tuple[int, ...]
    latents: tuple[int, ...]
    growth: tuple[int, ...]
    """Contexts of the part of that name."""
    longest: int
    """The context whose memory is measured."""
    samples: int
    drawn: int
    """Tokens that are drawn where memory is measured."""
    summed_bytes: int
    """Size of the array whose sum says how fast memory is."""
    matrix: int
    """Rows and columns of the product that says how fast arithmetic is."""
    compiled: bool
    """Compile steps too, which takes a minute each time."""
    rounds: int
    burst: int
    """Steps in a row, of which the median counts."""


FULL = Scale(
    dim=512,
    depth=8,
    heads=8,
    contexts=(4096, 16_384, 65_536),
    latents=(512, 1024),
    growth=(4096, 8192, 16_384, 32_768, 65_536),
    longest=131_072,
    samples=8,
    drawn=64,
    summed_bytes=2**30,
    matrix=2048,
    compiled=True,
    rounds=5,
    burst=16,
)
QUICK = Scale(
    dim=64,
    depth=2,
    heads=2,
    contexts=(128, 256),
    latents=(16, 32),
    growth=(128, 256),
    longest=512,
    samples=3,
    drawn=8,
    summed_bytes=2**22,
    matrix=128,
    compiled=False,
    rounds=2,
    burst=2,
)


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    part: str
    setting: str
    what: str
    median: float
    lowest: float
    highest: float
    unit: str

    @classmethod
    def of(cls, part: str, setting: str, what: str, rounds: np.ndarray | float, unit: str) -> "Row":
        """From the value of each round, or the only value."""
        values = np.atleast_1d(rounds)
        return cls(part, setting, what, float(np.median(values)), float(values.min()), float(values.max()), unit)

    def __str__(self) -> str:
        """The line in Markdown."""
        numbers = [f"{x:,.0f}" if x >= 1000 else f"{x:.3g}" for x in (self.median, self.lowest, self.highest)]
        return f"| {self.part} | {self.setting} | {self.what} | {' | '.join(numbers)} | {self.unit} |"


Task = Callable[[], float]
"""Does something, and says how many seconds it took."""


def timed(call: Callable[[], object], repeats: int = 1) -> Task:
    """A task that takes the median of some calls in a row."""

    def task() -> float:
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return float(np.median(seconds))

    return task


def in_turns(tasks: dict[str, Task], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each task in each round, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(rounds + 1):
        for name, task in tasks.items():
            seconds[name].append(task())
        latest = ", ".join(f"{name} {1000 * values[-1]:.4g}" for name, values in seconds.items())
        print(f"  round {turn} of {rounds}, ms: {latest}", file=sys.stderr, flush=True)
    return {name: np.array(values[1:]) for name, values in seconds.items()}


class Span:
    """Seconds from the start of one module to the end of another, the last time that they ran."""

    def __init__(self, first: nn.Module, last: nn.Module) -> None:
        self.started = self.seconds = 0.0
        first.register_forward_pre_hook(self._start)
        last.register_forward_hook(self._stop)

    def _start(self, *_: object) -> None:
        self.started = time.perf_counter()

    def _stop(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.started


def memory_bandwidth(scale: Scale) -> Task:
    """Reading an array that no cache holds; `scale.summed_bytes` over its seconds is the bandwidth."""
    array = torch.ones(scale.summed_bytes // 4)
    return timed(array.sum)


def fresh_model(scale: Scale, context: int, latents: int, dtype: torch.dtype = torch.float32) -> PerceiverAR:
    """A model of random weights."""
    torch.manual_seed(0)
    config = PerceiverARConfig(
        max_seq_len=context,
        num_latents=latents,
        dim=scale.dim,
        depth=scale.depth,
        heads=scale.heads,
        cross_heads=scale.heads,
        positions=RotaryPositions(channel_share=0.5),
        zero_logits=False,
    )
    return PerceiverAR(config).to(dtype).eval()


def random_prompts(prompts: int, length: int, seed: int = 0) -> list[list[int]]:
    """Bytes, the same ones each time."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 259, (prompts, length), generator=generator).tolist()


class Steady:
    """A long generation, at two of its moments: halfway between two rebuilds of its latents, and before a rebuild.

    Each can be timed again and again: afterwards the counters go back, and keys and values are written again.
    """

    def __init__(self, model: PerceiverAR, *, prompts: int = 1, samples: int = 1, compiled: bool = False) -> None:
        self.run = run = CachedPerceiverAR(model, compiled=compiled)
        self.rows = prompts * samples
        self.token = torch.full((self.rows,), 3)
        self.steps = run.num_latents - run.refill
        """Tokens between two rebuilds, without the one that each of them reads."""
        max_tokens = 4 * run.num_latents
        length = run.longest_prompt(max_tokens)
        run.start(random_prompts(prompts, length), max_tokens=max_tokens, samples=samples)
        self._feed(self.steps)
        self.full = self.counters()
        self._feed(1 + self.steps // 2)
        self.middle = self.counters()

    def counters(self) -> tuple[int, ...]:
        """Where the generation is."""
        run = self.run
        return run.end, run.latents, run.until_refill, run.to_come, run.first_column, run.shared_start

    def back_to(self, counters: tuple[int, ...]) -> None:
        """Go back there."""
        run = self.run
        run.end, run.latents, run.until_refill, run.to_come, run.first_column, run.shared_start = counters

    def step(self, burst: int) -> Task:
        """The median token of a burst between two rebuilds."""
        feed = timed(lambda: self.run.feed(self.token), min(burst, self.steps // 2))

        def task() -> float:
            self.back_to(self.middle)
            return feed()

        return task

    def refill(self) -> float:
        """The token for which latents are rebuilt; where the input is full, its oldest tokens leave first."""
        self.back_to(self.full)
        return timed(lambda: self.run.feed(self.token))()

    def per_second(self, step: np.ndarray, refill: np.ndarray) -> np.ndarray:
        """Tokens a second of all rows over the whole cycle from one rebuild to the next."""
        return self.rows * (self.steps + 1) / (self.steps * step + refill)

    def _feed(self, tokens: int) -> None:
        for _ in range(tokens):
            self.run.feed(self.token)
