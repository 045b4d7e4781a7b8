"""What the sampler's dial costs in quality: `python benchmarks/refill.py RUN STORE`.

Held-out tokens are scored as the sampler would predict them with several values of `--refill`, and compared with what
it can't afford: all latents rebuilt at every token (stride 1). The last line is what the official sampler starts with:
a single latent that has read the prompt. Each token has a full input before it; when latents are rebuilt the oldest
tokens leave, as they do when sampling (`perceivers.evaluate.schedule`).

A span of tokens at a random place is taken from each of some documents, which are chosen evenly among those that are
long enough. Since tokens are not equally far from a rebuild, each refill is scored from three of them, a third of the
way to the next apart; where they start is random. Intervals are 95 % of bootstraps over the folders that hold the
documents, which are pieces where several performances of a piece share one; over documents, where there is only one.
"""

import time
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import torch
import tyro
from torch import nn

from perceivers.data.batch import TokenBatch, collate, model_tokens
from perceivers.data.tokens import TokenSplit, TokenStore
from perceivers.evaluate.bootstrap import mean_with_interval, paired_bootstrap
from perceivers.evaluate.schedule import predictions_a_rebuild, score_schedule
from perceivers.generate.loaded import load
from perceivers.models.perceiver_ar_config import PerceiverARConfig
from perceivers.train.data import check_store

EIGHTHS = (7, 6, 4, 2, 1)
"""Values of refill, in eighths of the latents."""

PHASES = 3
"""Places from one rebuild to the next at which the scored tokens begin."""


@dataclass(frozen=True)
class Schedule:
    """How latents come and go."""

    name: str
    num_latents: int
    refill: int

    @property
    def stride(self) -> int:
        """Predictions from one rebuild to the next."""
        return predictions_a_rebuild(self.num_latents, self.refill)


def schedules(num_latents: int) -> list[Schedule]:
    refills = sorted({max(1, num_latents * part // 8) for part in EIGHTHS}, reverse=True)
    return [
        Schedule(f"{num_latents} (stride 1)", num_latents, num_latents),
        *(Schedule(str(refill), num_latents, refill) for refill in refills if refill < num_latents),
        Schedule("a single latent", 1, 1),
    ]


def choose(split: TokenSplit, *, seq_len: int, pieces: int) -> np.ndarray:
    """Documents, evenly among those that have `seq_len` tokens with SOS and EOS."""
    long = np.flatnonzero(split.lengths + 2 >= seq_len)
    if not 0 < pieces <= len(long):
        raise ValueError(f"--pieces {pieces}: {len(long)} documents of {split.name!r} have {seq_len} tokens or more")
    return long[np.linspace(0, len(long) - 1, pieces).round().astype(int)]


def spans(split: TokenSplit, documents: np.ndarray, *, seq_len: int, generator: np.random.Generator) -> TokenBatch:
    """`seq_len` tokens of each document, at a random place."""
    starts = [int(generator.integers(split.lengths[document] + 2 - seq_len + 1)) for document in documents]
    return collate(
        [model_tokens(split[i], start=start, stop=start + seq_len) for i, start in zip(documents, starts, strict=True)],
        [np.arange(start + 1, start + seq_len + 1)[:, None] for start in starts],
    )


def nats(model: nn.Module, rows: TokenBatch, schedule: Schedule, generator: np.random.Generator) -> np.ndarray:
    """Sum over the tokens of each row; mean over phases."""
    number, stride = len(rows.tokens), schedule.stride
    repeats = min(PHASES, stride)
    steps = np.arange(repeats)[:, None] * stride // repeats
    phases = (generator.integers(stride, size=number) + steps) % stride
    scores = score_schedule(
        model,
        TokenBatch(rows.tokens.repeat(repeats, 1), rows.positions.repeat(repeats, 1, 1), rows.lengths.repeat(repeats)),
        refill=schedule.refill,
        num_latents=schedule.num_latents,
        phases=phases.ravel().tolist(),
        progress=True,
    )
    return scores.sum(1).reshape(repeats, number).mean(0)


def group(names: list[str]) -> np.ndarray:
    """The number of each name's folder; of the name itself where there is only one folder."""
    folders = [str(PurePath(name).parent) for name in names]
    return np.unique(folders if len(set(folders)) > 1 else names, return_inverse=True)[1]


def main(
    run: tyro.conf.Positional[str],
    store: tyro.conf.Positional[Path],
    *,
    split: str = "test",
    tokens: int = 256,
    pieces: int = 12,
    seed: int = 0,
) -> None:
    """Score held-out tokens under the sampler's schedules; print a Markdown table.

    Args:
        run: Run directory, saved model, or model on the Hugging Face hub.
        store: Token store.
        split: Split of the store.
        tokens: Tokens to score of each document.
        pieces: Documents to take tokens from.
        seed: Of the places in the documents, and of where latents are rebuilt.
    """
    started = time.perf_counter()
    opened, loaded = TokenStore.open(store), load(run, device="auto")
    config = loaded.config
    if not isinstance(config, PerceiverARConfig):
        raise ValueError(f"{run} is a model of kind {config.kind!r}; only a Perceiver AR has this dial")
    check_store(opened, config)
    data, generator = opened.split(split), np.random.default_rng(seed)
    seq_len = config.max_seq_len + tokens
    documents = choose(data, seq_len=seq_len, pieces=pieces)
    rows = spans(data, documents, seq_len=seq_len, generator=generator)
    index = group([data.names[i] for i in documents])
    counts = np.bincount(index) * tokens

    print(
        f"{run} on the {split} split of {store}: {tokens} tokens of each of {pieces} documents in {len(counts)} groups"
    )
    print(f"inputs of {config.max_seq_len} tokens, {config.num_latents} latents, {torch.get_num_threads()} threads")
    sums = {
        schedule: np.bincount(index, weights=nats(loaded.model, rows, schedule, generator))
        for schedule in schedules(config.num_latents)
    }
    best = next(iter(sums.values()))
    print("\n| refill | predictions a rebuild | latents a token | nats a token | more than stride 1 |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for schedule, values in sums.items():
        more = paired_bootstrap(values, best, counts).difference
        work = schedule.num_latents / schedule.stride
        mean = mean_with_interval(values, counts).value
        difference = f"{more.value:+.4f} [{more.low:+.4f}, {more.high:+.4f}]" if values is not best else ""
        print(f"| {schedule.name} | {schedule.stride} | {work:.2f} | {mean:.4f} | {difference} |")
    print(f"\n{time.perf_counter() - started:.0f} seconds")


if __name__ == "__main__":
    tyro.cli(main)
