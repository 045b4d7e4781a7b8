import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from perceivers.data import music
from perceivers.data.music import (
    NOTE,
    decode_performance,
    encode_notes,
    encode_performance,
    notes_of,
    seconds,
    stretch,
    transpose,
    write_midi,
)

LOUD, SOFT = 356 + 25, 356 + 7  # velocities 101 and 29
C4, E4, G4 = 60, 64, 67
SECOND = 355


def ids_of(*events: int) -> np.ndarray:
    return np.array(events, dtype=np.int32)


def notes_from(*rows: tuple[float, float, int, int]) -> np.ndarray:
    return np.array(list(rows), dtype=NOTE)


streams = arrays(np.int32, st.integers(0, 67), elements=st.integers(0, 387))
"""Any ids at all, as an untrained model would sample them."""

some_notes = st.lists(
    st.tuples(st.integers(0, 997), st.integers(1, 331), st.integers(0, 127), st.integers(1, 127)), max_size=31
).map(lambda rows: notes_from(*((on / 100, (on + length) / 100, key, hard) for on, length, key, hard in rows)))


def test_the_vocabulary() -> None:
    first_ids = (music.NOTE_ON, music.NOTE_OFF, music.TIME_SHIFT, music.VELOCITY, music.VOCAB_SIZE)
    assert first_ids == (0, 128, 256, 356, 388)


# --- notes to ids and back, by hand


def test_notes_to_ids() -> None:
    notes = notes_from((1.25, 2.0, E4, 104), (0.0, 1.25, C4, 29), (1.25, 1.27, C4, 101))
    by_hand = [SOFT, C4, SECOND, 256 + 24, 128 + C4, LOUD, C4, E4, 256 + 1, 128 + C4, 256 + 72, 128 + E4]
    ids = encode_notes(notes)
    assert ids.dtype == np.int32
    assert ids.tolist() == by_hand


def test_ids_to_notes() -> None:
    notes = notes_of(ids_of(SOFT, C4, SECOND, 280, 128 + C4, LOUD, E4, 257, 128 + E4))
    assert notes.dtype == NOTE
    assert notes.tolist() == [(0.0, 1.25, C4, 29), (1.25, 1.27, E4, 101)]


def test_keys_that_never_come_up_sound_to_the_end() -> None:
    assert notes_of(ids_of(LOUD, C4, SECOND, E4, SECOND)).tolist() == [(0.0, 2.0, C4, 101), (1.0, 2.0, E4, 101)]


def test_keys_that_come_up_without_having_gone_down_are_passed_over() -> None:
    assert notes_of(ids_of(128 + C4, LOUD, C4, SECOND, 128 + E4, 128 + C4, 128 + C4)).tolist() == [(0.0, 1.0, C4, 101)]


def test_notes_without_length_are_left_out() -> None:
    assert notes_of(ids_of(LOUD, C4, 128 + C4, SECOND, G4)).tolist() == []


def test_the_first_key_to_go_down_is_the_first_to_come_up() -> None:
    ids = ids_of(SOFT, C4, SECOND, LOUD, C4, SECOND, 128 + C4, SECOND, 128 + C4)
    assert notes_of(ids).tolist() == [(0.0, 2.0, C4, 29), (1.0, 3.0, C4, 101)]


def test_before_the_first_velocity_event_keys_have_the_middle_velocity() -> None:
    assert notes_of(ids_of(C4, SECOND))["velocity"].tolist() == [64]


