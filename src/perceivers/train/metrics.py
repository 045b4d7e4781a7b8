"""Where numbers of a run go: metrics.jsonl always, TensorBoard if asked for."""

import json
import math
from pathlib import Path
from typing import Any

from perceivers.records import parse_json
from perceivers.writing import Lock, write_text


class MetricsLog:
    """Appends a line of JSON for each set of numbers.

    Args:
        run: Run directory; lines go to `run`/metrics.jsonl.
        step: Lines of later steps, left by a run that was killed, are removed.
        tensorboard: Write TensorBoard events to `run`/tensorboard too.
        held: Lock of the run directory, let go of at the end.
    """

    def __init__(self, run: Path, *, step: int = 0, tensorboard: bool = False, held: Lock | None = None) -> None:
        self._held = held
        self.path = run / "metrics.jsonl"
        if self.path.exists():
            kept = "".join(json.dumps(row) + "\n" for row in read_metrics(run) if row["step"] <= step)
            write_text(self.path, kept)
        self._writer = None
        if tensorboard:
            try:
                from torch.utils.tensorboard.writer import SummaryWriter
            except ImportError as error:
                raise ImportError("TensorBoard is not installed: pip install 'perceivers[tracking]'") from error
            self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, int | float]) -> None:
        """Note `values` after `step` updates."""
        row = {"step": step, **{name: value if math.isfinite(value) else None for name, value in values.items()}}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush what is buffered, and let go of the directory."""
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            if self._held is not None:
                self._held.release()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics.jsonl: numbers, None for those that were not finite.

    A line that was cut off by a kill, or holds anything else, is left out.
    """
    rows = []
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows
