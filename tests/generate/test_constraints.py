"""What may come next."""

import numpy as np

from perceivers.data.music import NOTE_OFF, NOTE_ON, TIME_SHIFT, VELOCITY, VOCAB_SIZE
from perceivers.generate.constraints import PlayableKeys, usual_constraint

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


def test_lone_note_offs_of_a_prompt_do_no_harm() -> None:
    assert PlayableKeys()([NOTE_OFF + C])[NOTE_ON + C]


def test_nothing_is_down_at_first() -> None:
    allowed = PlayableKeys()([])
    assert allowed[NOTE_ON:NOTE_OFF].all()
    assert not allowed[NOTE_OFF:TIME_SHIFT].any()


def test_what_is_usual() -> None:
    assert isinstance(usual_constraint("performance", VOCAB_SIZE), PlayableKeys)
    assert usual_constraint("performance", VOCAB_SIZE + 9) is None
    assert usual_constraint("bytes", 256) is None