@given(some_notes)
def test_notes_survive_but_for_the_pairing_of_overlaps_and_the_velocity_bin(notes: np.ndarray) -> None:
    back = notes_of(encode_notes(notes))
    for name in ("onset_s", "offset_s", "pitch"):
        assert sorted(back[name]) == sorted(notes[name])
    assert sorted((back["velocity"] - 1) // 4) == sorted((notes["velocity"] - 1) // 4)


@given(some_notes)
def test_what_was_encoded_once_stays_as_it_is(notes: np.ndarray) -> None:
    ids = encode_notes(notes)
    once = notes_of(ids)
    again = encode_notes(once)
    assert np.array_equal(notes_of(again), once)
    assert np.array_equal(encode_notes(notes_of(again)), again)
    if not _overlap(notes):  # otherwise offsets change partners, and so may equal events their places
        assert np.array_equal(again, ids)


def _overlap(notes: np.ndarray) -> bool:
    """Whether a pitch goes down again before it came up, or when it comes up."""
    notes = notes[np.lexsort((notes["onset_s"], notes["pitch"]))]
    same = notes["pitch"][1:] == notes["pitch"][:-1]
    return bool((same & (notes["onset_s"][1:] <= notes["offset_s"][:-1])).any())


@given(streams)
def test_any_ids_are_understood_and_become_a_stream_that_stays_as_it_is(ids: np.ndarray) -> None:
    notes = notes_of(ids)
    assert (notes["offset_s"] > notes["onset_s"]).all()
    assert (notes["offset_s"] <= seconds(ids)).all()
    again = notes_of(encode_notes(notes))
    # The velocity before the first velocity event, 64, becomes the lowest of its bin.
    binned = notes.copy()
    binned["velocity"] = (notes["velocity"] - 1) // 4 * 4 + 1
    assert np.array_equal(again, binned)


def test_seconds() -> None:
    assert seconds(ids_of()) == 0.0
    assert seconds(ids_of(LOUD, C4, 256, SECOND, 355 - 50, 128 + C4)) == 1.51


@pytest.mark.parametrize("wrong", [-1, 388, 390])
def test_ids_outside_the_vocabulary_are_refused(wrong: int) -> None:
    for reads in (notes_of, seconds, decode_performance):
        with pytest.raises(
            ValueError, match=f"id {wrong} is no performance event, they are 0..387; a model's ids need"
        ):
            reads(ids_of(C4, wrong))


# --- MIDI files


def test_a_score_is_in_milliseconds() -> None:
    score = decode_performance(ids_of(LOUD, C4, 256 + 6, 128 + C4))
    (note,) = score.tracks[0].notes
    assert (note.start, note.end, note.pitch, note.velocity) == (0, 70, C4, 101)
    assert (score.ticks_per_quarter, score.tempos[0].qpm) == (500, 120.0)
    assert (score.tracks[0].program, score.tracks[0].is_drum) == (0, False)


@given(some_notes)
def test_a_written_file_reads_as_it_was(tmp_path_factory: pytest.TempPathFactory, notes: np.ndarray) -> None:
    order = np.lexsort((notes["onset_s"], notes["pitch"]))
    notes = notes[order]
    overlaps = (np.diff(notes["pitch"]) == 0) & (notes["onset_s"][1:] < np.maximum.accumulate(notes["offset_s"])[:-1])
    notes = notes[np.append(True, ~overlaps)[: len(notes)]]  # what MIDI itself cannot say
    ids = encode_notes(notes)
    path = tmp_path_factory.mktemp("midi") / "performance.mid"
    write_midi(ids, path)
    assert np.array_equal(encode_performance(path), ids)


def test_a_file_of_nothing_has_no_notes(tmp_path: Path) -> None:
    write_midi(ids_of(), tmp_path / "silence.mid")
    assert encode_performance(tmp_path / "silence.mid").tolist() == []


def test_without_symusic_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "symusic.core", None)
    with pytest.raises(ImportError, match=r"pip install 'perceivers\[music\]'"):
        decode_performance(ids_of(C4, SECOND))


# --- augmentation


def test_transpose_moves_keys_and_nothing_else() -> None:
    ids = ids_of(LOUD, C4, E4, SECOND, 128 + C4, 256, 128 + E4)
    assert transpose(ids, 5).tolist() == [LOUD, C4 + 5, E4 + 5, SECOND, 128 + C4 + 5, 256, 128 + E4 + 5]
    assert ids[1] == C4  # the row itself stays
    assert transpose(ids.astype(np.uint16), -5).tolist()[:3] == [LOUD, C4 - 5, E4 - 5]


