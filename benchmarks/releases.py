"""How likely a model lets go of a key, by how long the key has been down.

    python benchmarks/releases.py RUN STORE [--split test] [--pieces 20] [--any-keys]

For each event of a piece and each key that is down before it: the probability that the event releases the key; its
mean over real pieces, read by the model, and over the model's own continuations (played freely with --any-keys).
"""

import argparse
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Integer

from perceivers.cli.console import table
from perceivers.data.batch import NUM_SPECIAL, collate, model_tokens
from perceivers.data.blocks import evaluation_blocks
from perceivers.data.music import NOTE_OFF, STEPS_PER_SECOND, TIME_SHIFT, VELOCITY, seconds
from perceivers.data.tokens import TokenStore
from perceivers.evaluate.playing import EVENTS_A_SECOND
from perceivers.evaluate.prediction import predict
from perceivers.generate.files import first_seconds
from perceivers.generate.loaded import Loaded, load
from perceivers.train.data import sequence_model

SECONDS = (0, 1, 2, 3, 13)
PROMPT, LENGTH = 10.0, 30.0


def probabilities(loaded: Loaded, ids: Integer[np.ndarray, " events"]) -> Float[np.ndarray, "events vocab"]:
    """What the model expects in place of each event."""
    config = sequence_model(loaded.config)
    rows = []
    for block in evaluation_blocks(len(ids) + 2, max_len=config.max_seq_len, stride=config.num_targets // 2):
        tokens = model_tokens(ids, start=block.start, stop=block.stop)
        batch = collate([tokens], [np.arange(block.start + 1, block.stop + 1)[:, None]])
        with torch.no_grad():
            logits, _ = predict(loaded.model, batch, num_latents=config.num_targets)
        rows.append(logits[0, -block.num_targets :].softmax(-1).numpy())
    return np.concatenate(rows)[: len(ids), NUM_SPECIAL:]


def releases(
    ids: Integer[np.ndarray, " events"], expected: Float[np.ndarray, "events vocab"], start: int
) -> Iterator[tuple[float, float]]:
    """Seconds for which a key has been down, and the probability that it comes up now, from event `start` on."""
    pressed: dict[int, int] = {}
    now = 0
    for index, event in enumerate(ids.tolist()):
        if index >= start:
            for pitch, onset in pressed.items():
                yield (now - onset) / STEPS_PER_SECOND, float(expected[index, NOTE_OFF + pitch])
        if TIME_SHIFT <= event < VELOCITY:
            now += event - TIME_SHIFT + 1
        elif event < NOTE_OFF:
            pressed.setdefault(event, now)
        elif event < TIME_SHIFT:
            pressed.pop(event - NOTE_OFF, None)


def row(name: str, pairs: list[tuple[float, float]]) -> tuple[str, ...]:
    """Mean probability and count for each range of seconds."""
    held, likely = np.array(pairs).T
    which = np.searchsorted(SECONDS, held, side="right") - 1
    cells = [
        f"{likely[which == i].mean():.4f} ({(which == i).sum():,})" if (which == i).any() else "none"
        for i in range(len(SECONDS))
    ]
    return (name, *cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("store")
    parser.add_argument("--split", default="test")
    parser.add_argument("--pieces", type=int, default=20)
    parser.add_argument("--any-keys", action="store_true")
    args = parser.parse_args()
    loaded = load(args.run)
    split = TokenStore.open(args.store).split(args.split)
    pieces = sorted((split[i] for i in range(len(split))), key=seconds)[-args.pieces :]
    prompts = [first_seconds(ids, PROMPT) for ids in pieces]
    made = loaded.generate_many(
        prompts,
        max_tokens=round((LENGTH - PROMPT) * EVENTS_A_SECOND),
        seconds=LENGTH - PROMPT,
        stop_at_end=False,
        constraint=None if args.any_keys else loaded.usual_constraint(),
    )
    real = [pair for ids in pieces for pair in releases(ids, probabilities(loaded, ids), 0)]
    own = []
    for prompt, continuation in zip(prompts, made, strict=True):
        ids = np.concatenate([prompt, continuation.ids])
        own += list(releases(ids, probabilities(loaded, ids), len(prompt)))
    ends = [f"{low} to {high} s" for low, high in pairwise(SECONDS)]
    print(table([("held for", *ends, f"{SECONDS[-1]} s and more"), row("real", real), row("continued", own)]))


if __name__ == "__main__":
    main()
