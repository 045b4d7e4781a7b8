"""What a token costs: `python benchmarks/sampling.py [PART ...] [--quick] [--json FILE]`.

Models of random weights, batch 1, on the CPU. Whatever is compared runs in turns, A B A B ..., and each ratio is taken
inside a round, so that a machine that slows down for a while slows both. The table has the median of the rounds, the
lowest and the highest. Nothing else should run beside it.

    speed    tokens/s from kept keys and values, and by a full forward pass a token
    bound    one token beside the time to read its weights, keys and values from memory, at the speed of a sum
    weights  one token with weights in float32, bfloat16 and 8-bit integers, compiled too
    growth   one token at longer and longer contexts
    refill   rebuilding latents from kept keys and values, and from the tokens, as the official sampler does
    first    the time to the first token, beside that of as many operations of a matrix product
    samples  several samples of one prompt, and of several prompts
    memory   the most memory that a long generation takes, beside its weights, keys and values
    peers    the same token by a decoder written by hand, and by two other packages, in an environment that is made for
             them (once, some minutes)

A model whose context is M reads M tokens at most, and has read so many: each time its latents are rebuilt, the oldest
tokens leave. "A step" is a token between two such times, halfway. Steps run in short bursts, as in a generation, so the
processor's caches keep what fits.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

import sampling_memory
import sampling_parts
import sampling_peers
from sampling_timing import FULL, QUICK, Row, Scale

PARTS: dict[str, Callable[[Scale], Iterator[Row]]] = {
    "speed": sampling_parts.speed,
    "bound": sampling_parts.bound,
    "weights": sampling_parts.weights,
    "growth": sampling_parts.growth,
    "refill": sampling_parts.refill,
    "first": sampling_parts.first,
    "samples": sampling_parts.samples,
    "memory": sampling_memory.memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    names = [*PARTS, "peers"]
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(names)}; all of them if none is given")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs; numbers mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there too")
    parser.add_argument("--env", type=Path, default=sampling_peers.ENVIRONMENT, metavar="DIR", help="of the peers")
    args = parser.parse_args()
    if unknown := [part for part in args.parts if part not in names]:
        parser.error(f"no part {unknown[0]!r}: choose from {', '.join(names)}")

    scale = QUICK if args.quick else FULL
    facts = machine()
    print(", ".join(f"{name} {fact}" for name, fact in facts.items()), end="\n\n")
    print("| part | setting | what | median | lowest | highest | unit |\n| --- | --- | --- | --: | --: | --: | --- |")
    rows: list[Row] = []
    for part in args.parts or names:
        print(f"{part} ...", file=sys.stderr, flush=True)
        for row in sampling_peers.peers(scale, args.env) if part == "peers" else PARTS[part](scale):
            print(row, flush=True)
            rows.append(row)
            if args.json:
                table = {"machine": facts, "scale": asdict(scale), "rows": [asdict(row) for row in rows]}
                args.json.write_text(json.dumps(table, indent=1) + "\n")


def machine() -> dict[str, str]:
    """What the numbers depend on."""
    described = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in described if line.startswith("model name")]
    return {
        "CPU": models[0] if models else platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "load": f"{os.getloadavg()[0]:.1f}",
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


if __name__ == "__main__":
    main()
