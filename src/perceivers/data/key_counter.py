"""Counts how performances use the keys."""

from collections import Counter

import numpy as np
from jaxtyping import Integer

from perceivers.data.music import NOTE_OFF, TIME_SHIFT, VELOCITY
from perceivers.key_use import PERCENTILES, KeyUse

__all__ = ["KeyUseCounter"]


class KeyUseCounter:
    """Counts the keys of performances, one after the other."""

    def __init__(self) -> None:
        self.held: Counter[int] = Counter()
        """Notes by the steps for which their key was down."""
        self.down: Counter[int] = Counter()
        """Steps by the number of keys that were down, where any was."""

    def add(self, ids: Integer[np.ndarray, " events"]) -> None:
        """Count the events of one performance.

        A key that goes down while it is down stays down from the first time on; one that is never let go of is down
        until the end.
        """
        pressed: dict[int, int] = {}
        now = 0
        for event in ids.tolist():
            if event >= VELOCITY:
                continue
            if event >= TIME_SHIFT:
                steps = event - TIME_SHIFT + 1
                now += steps
                self.down[len(pressed)] += steps
            elif event < NOTE_OFF:
                pressed.setdefault(event, now)
            elif (onset := pressed.pop(event - NOTE_OFF, None)) is not None:
                self.held[now - onset] += 1
        self.held.update(now - onset for onset in pressed.values())

    def result(self) -> KeyUse | None:
        """The distributions so far; None before a key was down for a while."""
        held, down = (Counter({value: n for value, n in counts.items() if value}) for counts in (self.held, self.down))
        return KeyUse(held_steps=_percentiles(held), down=_percentiles(down)) if held and down else None


def _percentiles(counts: Counter[int]) -> tuple[int, ...]:
    """Smallest value at or below which each of `PERCENTILES` of the counted things lie."""
    values = sorted(counts)
    cumulative = np.cumsum([counts[value] for value in values])
    # In whole numbers, so that 100 % is the last one: 99.9 of 100 is 999 of 1000.
    wanted = [-(-int(cumulative[-1]) * round(percent * 10) // 1000) for percent in PERCENTILES]
    return tuple(values[int(np.searchsorted(cumulative, count))] for count in wanted)
