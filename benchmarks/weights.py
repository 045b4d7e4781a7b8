"""What smaller weights cost: nats a token of held-out documents with weights of each kind.

    python benchmarks/weights.py runs/a store --split validation --tokens 65536

The windows are the same for all; the interval is over documents, of the difference from float32.
"""

import argparse
from typing import get_args

import numpy as np

from perceivers.data.tokens import TokenStore
from perceivers.evaluate.bootstrap import mean_with_interval
from perceivers.evaluate.likelihood import Likelihood, score
from perceivers.generate.lean import Weights
from perceivers.generate.loaded import load


def main() -> None:
    """Score, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run directory")
    parser.add_argument("store", help="token store")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--tokens", type=int, default=65_536, help="tokens to score, in windows spread over the split")
    args = parser.parse_args()
    split = TokenStore.open(args.store).split(args.split)
    found: dict[str, Likelihood] = {}
    for weights in get_args(Weights):
        model = load(args.run, weights=weights).model
        found[weights] = score(model, split, max_tokens=args.tokens, precision="float32", progress=True)
    exact = found["float32"]
    print(f"{exact.tokens.sum():,} tokens of {len(exact.names)} documents\n")
    print("| weights | nats a token | difference from float32 |\n| --- | --- | --- |")
    for weights, likelihood in found.items():
        print(f"| {weights} | {likelihood.nats_per_token:.5f} | {difference(likelihood, exact)} |")


def difference(one: Likelihood, other: Likelihood) -> str:
    """Mean over tokens, with an interval over documents."""
    change = mean_with_interval(one.nats - other.nats, other.tokens)
    return f"{change.value:+.6f} [{change.low:+.6f}, {change.high:+.6f}]" if np.any(one.nats != other.nats) else "0"


if __name__ == "__main__":
    main()
