import math
from dataclasses import astuple

import numpy as np
import pytest

from perceivers.data.music import encode_notes, notes_of, seconds
from perceivers.evaluate.music_statistics import music_statistics, repeated_windows

ON, OFF, SHIFT, VELOCITY = 0, 128, 256, 356
SECOND = SHIFT + 99


def ids(*events: int) -> np.ndarray:
    return np.array(events, np.int32)


def chords(*windows: list[tuple[int, int]]) -> np.ndarray:
    """Performance with a window of 2 s for each list of (ms after its start, pitch); all notes last 100 ms."""
    events: list[tuple[int, int]] = []
    for window, notes in enumerate(windows):
        for ms, pitch in notes:
            events += [(window * 2000 + ms, ON + pitch), (window * 2000 + ms + 100, OFF + pitch)]
    found, now = [], 0
    for at, event in [*sorted(events), (2000 * len(windows), -1)]:
        while now < at:
            step = min(1000, at - now)
            found.append(SHIFT + step // 10 - 1)
            now += step
        found.append(event)
    return ids(*found[:-1])


def test_a_small_performance() -> None:
    """C4 for a second, then E4 and C5 for half a second, and half a second of rest."""
    half = SHIFT + 49
    found = music_statistics(
        ids(VELOCITY + 10, 60, SECOND, OFF + 60, VELOCITY + 20, 64, 72, half, OFF + 64, OFF + 72, half)
    )
    assert found.seconds == 2.0
    assert found.notes_per_second == 1.5
    assert (found.lowest, found.highest) == (60, 72)
    assert (found.middle_low, found.middle_high) == (60, 72)  # too few notes to leave any out
    assert found.distinct_pitches == 3
    assert found.time_shift_share == 3 / 11
    assert found.repeated == 0.0
    assert found.mean_velocity == (41 + 81 + 81) / 3


def test_the_middle_of_the_pitches() -> None:
    """Of 41 notes, two are left out at either end."""
    pitches = [1, 2, *range(40, 77), 120, 127]
    found = music_statistics(ids(*(event for pitch in pitches for event in (pitch, SHIFT + 9, OFF + pitch))))
    assert (found.lowest, found.middle_low, found.middle_high, found.highest) == (1, 40, 76, 127)
    assert found.distinct_pitches == 41
    assert found.notes_per_second == pytest.approx(10)


def test_pitches_that_come_again_are_counted_once() -> None:
    found = music_statistics(ids(60, SHIFT, OFF + 60, 60, SHIFT, OFF + 60, 67, SHIFT, OFF + 67))
    assert found.distinct_pitches == 2
    assert found.notes_per_second == pytest.approx(100)


def test_velocity_is_taken_over_from_before() -> None:
    part, before = ids(60, SECOND, OFF + 60, VELOCITY + 30, 62, SECOND, OFF + 62), ids(VELOCITY + 3, VELOCITY + 5, 40)
    assert music_statistics(part, before=before).mean_velocity == (21 + 121) / 2
    assert music_statistics(part, before=ids(40)).mean_velocity == (64 + 121) / 2
    assert music_statistics(part).mean_velocity == (64 + 121) / 2
    alone, after = music_statistics(part), music_statistics(part, before=before)
    assert astuple(alone)[:-1] == astuple(after)[:-1]


def test_keys_that_stay_down_and_keys_that_were_never_pressed() -> None:
    found = music_statistics(ids(OFF + 50, 60, SECOND))
    assert (found.lowest, found.highest, found.notes_per_second) == (60, 60, 1.0)


def test_nothing_to_count() -> None:
    silent = music_statistics(ids(SECOND, SECOND))
    assert (silent.seconds, silent.notes_per_second, silent.distinct_pitches, silent.time_shift_share) == (2, 0, 0, 1)
    for value in (silent.lowest, silent.middle_low, silent.middle_high, silent.highest):
        assert math.isnan(value)
    assert math.isnan(silent.mean_velocity)
    assert math.isnan(silent.repeated)
    nothing = music_statistics(ids())
    assert (nothing.seconds, nothing.distinct_pitches) == (0, 0)
    assert math.isnan(nothing.notes_per_second)
    assert math.isnan(nothing.time_shift_share)


def test_ids_that_are_no_events() -> None:
    with pytest.raises(ValueError, match="id 388 is no performance event"):
        music_statistics(ids(388))


FIGURE = [(0, 60), (500, 64), (1000, 67), (1500, 72)]
OTHER = [(0, 61), (500, 65), (1000, 68)]


@pytest.mark.parametrize(
    ("windows", "share"),
    [
        ([FIGURE], 0.0),
        ([FIGURE, OTHER], 0.0),
        ([FIGURE, FIGURE], 1 / 2),
        ([FIGURE, OTHER, FIGURE, FIGURE, OTHER], 3 / 5),  # any earlier one counts, not the last alone
        ([FIGURE, [], FIGURE, []], 1 / 2),  # silence repeats nothing, and is left out
        ([FIGURE, [(ms + 240, pitch) for ms, pitch in FIGURE]], 1 / 2),  # within the same eighths
        ([FIGURE, [(ms + 250, pitch) for ms, pitch in FIGURE]], 0.0),
        ([FIGURE, [(ms, pitch + 12) for ms, pitch in FIGURE]], 0.0),
        ([FIGURE, [*FIGURE, (750, 48)]], 1 / 2),  # 4 of 5 in both
        ([FIGURE, FIGURE[:3]], 0.0),  # 3 of 4
        ([FIGURE, [*FIGURE[:3], (1500, 71)]], 0.0),  # 3 of 5
        ([FIGURE, [*FIGURE, (10, 60)]], 1 / 2),  # struck twice within an eighth
    ],
)
def test_repeated_windows(windows: list[list[tuple[int, int]]], share: float) -> None:
    performance = chords(*windows)
    assert seconds(performance) == 2 * len(windows)
    assert len(notes_of(performance)) == sum(map(len, windows))
    assert repeated_windows(performance) == share
    assert music_statistics(performance).repeated == share


def test_a_last_window_that_is_shorter_is_left_out() -> None:
    performance = chords(FIGURE, FIGURE)
    assert repeated_windows(performance) == 1 / 2
    assert seconds(performance[:-1]) < 4
    assert repeated_windows(performance[:-1]) == 0.0
    assert math.isnan(repeated_windows(ids(60, SECOND, OFF + 60)))


def test_of_a_file_and_of_what_was_read_from_it() -> None:
    """Encoding what the events say gives the same numbers, but for the rest at the end, which no note tells of."""
    performance = chords(FIGURE, OTHER, [*FIGURE, (1990, 50)])
    again = encode_notes(notes_of(performance))
    one, other = music_statistics(performance), music_statistics(again)
    assert other.seconds == pytest.approx(6.09)
    assert (one.distinct_pitches, one.lowest, one.repeated) == (other.distinct_pitches, other.lowest, other.repeated)
