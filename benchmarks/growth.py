"""Seconds and memory of a step of training by the length of the context: a table and a plot.

    python benchmarks/growth.py [--plot FILE.png] [--quick] [--json FILE]

Models, widths and precisions are those of `training.py`, on one row of 1,024 to 131,072 bytes, with 512 latents (half
of the row at 1,024). Each model at each length trains in a process of its own, one after the other: two steps count,
after one that does not. A model is left out where a step would take more than two minutes or more than 16 GB, judged
by the length before. Nothing else should run beside it.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from perceivers.cli.main import LARGE_PAGES
from perceivers.evaluate.plots import new_figure
from sampling_peers import ENVIRONMENT, Worker, installed_peers
from sampling_timing import Row
from speed_table import parser_of, print_table
from training import FULL, OURS, QUICK, SCRIPT, Scale

CONTEXTS = {"full": tuple(2**i for i in range(10, 18)), "quick": (32, 64, 128)}
LATENTS = 512
STEPS = 2
LONGEST, LARGEST = 120.0, 16e9
"""Seconds and bytes that a step may be expected to take: four times and twice those at half the length, at most."""


def grow(name: str, contender: dict[str, Any], contexts: tuple[int, ...], scale: Scale) -> Iterator[Row]:
    """Rows of one model at all lengths that it can be trained on."""
    python = Path(sys.executable) if name in OURS else ENVIRONMENT / "bin" / "python"
    size = {"dim": scale.dim, "depth": scale.depth, "heads": scale.heads}
    seconds, most = np.zeros(1), 0.0
    for context in contexts:
        if 4 * np.median(seconds) > LONGEST or 2 * most > LARGEST:
            print(f"  {name} is left out from {context:,} on", file=sys.stderr, flush=True)
            return
        with Worker(python, SCRIPT, LARGE_PAGES if name in OURS else None) as worker:
            latents = min(LATENTS, context // 2)
            worker.ask(do="build", context=context, latents=latents, **contender, **size)
            seconds = np.array([worker.ask(do="step")["seconds"] for _ in range(STEPS + 1)][1:])
            most = worker.ask(do="peak")["bytes"]
        yield Row.of(name, f"{context}", "a step", seconds, "s")
        yield Row.of(name, f"{context}", "most memory", most / 1e9, "GB")


def table(scale: Scale, contexts: tuple[int, ...]) -> Iterator[Row]:
    """Rows of all models."""
    for name in ("ours, float32", "ours, bfloat16"):
        yield from grow(name, {"who": "perceivers", **OURS[name]}, contexts, scale)
    for peer in installed_peers(ENVIRONMENT) if scale is FULL else []:
        yield from grow(f"{peer}, float32", {"who": peer}, contexts, scale)


def plot(rows: list[Row], path: Path) -> None:
    """Both against the length, all axes logarithmic."""
    figure, _ = new_figure(10.0, 4.2)
    figure.clear()
    for axes, what, label in zip(
        figure.subplots(1, 2), ("a step", "most memory"), ("seconds a step", "GB above the libraries"), strict=True
    ):
        for name in dict.fromkeys(row.part for row in rows):
            found = [(int(row.setting), row.median) for row in rows if (row.part, row.what) == (name, what)]
            axes.loglog(*zip(*found, strict=True), marker="o", markersize=3, label=name, base=2)
        axes.set(xlabel="bytes of context", ylabel=label)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.tick_params(axis="x", labelrotation=45)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it there")
    args = parser.parse_args()
    scale, contexts = (QUICK, CONTEXTS["quick"]) if args.quick else (FULL, CONTEXTS["full"])
    rows: list[Row] = []

    def kept() -> Iterator[Row]:
        for row in table(scale, contexts):
            rows.append(row)
            yield row

    print_table(kept(), scale=scale, json_file=args.json)
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
