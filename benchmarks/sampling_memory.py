"""The part of `sampling.py` that measures memory; a process of its own draws the tokens."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from perceivers.models.cached import CachedPerceiverAR
from sampling_timing import FULL, QUICK, Row, Scale, fresh_model, random_prompts

STATUS = Path("/proc/self/status")


def memory(scale: Scale) -> Iterator[Row]:
    if not STATUS.exists():
        print("  left out: only Linux says how much memory a process used", file=sys.stderr)
        return
    for latents in scale.latents:
        command = [sys.executable, __file__, "quick" if scale == QUICK else "full", str(latents)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        about = ("memory", f"M {scale.longest:,}, N {latents:,}, {scale.drawn} tokens drawn")
        peak, needed = found["peak"], found["weights"] + found["cache"]
        yield Row.of(*about, "the libraries alone", found["libraries"] / 1e6, "MB")
        yield Row.of(*about, "most memory, above that", peak / 1e6, "MB")
        yield Row.of(*about, "weights", found["weights"] / 1e6, "MB")
        yield Row.of(*about, "keys and values", found["cache"] / 1e6, "MB")
        yield Row.of(*about, "most memory / weights, keys and values", peak / needed, "x")


def resident(key: str) -> int:
    """Bytes: VmRSS, now, or VmHWM, the most so far."""
    rows = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(rows[key].split()[0]) * 1024


def draw(scale: Scale, latents: int) -> dict[str, int]:
    """Read the longest prompt that leaves room for the tokens, and draw them."""
    # A process starts with its parent's peak in `ru_maxrss`; this one's own can be set back.
    Path("/proc/self/clear_refs").write_text("5")
    libraries = resident("VmRSS")
    run = CachedPerceiverAR(fresh_model(scale, scale.longest, latents))
    prompts = random_prompts(1, run.longest_prompt(scale.drawn))
    logits = run.start(prompts, max_tokens=scale.drawn)
    for _ in range(scale.drawn - 1):
        logits = run.feed(logits.argmax(-1))
    weights = sum(weight.nbytes for weight in run.model.parameters())
    peak = resident("VmHWM") - libraries
    return {"libraries": libraries, "peak": peak, "weights": weights, "cache": run.nbytes}


if __name__ == "__main__":
    print(json.dumps(draw(QUICK if sys.argv[1] == "quick" else FULL, int(sys.argv[2]))))
