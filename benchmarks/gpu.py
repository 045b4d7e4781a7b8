"""What the package does on one GPU, in five minutes: right numbers, and how fast.

    PYTHONPATH=src:. python benchmarks/gpu.py [PART ...] [--quick] [--out FILE]

Parts: the machine's own limits, official numbers in float32 and bfloat16 (`tests/parity`), attention, steps of
training, generated tokens, and a run from training to samples. Each is a process of its own with a time limit: one that
fails leaves the others alone. Rows are printed as they are found; those of what failed say why. Without a GPU it runs
on the CPU, to see that it runs.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from gpu_bench import PRECISIONS, Bench
from gpu_parity import parity
from gpu_speed import attention, steps, tokens
from perceivers.cli.hooks import evaluation, sampler
from perceivers.evaluate.copying import score_copying
from perceivers.generate.config import SamplingConfig
from perceivers.generate.loaded import load
from perceivers.hub import read_tensors
from perceivers.presets import preset
from perceivers.train.config import TrainConfig
from perceivers.train.loop import train


def machine(bench: Bench) -> None:
    """How fast products and copies are."""
    facts = {"torch": torch.__version__, "python": sys.version.split()[0], "cuda": torch.version.cuda}
    name, memory = "CPU", 0
    if bench.device.type == "cuda":
        found = torch.cuda.get_device_properties(0)
        name, memory = found.name, found.total_memory
        facts |= {"capability": f"{found.major}.{found.minor}", "cudnn": torch.backends.cudnn.version()}
    bench.row(name, "memory", memory / 1e9, "GB", **facts)
    size = 256 if bench.quick else 8192
    for kind, dtype in PRECISIONS.items():
        with bench.attempt(name, f"{kind} product"):
            pair = [torch.randn(size, size, dtype=dtype, device=bench.device) for _ in range(2)]
            seconds = bench.seconds(partial(torch.mm, *pair))
            bench.row(name, f"{kind} product", 2 * size**3 / seconds / 1e12, "TFLOP/s")
    with bench.attempt(name, "copy"):
        source = torch.empty(2**20 if bench.quick else 2**31, dtype=torch.uint8, device=bench.device)
        target = torch.empty_like(source)
        seconds = bench.seconds(lambda: target.copy_(source))
        bench.row(name, "copy", 2 * source.nbytes / seconds / 1e12, "TB/s", note="bytes read and written")


def whole_run(bench: Bench) -> None:
    """Train the copy task, resume, evaluate and sample, by the product's own functions."""
    config = replace(preset("copy_tiny"), device=str(bench.device), max_steps=40, eval_every=20)
    config = replace(config, sample_every=20, sample_tokens=30)
    with TemporaryDirectory() as directory:
        out = Path(directory)
        with bench.attempt("copy_tiny", "resumed beside undisturbed"):
            _train(config, out / "straight")
            _train(replace(config, max_steps=20), out / "parts")
            _train(config, out / "parts", resume=True)
            a, b = (read_tensors(out / name / "model.safetensors") for name in ("straight", "parts"))
            off = max(float((a[name] - b[name]).abs().max()) for name in a)
            bench.row("copy_tiny", "resumed beside undisturbed", off, "largest difference of a weight")
        minutes = 0.02 if bench.quick else 1 / 3
        with bench.attempt("copy_tiny", "trained"):
            clocked = replace(config, max_steps=100_000, max_minutes=minutes, eval_every=0, sample_every=0)
            state = _train(clocked, out / "run").state
            bench.row("copy_tiny", "trained", state.step / (60 * state.minutes), "steps/s", steps=state.step)
        with bench.attempt("copy_tiny", "loaded"):
            loaded = load(out / "run", device=str(bench.device))
            for precision in PRECISIONS:
                score = score_copying(loaded.model, 32, count=256, split="test", precision=precision)
                bench.row("copy_tiny", f"right, {precision}", 100 * score.accuracy, "%", nats=score.nats_per_token)
            half = np.random.default_rng(7).integers(256, size=15).tolist()
            greedy = SamplingConfig(temperature=0)
            ids = loaded.generate(half, max_tokens=15, sampling=greedy, stop_at_end=False)
            right = sum(int(a == b) for a, b in zip(ids, half[::-1], strict=True))
            bench.row("copy_tiny", "mirrored by the sampler", right, "of 15 tokens")


def _train(config: TrainConfig, out: Path, *, resume: bool = False) -> Any:
    hooks = {"evaluate": evaluation(config, None), "sample": sampler(config, out, None)}
    return train(config, out, resume=resume, progress=False, **hooks)  # pyright: ignore[reportArgumentType]


PARTS: dict[str, tuple[Callable[[Bench], None], float]] = {
    "machine": (machine, 15),
    "parity": (parity, 60),
    "attention": (attention, 60),
    "training": (steps, 130),
    "tokens": (tokens, 70),
    "run": (whole_run, 40),
}
"""What each does, and its seconds; it is stopped after half as many again and 20 more."""


def work(args: argparse.Namespace) -> None:
    """Do one part; another process waits."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    call, budget = PARTS[args.part]
    bench = Bench(args.part, args.quick, device, args.found, time.monotonic() + budget)
    with bench.attempt("all", args.part):
        call(bench)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"which of {', '.join(PARTS)}; all without any")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs; numbers mean nothing")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all rows there too, as JSON")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        work(args)
        return
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part {min(unknown)!r}: choose from {', '.join(PARTS)}")
    begun = time.monotonic()
    print("| part | setting | what | result | more |\n| --- | --- | --- | --- | --- |", flush=True)
    with TemporaryDirectory() as directory:
        found = Path(directory) / "rows.jsonl"
        found.touch()
        for part in args.parts or PARTS:
            command = [sys.executable, __file__, "--part", part, "--found", found, *["--quick"] * args.quick]
            started = time.monotonic()
            try:
                code = subprocess.run(command, timeout=1.5 * PARTS[part][1] + 20).returncode
            except subprocess.TimeoutExpired:
                code = "stopped: out of time"
            print(f"# {part}: {time.monotonic() - started:.0f} s, exit {code}", flush=True)
            if code:
                row = {"part": part, "setting": "all", "what": part, "error": f"exit {code}"}
                with found.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            if args.out:
                rows = [json.loads(line) for line in found.read_text().splitlines()]
                args.out.write_text(json.dumps({"seconds": time.monotonic() - begun, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
