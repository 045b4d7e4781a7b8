"""A Perceiver beside that of Hugging Face transformers: `python benchmarks/io_speed.py [--quick] [--json FILE]`.

The picture classifier with Fourier positions, which both have: 224 x 224 pixels, 512 latents, 8 times the same 6
layers, as published but narrower; the same random weights, batch 1, on the CPU. Forward alone, and forward with
backward, in float32 and under bfloat16 autocast; ours also compiled (`model.compile()`). All run in turns, and each
ratio is taken inside a round; the table has the median of the rounds, the lowest and the highest. Memory is the peak
above the loaded model, in a process of its own for each. Needs the extra `hf`. Nothing else should run beside it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

import perceivers
from sampling_timing import Row, Task, in_turns, timed
from speed_table import parser_of, print_table


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is."""

    size: int
    latents: int
    dim: int
    layers: int
    blocks: int
    rounds: int


FULL = Scale(size=224, latents=512, dim=256, layers=6, blocks=8, rounds=5)
QUICK = Scale(size=224, latents=8, dim=16, layers=1, blocks=1, rounds=2)

COMPILED = "perceivers compiled"

Forward = Callable[[], Tensor]


def save_theirs(scale: Scale, directory: Path) -> None:
    """A model of transformers with random weights."""
    from transformers import PerceiverConfig, PerceiverForImageClassificationFourier

    torch.manual_seed(0)
    config = PerceiverConfig(
        num_latents=scale.latents,
        d_latents=scale.dim,
        num_blocks=scale.blocks,
        num_self_attends_per_block=scale.layers,
        num_self_attention_heads=8,
        num_cross_attention_heads=1,
        attention_probs_dropout_prob=0.0,
        num_labels=1000,  # pyright: ignore[reportCallIssue]
        image_size=scale.size,
    )
    PerceiverForImageClassificationFourier(config).save_pretrained(directory)


def model_of(who: str, directory: Path, scale: Scale) -> tuple[nn.Module, Forward]:
    """A model in training mode, and its logits of one random picture."""
    picture = torch.rand(1, scale.size, scale.size, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    if who == "transformers":
        from transformers import PerceiverForImageClassificationFourier

        theirs = PerceiverForImageClassificationFourier.from_pretrained(directory).train()
        pixels = picture.movedim(-1, 1).contiguous()
        return theirs, lambda: theirs(inputs=pixels).logits
    ours = perceivers.load(directory).model.train()
    if who == COMPILED:
        ours.compile()
    return ours, lambda: ours(picture)


def task(model: nn.Module, forward: Forward, *, training: bool, bfloat16: bool) -> Task:
    """Forward alone, or with backward."""

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            if training:
                model.zero_grad()
                loss = forward().float().logsumexp(-1).sum()
            else:
                with torch.inference_mode():
                    forward()
                return
        loss.backward()

    return timed(run)


def speed(scale: Scale, directory: Path) -> Iterator[Row]:
    """Rows of the table about time."""
    models = {who: model_of(who, directory, scale) for who in ("transformers", "perceivers", COMPILED)}
    with torch.no_grad():
        expected, *found = [forward() for _, forward in models.values()]
        for logits in found:
            torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
    setting = f"{scale.size**2:,} pixels, {scale.latents} latents x {scale.dim}, {scale.blocks} x {scale.layers} layers"
    for part, training in (("forward", False), ("forward and backward", True)):
        tasks = {
            f"{who}, {name}": task(*models[who], training=training, bfloat16=bfloat16)
            for name, bfloat16 in (("float32", False), ("bfloat16", True))
            for who in models
        }
        seconds = in_turns(tasks, scale.rounds)
        for name, values in seconds.items():
            yield Row.of(part, setting, name, 1000 * values, "ms")
        for who in ("perceivers", COMPILED):
            for ours, theirs in (("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")):
                ratio = seconds[f"transformers, {theirs}"] / seconds[f"{who}, {ours}"]
                yield Row.of(part, setting, f"transformers, {theirs} / {who}, {ours}", ratio, "times")


def memory(scale: Scale, directory: Path, *, quick: bool) -> Iterator[Row]:
    """Rows of the table about memory."""
    for part in ("forward", "forward and backward"):
        peaks = {}
        for who in ("transformers", "perceivers"):
            command = [sys.executable, __file__, "--worker", who, part, str(directory), *(["--quick"] * quick)]
            peaks[who] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            yield Row.of(part, "peak above the loaded model, float32", who, peaks[who] / 2**20, "MiB")
        ratio = peaks["perceivers"] / peaks["transformers"]
        yield Row.of(part, "peak above the loaded model, float32", "perceivers / transformers", ratio, "times")


def worker(who: str, part: str, directory: Path, scale: Scale) -> None:
    """Print the bytes that one pass takes above the loaded model."""
    model, forward = model_of(who, directory, scale)
    with open("/proc/self/statm") as statm:
        before = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    task(model, forward, training=part != "forward", bfloat16=False)()
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) * 1024 - before)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    scale = QUICK if args.quick else FULL
    if args.worker:
        who, part, place = args.worker
        worker(who, part, Path(place), scale)
        return
    with tempfile.TemporaryDirectory() as place:
        save_theirs(scale, Path(place))
        found = chain(speed(scale, Path(place)), memory(scale, Path(place), quick=args.quick))
        print_table(found, scale=scale, json_file=args.json)


if __name__ == "__main__":
    main()
