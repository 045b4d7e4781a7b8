"""What keeps a small model of the chorales from holding keys for ever: crops, late note-offs, and how it is drawn.

    python benchmarks/keys.py [--steps 2000] [--crop uniform] [--late-offs 0.05] [--seed 0] [--grid] [--quick]

Trains the demo's model on one thread for a number of steps, and prints nats an event and the use of keys of 30-second
continuations of validation chorales, with and without `PlayableKeys`. With --grid it plays with nine pairs of
temperature and top-p.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from perceivers.cli.console import table
from perceivers.data.chorales import chorale_splits
from perceivers.data.config import DataConfig
from perceivers.data.tokens import TokenSplit
from perceivers.demo import write_store
from perceivers.evaluate.likelihood import score
from perceivers.evaluate.playing import play, played, playing_rows
from perceivers.generate.config import SamplingConfig
from perceivers.generate.loaded import Loaded, load
from perceivers.presets import bach_demo
from perceivers.train.loop import train

PAIRS = ((1, 1), (1, 0.98), (0.95, 0.98), (0.95, 0.95), (0.9, 0.98), (0.9, 0.95), (0.9, 0.9), (0.8, 0.95), (0.8, 0.9))
"""Temperatures and top-p."""


def show(loaded: Loaded, split: TokenSplit, sampling: SamplingConfig, *, quick: bool) -> None:
    """Continuations with one way to draw."""
    length = {"prompt_seconds": 2.0, "length": 3.0, "pieces": 2} if quick else {}
    playing = play(loaded, split, sampling=sampling, **length)  # pyright: ignore[reportArgumentType]
    assert playing is not None  # chorales are long enough
    numbers = playing.numbers()
    print(f"\ntemperature {sampling.temperature:g}, top-p {sampling.top_p:g}; {played(numbers)}")
    print(table(playing_rows(numbers)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--crop", choices=("uniform", "random", "cover"), default="uniform")
    parser.add_argument("--late-offs", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--quick", action="store_true", help="three steps, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = bach_demo()
    assert isinstance(config.data, DataConfig)  # the preset's data are documents
    data = replace(config.data, crop=args.crop, late_offs=args.late_offs)
    steps = 3 if args.quick else args.steps
    config = replace(config, data=data, seed=args.seed, max_steps=steps, max_minutes=None, eval_every=0)
    with TemporaryDirectory() as directory:
        store = write_store(chorale_splits(), Path(directory) / "store")
        train(config, Path(directory) / "run", store=store)
        loaded = load(Path(directory) / "run")
        for name in ("validation", "test"):
            nats = score(loaded.model, store.split(name), max_tokens=512 if args.quick else None).nats_per_token
            print(f"{name}: {nats:.4f} nats an event")
        for temperature, top_p in PAIRS if args.grid else [(0.95, 0.98)]:
            sampling = SamplingConfig(temperature=temperature, top_p=top_p, seed=1)
            show(loaded, store.split("validation"), sampling, quick=args.quick)


if __name__ == "__main__":
    main()
