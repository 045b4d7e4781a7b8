"""Plots of training runs."""

from pathlib import Path
from typing import Any

from perceivers.writing import write_figure

TRAIN, HELD_OUT = "#4C72B0", "#C44E52"


def plot_training(
    rows: list[dict[str, Any]], path: Path, *, baselines: dict[str, float] | None = None, title: str = ""
) -> None:
    """Loss against steps, as a PNG.

    Args:
        rows: What `read_metrics` gives.
        path: Where to write.
        baselines: Horizontal lines: nats a token by name.
        title: Above the plot.
    """
    figure, axes = new_figure(8.0, 4.5)
    for name, color, label in (("train/nats", TRAIN, "training"), ("validation/nats", HELD_OUT, "held out")):
        found = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        if found:
            axes.plot(*zip(*found, strict=True), color=color, label=label, linewidth=1.5, alpha=0.9)
    for name, value in (baselines or {}).items():
        axes.axhline(value, color="0.4", linestyle="--", linewidth=1)
        axes.annotate(name, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="0.4")
    shown = [row["train/nats"] for row in rows[len(rows) // 20 :] if row.get("train/nats") is not None]
    if shown:
        axes.set_ylim(0, 1.1 * max([*shown, *(baselines or {}).values()]))
    axes.set(xlabel="step", ylabel="nats a token", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
    write_figure(path, figure, dpi=150)


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure, in inches, and its axes, without any global state of matplotlib.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'perceivers[plots]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()
