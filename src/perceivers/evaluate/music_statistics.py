"""Listening by numbers: what can be said of a performance without hearing it."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer

from perceivers.data.music import STEPS_PER_SECOND, TIME_SHIFT, VELOCITY, notes_of, seconds

__all__ = ["MusicStatistics", "music_statistics", "repeated_windows"]

WINDOW_STEPS = 2 * STEPS_PER_SECOND
PARTS = 8
"""Onsets within a window are told apart by which of so many equal parts they fall in."""
ALIKE = 0.8
"""Share of what two windows hold together that both hold, from which they count as alike (Jaccard index)."""

Ids = Integer[np.ndarray, " tokens"]


@dataclass(frozen=True, kw_only=True)
class MusicStatistics:
    """Numbers of a performance, NaN where there is nothing to count."""

    seconds: float
    """Sum of the time shifts."""
    notes_per_second: float
    """Notes that begin."""
    lowest: float
    """MIDI pitch of the lowest note."""
    highest: float
    """MIDI pitch of the highest note."""
    middle_low: float
    """Lowest MIDI pitch of the middle 90 % of the notes: 5 % of them, at most, lie below."""
    middle_high: float
    """Highest MIDI pitch of the middle 90 % of the notes: 5 % of them, at most, lie above."""
    distinct_pitches: int
    """MIDI pitches that occur."""
    time_shift_share: float
    """Events that only let time pass, of all events."""
    repeated: float
    """See `repeated_windows`."""
    mean_velocity: float
    """How hard keys are struck, 1 to 127, mean over notes."""


def music_statistics(ids: Ids, *, before: Integer[np.ndarray, " before"] | None = None) -> MusicStatistics:
    """Describe the events of a performance, or of a part of one.

    Args:
        ids: Events, 0..387.
        before: Events that came before. Only how hard keys were last struck counts of them, since that stays.

    Raises:
        ValueError: An id is not in 0..387.
    """
    velocities = np.empty(0, np.int64) if before is None else before[before >= VELOCITY]
    notes = notes_of(np.concatenate([velocities[-1:], ids]))
    duration, pitches = seconds(ids), np.sort(notes["pitch"])
    lowest, middle_low, middle_high, highest = (math.nan,) * 4
    if len(pitches):
        outside = len(pitches) // 20
        lowest, highest = float(pitches[0]), float(pitches[-1])
        middle_low, middle_high = float(pitches[outside]), float(pitches[-1 - outside])
    return MusicStatistics(
        seconds=duration,
        notes_per_second=_ratio(len(notes), duration),
        lowest=lowest,
        highest=highest,
        middle_low=middle_low,
        middle_high=middle_high,
        distinct_pitches=len(np.unique(pitches)),
        time_shift_share=_ratio(int(((ids >= TIME_SHIFT) & (ids < VELOCITY)).sum()), len(ids)),
        repeated=repeated_windows(ids),
        mean_velocity=_ratio(int(notes["velocity"].sum()), len(notes)),
    )


def repeated_windows(ids: Ids) -> float:
    """Share of 2-second windows that hold nearly what an earlier one held.

    The performance is cut into windows of 2 s, without overlap; a last one that is shorter is left out, and so are
    windows in which no note begins. Of each, the set of its notes' (onset, pitch) is taken, where an onset is the
    eighth of the window (250 ms) that it falls in. A window is repeated if its set and that of any earlier window have
    a Jaccard index (both hold / one holds or both) of 0.8 or more.

    Args:
        ids: Events, 0..387.

    Returns:
        Repeated windows / windows, from 0 to less than 1; NaN if there are none.
    """
    notes = notes_of(ids)
    onsets = np.rint(notes["onset_s"] * STEPS_PER_SECOND).astype(int)
    number = round(seconds(ids) * STEPS_PER_SECOND) // WINDOW_STEPS
    windows: list[set[tuple[int, int]]] = [set() for _ in range(number)]
    for onset, pitch in zip(onsets.tolist(), notes["pitch"].tolist(), strict=True):
        window, place = divmod(onset, WINDOW_STEPS)
        if window < number:
            windows[window].add((place * PARTS // WINDOW_STEPS, pitch))
    windows = [window for window in windows if window]
    repeated = sum(
        any(len(window & earlier) / len(window | earlier) >= ALIKE for earlier in windows[:i])
        for i, window in enumerate(windows)
    )
    return _ratio(repeated, len(windows))


def _ratio(part: int, whole: int | float) -> float:
    return part / whole if whole else math.nan
