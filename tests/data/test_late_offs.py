"""Note-offs that come late or never."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from perceivers.data.late_offs import MOST_EVENTS, late_note_offs
from perceivers.data.music import NOTE_OFF, NOTE_ON, TIME_SHIFT, VELOCITY

SOS, EOS = -1, -2  # as a loader has them after it took its offset off
C, E, G = 60, 64, 67


def on(key: int) -> int:
    return NOTE_ON + key


def off(key: int) -> int:
    return NOTE_OFF + key


def shift(steps: int) -> int:
    return TIME_SHIFT + steps - 1


class Chosen(np.random.Generator):
    """A generator that moves one note-off, by so many events."""

    def __init__(self, which: int, events: int) -> None:
        super().__init__(np.random.PCG64(0))
        self.which, self.events, self.calls = which, events, 0

    def random(self, count: int) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.calls += 1
        if self.calls == 1:
            return np.array([0.0 if i == self.which else 1.0 for i in range(count)])
        return np.full(count, np.log(self.events - 0.5) / np.log(MOST_EVENTS))


def moved(ids: list[int], which: int, events: int) -> tuple[list[int], list[int]]:
    played, targets = late_note_offs(np.array(ids), 0.5, Chosen(which, events))
    return played.tolist(), targets.tolist()


def test_a_late_note_off_is_wanted_from_its_moment_on() -> None:
    ids = [SOS, on(C), shift(9), off(C), on(E), shift(8), on(G), shift(7), off(E)]
    played, targets = moved(ids, 0, 3)
    assert played == [SOS, on(C), shift(9), on(E), shift(8), on(G), off(C), shift(7), off(E)]
    assert targets == [SOS, on(C), shift(9), off(C), off(C), off(C), off(C), shift(7), off(E)]


def test_it_comes_before_its_key_goes_down_again() -> None:
    ids = [on(C), shift(9), off(C), shift(8), on(C), shift(7), off(C)]
    played, targets = moved(ids, 0, 5)
    assert played == [on(C), shift(9), shift(8), off(C), on(C), shift(7), off(C)]
    assert targets == [on(C), shift(9), off(C), off(C), on(C), shift(7), off(C)]


def test_beyond_the_end_it_never_comes() -> None:
    ids = [on(C), on(E), shift(9), off(C), shift(8), off(E), EOS]
    played, targets = moved(ids, 0, 9)
    assert played == [on(C), on(E), shift(9), shift(8), off(E), EOS]
    assert targets == [on(C), on(E), shift(9), off(C), off(C), off(C)]


def test_of_several_the_earliest_is_wanted() -> None:
    ids = [on(C), on(E), shift(9), off(C), off(E), shift(8), on(G), shift(7)]
    everything = late_note_offs(np.array(ids), 1.0, Everything(np.random.PCG64(0)))
    assert everything[0].tolist() == [on(C), on(E), shift(9), shift(8), on(G), shift(7)]
    assert everything[1].tolist() == [on(C), on(E), shift(9), off(C), off(C), off(C)]


class Everything(np.random.Generator):
    """A generator that moves all note-offs beyond the end."""

    def random(self, count: int) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        return np.full(count, 0.999)


def test_a_share_of_none_changes_nothing() -> None:
    ids = np.array([on(C), shift(9), off(C), EOS])
    played, targets = late_note_offs(ids, 0.0, np.random.default_rng(0))
    np.testing.assert_array_equal(played, ids)
    np.testing.assert_array_equal(targets, ids)


@st.composite
def performances(draw: st.DrawFn) -> list[int]:
    """Events in which keys that are down come up, and others go down."""
    ids: list[int] = []
    down: set[int] = set()
    for choice in draw(st.lists(st.integers(0, 12), max_size=40)):
        if choice < 7:
            key = 50 + choice
            ids.append(off(key) if key in down else on(key))
            down ^= {key}
        else:
            ids.append(shift(choice) if choice < 11 else VELOCITY + choice)
    return ids


@settings(deadline=None)
@given(performances(), st.floats(0, 1), st.integers(0, 99))
def test_only_note_offs_move_and_no_key_goes_down_twice(ids: list[int], share: float, seed: int) -> None:
    played, targets = late_note_offs(np.array(ids, np.int64), share, np.random.default_rng(seed))
    assert len(played) == len(targets)
    is_off = (played >= NOTE_OFF) & (played < TIME_SHIFT)
    others = [event for event in ids if not NOTE_OFF <= event < TIME_SHIFT]
    assert played[~is_off].tolist() == others
    down: set[int] = set()
    for event, target in zip(played.tolist(), targets.tolist(), strict=True):
        if target != event:  # what is wanted in its place is to let go of a key that is down
            assert NOTE_OFF <= target < TIME_SHIFT
            assert target - NOTE_OFF in down
        if event < NOTE_OFF:
            assert event not in down
            down.add(event)
        elif event < TIME_SHIFT:
            assert event - NOTE_OFF in down
            down.remove(event - NOTE_OFF)
