"""What may come next."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from perceivers.data.key_counter import KeyUseCounter
from perceivers.data.music import NOTE_OFF, NOTE_ON, TIME_SHIFT, VELOCITY, VOCAB_SIZE
from perceivers.generate.constraints import InterleavedIds, PlayableKeys, usual_constraint
from perceivers.key_use import KeyUse

C, E, G = 60, 64, 67


def test_keys_that_are_up_go_down_and_keys_that_are_down_go_up() -> None:
    allowed = PlayableKeys()([VELOCITY + 3, NOTE_ON + C, NOTE_ON + E, TIME_SHIFT + 10, NOTE_OFF + E])
    assert np.flatnonzero(~allowed[NOTE_ON:NOTE_OFF]).tolist() == [C]
    assert np.flatnonzero(allowed[NOTE_OFF:TIME_SHIFT]).tolist() == [C]
    assert allowed[TIME_SHIFT:].all()
    assert len(allowed) == VOCAB_SIZE


def test_reads_on_from_where_it_was() -> None:
    constraint, ids = PlayableKeys(), [NOTE_ON + C, TIME_SHIFT + 29, NOTE_ON + G, TIME_SHIFT + 6, NOTE_OFF + C]
    for end in range(len(ids) + 1):
        np.testing.assert_array_equal(constraint(ids[:end]), PlayableKeys()(ids[:end]))


def test_reads_nothing_twice() -> None:
    """So that a token costs the same however long the music is."""

    class Counted(Sequence[int]):
        read, length = 0, 0

        def __len__(self) -> int:
            return self.length

        def __getitem__(self, key: Any) -> Any:
            found = [place * 37 % VOCAB_SIZE for place in range(self.length)][key]
            Counted.read += len(found) if isinstance(key, slice) else 1
            return found

    constraint, ids = PlayableKeys(), Counted()
    for length in range(101):
        ids.length = length
        constraint(ids)
    assert Counted.read <= 10 * 101  # checked annotations look at a few as well; all again would be 5050


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([NOTE_ON + C, NOTE_ON + E], []),
        ([NOTE_ON + C, NOTE_ON + E], [NOTE_ON + G]),
        ([NOTE_ON + C, NOTE_ON + E], [NOTE_ON + C]),
        ([NOTE_ON + C, NOTE_ON + E], [NOTE_ON + E, NOTE_ON + G]),
        ([NOTE_ON + C], [NOTE_ON + G, NOTE_ON + E, TIME_SHIFT + 1]),
        ([], [NOTE_ON + G]),
        ([NOTE_ON + C], [NOTE_ON + C, NOTE_OFF + C, NOTE_ON + E]),
        ([NOTE_ON + C], [NOTE_ON + C]),
    ],
)
def test_a_second_generation_starts_anew(before: list[int], after: list[int]) -> None:
    constraint = PlayableKeys()
    constraint(before)
    np.testing.assert_array_equal(constraint(after), PlayableKeys()(after))
    longer = [*after, NOTE_ON + G + 1]
    np.testing.assert_array_equal(constraint(longer), PlayableKeys()(longer))


HANDS = KeyUse(held_steps=(20, 30, 40, 50, 900), down=(1, 1, 2, 2, 9))
"""Half a second and two keys, but for a thousandth."""


def test_time_does_not_pass_the_longest_hold() -> None:
    allowed = PlayableKeys(HANDS)([NOTE_ON + C, TIME_SHIFT + 9, NOTE_ON + E, TIME_SHIFT + 29])
    assert np.flatnonzero(allowed[TIME_SHIFT:VELOCITY]).tolist() == list(range(10))  # 1 to 10 of 50 steps are left
    assert allowed[[NOTE_OFF + C, NOTE_OFF + E, VELOCITY]].all()
    later = PlayableKeys(HANDS)([NOTE_ON + C, TIME_SHIFT + 9, NOTE_ON + E, TIME_SHIFT + 29, NOTE_OFF + C])
    assert np.flatnonzero(later[TIME_SHIFT:VELOCITY]).tolist() == list(range(20))


def test_a_key_that_was_held_for_the_longest_time_can_only_go_up() -> None:
    played = [NOTE_ON + E, TIME_SHIFT + 9, NOTE_ON + C, TIME_SHIFT + 39]
    assert np.flatnonzero(PlayableKeys(HANDS)(played)).tolist() == [NOTE_OFF + E]
    prompt = [NOTE_ON + E, NOTE_ON + C, TIME_SHIFT + 99, TIME_SHIFT + 99]  # longer than that: both at once
    assert np.flatnonzero(PlayableKeys(HANDS)(prompt)).tolist() == [NOTE_OFF + C, NOTE_OFF + E]
    assert PlayableKeys(HANDS)([*prompt, NOTE_OFF + C, NOTE_OFF + E])[NOTE_ON:NOTE_OFF].all()


def test_no_more_keys_go_down_than_hands_have() -> None:
    assert PlayableKeys(HANDS)([NOTE_ON + C])[NOTE_ON + E]
    full = PlayableKeys(HANDS)([NOTE_ON + C, NOTE_ON + E])
    assert not full[NOTE_ON:NOTE_OFF].any()
    assert full[[NOTE_OFF + C, NOTE_OFF + E, TIME_SHIFT, VELOCITY]].all()


def test_whatever_is_drawn_stays_within_the_hands() -> None:
    rng, constraint = np.random.default_rng(0), PlayableKeys(HANDS)
    ids: list[int] = []
    for _ in range(1009):
        ids.append(int(rng.choice(np.flatnonzero(constraint(ids)))))
    counter = KeyUseCounter()
    counter.add(np.array(ids))
    assert max(counter.held) == 50
    assert max(counter.down) == 2


def test_a_second_generation_forgets_the_time() -> None:
    constraint = PlayableKeys(HANDS)
    constraint([NOTE_ON + C, TIME_SHIFT + 40])
    np.testing.assert_array_equal(constraint([NOTE_ON + C]), PlayableKeys(HANDS)([NOTE_ON + C]))


def test_lone_note_offs_of_a_prompt_do_no_harm() -> None:
    assert PlayableKeys()([NOTE_OFF + C])[NOTE_ON + C]


def test_nothing_is_down_at_first() -> None:
    allowed = PlayableKeys()([])
    assert allowed[NOTE_ON:NOTE_OFF].all()
    assert not allowed[NOTE_OFF:TIME_SHIFT].any()


def test_groups_take_turns() -> None:
    constraint, ids = InterleavedIds(groups=3, size=5), []
    came = []
    for step in range(7):
        allowed = np.flatnonzero(constraint(ids)).tolist()
        came.append(allowed)
        ids.append(allowed[step % 5])
    first, second, third = [0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14]
    assert came == [first, second, third, first, second, third, first]
    assert len(constraint([])) == 15


def test_a_changed_mask_does_not_change_the_next() -> None:
    constraint = InterleavedIds(2, 3)
    constraint([])[:] = True
    assert constraint([]).tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize("name", ["groups", "size"])
def test_groups_are_not_empty(name: str) -> None:
    usual = InterleavedIds(groups=1, size=1)
    assert usual([]).tolist() == [True]
    with pytest.raises(ValueError, match=f"^{name}=0 must be at least 1; an RGB image has groups=3 of size=256$"):
        dataclasses.replace(usual, **{name: 0})


def test_what_is_usual() -> None:
    make = usual_constraint("performance", VOCAB_SIZE)
    assert make is not None
    rows = make(), make()
    assert all(isinstance(row, PlayableKeys) for row in rows)
    assert rows[0] is not rows[1]
    assert usual_constraint("performance", VOCAB_SIZE + 9) is None
    assert usual_constraint("bytes", 256) is None
    assert usual_constraint("ids", VOCAB_SIZE) is None
