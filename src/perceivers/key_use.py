"""How long keys are held and how many are down at once: what hands can do, learned from performances. No torch."""

from perceivers.records import record

__all__ = ["PERCENTILES", "STEPS_PER_SECOND", "KeyUse"]

PERCENTILES = (50.0, 90.0, 99.0, 99.9, 100.0)
"""The distribution is kept as these; the last is the maximum."""
STEPS_PER_SECOND = 100
"""Steps of time in performance events, of 10 ms."""


@record
class KeyUse:
    """How performances use the keys, the sustain pedal included, since it lengthens notes."""

    held_steps: tuple[int, ...]
    """Time that a note's key is down, in steps of 10 ms: at each of `PERCENTILES`, over notes."""
    down: tuple[int, ...]
    """Keys that are down at once: at each of `PERCENTILES`, over time."""

    def __post_init__(self) -> None:
        for name in ("held_steps", "down"):
            values = getattr(self, name)
            if len(values) != len(PERCENTILES) or not all(value > 0 for value in values):
                raise ValueError(f"{name}={values} must be {len(PERCENTILES)} whole numbers above 0")

    @property
    def longest_steps(self) -> int:
        """Time for which all but one note in a thousand are held at most."""
        return self.held_steps[PERCENTILES.index(99.9)]

    @property
    def most_down(self) -> int:
        """Keys that are down at most, but for a thousandth of the time."""
        return self.down[PERCENTILES.index(99.9)]

    def __str__(self) -> str:
        median, *_, usual, longest = (steps / STEPS_PER_SECOND for steps in self.held_steps)
        return (
            f"keys are held {median:g} s (half of the notes), {usual:g} s (99.9 %), {longest:g} s at most; "
            f"{self.down[0]} are down at once (half of the time), {self.most_down} (99.9 %), {self.down[-1]} at most"
        )