def test_transpose_stops_at_the_ends_of_the_keyboard() -> None:
    ids = ids_of(3, 120, SECOND, 128 + 3, 128 + 122)
    assert transpose(ids, 7).tolist() == [8, 125, SECOND, 128 + 8, 128 + 127]
    assert transpose(ids, -7).tolist() == [0, 117, SECOND, 128 + 0, 128 + 119]
    assert transpose(ids_of(SECOND, LOUD), 7).tolist() == [SECOND, LOUD]


@given(streams, st.integers(-13, 13))
def test_transpose_keeps_kinds_and_intervals(ids: np.ndarray, semitones: int) -> None:
    moved = transpose(ids, semitones)
    is_key = ids < 256
    assert np.array_equal(moved[~is_key], ids[~is_key])
    assert np.array_equal(moved[is_key] // 128, ids[is_key] // 128)
    shifts = np.unique(moved[is_key] - ids[is_key])
    assert len(shifts) == min(1, is_key.sum())
    assert abs(shifts).max(initial=0) <= abs(semitones)
    if len(shifts) and shifts[0] != semitones:
        assert {0, 127} & set((moved[is_key] % 128).tolist())  # it went as far as it could


def test_stretch_scales_moments_not_shifts() -> None:
    every_third_step = ids_of(*([C4, 258, 128 + C4, 258] * 50))
    slower = stretch(every_third_step, 1.1)
    assert seconds(slower) == 3.30  # 100 shifts of 30 ms, rounded one by one, would still be 3 s long
    onsets = notes_of(slower)["onset_s"]
    assert np.abs(onsets - notes_of(every_third_step)["onset_s"] * 1.1).max() <= 0.005 + 1e-9


def test_stretch_spells_long_and_split_shifts_anew() -> None:
    ids = ids_of(C4, 300, 340, 128 + C4, 305, 305)  # 45 + 85 steps, then a rest of 100 at the end
    assert stretch(ids, 1.0).tolist() == [C4, SECOND, 285, 128 + C4, SECOND]
    assert stretch(ids, 2.0).tolist() == [C4, SECOND, SECOND, 315, 128 + C4, SECOND, SECOND]
    assert stretch(ids, 0.5).tolist() == [C4, 320, 128 + C4, 305]
    assert stretch(ids_of(), 1.5).tolist() == []


def test_stretch_keeps_the_shortest_notes() -> None:
    trill = ids_of(*([C4, 256, 128 + C4, 256] * 11), SECOND, G4, SECOND, 128 + G4)
    faster = stretch(trill, 0.9)
    assert len(notes_of(faster)) == 12
    assert notes_of(faster)["onset_s"][-1] == 1.10  # 1.22 s x 0.9 = 1.098 s: the crowd has not made it late


@given(some_notes, st.floats(0.8, 1.25))
def test_stretch_keeps_every_note_and_its_key(notes: np.ndarray, factor: float) -> None:
    ids = encode_notes(notes)
    stretched = stretch(ids, factor)
    kept, changed = notes_of(ids), notes_of(stretched)
    assert np.array_equal(changed["velocity"], kept["velocity"])
    assert np.array_equal(changed["pitch"], kept["pitch"])
    is_shift = (ids >= 256) & (ids < 356)
    assert np.array_equal(stretched[(stretched < 256) | (stretched >= 356)], ids[~is_shift])
    crowd = len(np.unique(np.cumsum(np.where(is_shift, ids - 255, 0))))
    assert np.abs(changed["onset_s"] - kept["onset_s"] * factor).max(initial=0) <= 0.01 * crowd * 0.2 + 0.005 + 1e-9


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan")])
def test_stretch_refuses_factors_that_are_not_positive(factor: float) -> None:
    with pytest.raises(ValueError, match=rf"factor={factor} must be above 0: 1.05 plays 5 percent slower"):
        stretch(ids_of(C4, SECOND), factor)
