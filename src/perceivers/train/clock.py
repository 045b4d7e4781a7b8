"""The clock that may end a run, and that its learning rate then follows."""

import time
import warnings
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from perceivers.writing import write_text

TICK = 2.0**-20
"""Minutes: 57 microseconds. Sums of so few digits are exact, and thus the same in whatever parts they are made."""

NS_A_MINUTE = 60 * 10**9


class Clock:
    """Time that updates take: neither evaluation nor samples, saving or compilation.

    What it says of each update goes to a file, a line of whole ticks each. Updates that a killed process had done after
    the last checkpoint are done again, and the clock says of them what it had said: so they end as they had ended.

    Args:
        path: The file; None for no record, as where another process has it.
        step: Updates done. What is on record of later ones is said again.
        minutes: What those took. A record that says otherwise is another run's, or was changed: it is not followed.
        resume: Go on with the file; otherwise it is begun anew.
    """

    def __init__(self, path: Path | None, *, step: int = 0, minutes: float = 0.0, resume: bool = False) -> None:
        recorded: list[int] = []
        if path is not None:
            recorded = _recorded(path) if resume and path.exists() else []
            if sum(recorded[:step]) != (took := round(minutes / TICK)) or len(recorded) < step:
                if recorded:
                    warnings.warn(
                        f"{path} does not say what the first {step} updates took: updates that were done after the "
                        "last checkpoint are timed anew, and may end otherwise than they did",
                        stacklevel=2,
                    )
                recorded = [0] * (step - 1) + [took] * (step > 0)  # together as long as they were
            write_text(path, "".join(f"{ticks}\n" for ticks in recorded))
        self._path = path
        self._said = iter(list(islice(recorded, step, None)))
        self._began = self._stopped = 0

    def start(self) -> None:
        """An update begins."""
        self._began = time.monotonic_ns()

    def stop(self) -> None:
        """What follows does not count."""
        self._stopped = time.monotonic_ns()

    def go_on(self) -> None:
        """What follows counts again."""
        self._began += time.monotonic_ns() - self._stopped

    def read(self) -> int:
        """Ticks since the update began; noted as what it took."""
        took = round((time.monotonic_ns() - self._began) / NS_A_MINUTE / TICK)
        said = next(self._said, None)
        if said is not None:
            return said
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{took}\n")
        return took


def _recorded(path: Path) -> list[int]:
    """Ticks of each update; a line that a kill cut off is left out, with whatever follows it."""
    return list(_whole(path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)))


def _whole(lines: Iterable[str]) -> Iterable[int]:
    for line in lines:
        # Longer than any number of a machine's clock: another kind of file.
        if not (line.endswith("\n") and line.strip().isdecimal() and len(line) < 20):
            return
        yield int(line)
