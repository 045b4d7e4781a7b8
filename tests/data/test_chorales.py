import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from perceivers.data.chorales import (
    TICKS_PER_QUARTER,
    Chorale,
    chorale_events,
    chorale_splits,
    load_chorales,
    merge_unisons,
)
from perceivers.data.music import encode_performance, notes_of, seconds, transpose, write_midi

VELOCITY_80 = 356 + 19
QUARTER = 255 + 60  # 0.6 s


def chorale(*notes: tuple[int, int, int, int]) -> Chorale:
    """From (onset, duration, pitch, voice) in ticks."""
    return Chorale("BWV 0: Test", 0, 0, "train", *np.array(notes).T)


@pytest.fixture(scope="module")
def chorales() -> list[Chorale]:
    return load_chorales()


def test_the_package_carries_345_chorales_in_the_order_of_riemenschneider(chorales: list[Chorale]) -> None:
    assert len(chorales) == 345
    assert sum(len(c.pitch) for c in chorales) == 79443
    assert chorales[0].name == "BWV 269: Aus meines Herzens Grunde"
    assert [c.riemenschneider for c in chorales] == sorted({c.riemenschneider for c in chorales})
    assert len({c.name.split(":")[0] for c in chorales}) == 345


def test_the_first_chord_of_the_first_chorale_is_g_major(chorales: list[Chorale]) -> None:
    first = chorales[0]
    assert first.pitch[:4].tolist() == [67, 62, 59, 43]
    assert first.voice[:4].tolist() == [0, 1, 2, 3]
    assert first.onset[:4].tolist() == [0, 0, 0, 0]
    assert first.duration[:4].tolist() == [TICKS_PER_QUARTER] * 4


def test_every_chorale_has_four_voices_that_never_overlap_themselves(chorales: list[Chorale]) -> None:
    for c in chorales:
        assert c.onset[0] == 0
        assert (np.diff(c.onset) >= 0).all()
        assert c.duration.min() > 0
        for voice in range(4):
            onset, duration = c.onset[c.voice == voice], c.duration[c.voice == voice]
            assert len(onset) > 10
            assert (onset[1:] >= (onset + duration)[:-1]).all(), c.name


def test_voices_end_together_and_lie_above_each_other(chorales: list[Chorale]) -> None:
    for c in chorales:
        ends = [(c.onset + c.duration)[c.voice == voice].max() for voice in range(4)]
        assert len(set(ends)) == 1, c.name
        heights = [c.pitch[c.voice == voice].mean() for voice in range(4)]
        assert heights == sorted(heights, reverse=True), c.name


def test_splits_are_about_80_10_and_10_in_a_hundred_and_share_no_chorale(chorales: list[Chorale]) -> None:
    splits = chorale_splits()
    assert {split: len(members) for split, members in splits.items()} == {"train": 277, "validation": 34, "test": 34}
    assert {c.name for members in splits.values() for c in members} == {c.name for c in chorales}


def test_a_tune_is_in_one_split_only() -> None:
    tunes = [{c.tune for c in members} for members in chorale_splits().values()]
    assert sum(map(len, tunes)) == len(set.union(*tunes)) == 192


def test_chorales_in_different_splits_have_no_long_phrase_and_no_title_in_common(chorales: list[Chorale]) -> None:
    splits_of: dict[object, set[str]] = {}
    for c in chorales:
        on_beat = (c.voice == 0) & ((c.onset % TICKS_PER_QUARTER == 0) | (c.duration >= TICKS_PER_QUARTER))
        intervals = np.diff(c.pitch[on_beat]).tolist()
        for start in range(len(intervals) - 11):
            splits_of.setdefault(tuple(intervals[start : start + 12]), set()).add(c.split)
        splits_of.setdefault(c.name.split(": ")[1], set()).add(c.split)
    assert len(splits_of) > 8000
    assert {len(splits) for splits in splits_of.values()} == {1}


def test_most_settings_of_o_haupt_voll_blut_are_one_tune(chorales: list[Chorale]) -> None:
    tunes = Counter(c.tune for c in chorales if re.search("O Haupt voll|Herzlich tut|Befiehl du", c.name))
    assert len(tunes) == 1
    assert tunes.total() == 10


def test_events_of_two_chords_written_out() -> None:
    c = chorale((0, 8, 72, 0), (0, 8, 60, 3), (8, 16, 71, 0), (8, 16, 59, 3))
    off, shift = 128, 255
    chords = [VELOCITY_80, 60, 72, QUARTER, 60 + off, 72 + off, 59, 71]
    ends = [shift + 100, shift + 20, 59 + off, 71 + off]  # 1.2 s are two shifts
    assert chorale_events(c).tolist() == [*chords, *ends]


def test_events_are_those_of_the_midi_file(tmp_path: Path, chorales: list[Chorale]) -> None:
    pytest.importorskip("symusic")
    for c in chorales[::86]:
        ids = chorale_events(c)
        write_midi(ids, tmp_path / "chorale.mid")
        assert encode_performance(tmp_path / "chorale.mid").tolist() == ids.tolist()


def test_transposed_events_are_the_transposition_of_the_events(chorales: list[Chorale]) -> None:
    for semitones in (-5, 6):
        moved = chorale_events(chorales[7], semitones)
        assert moved.tolist() == transpose(chorale_events(chorales[7]), semitones).tolist()


def test_a_chorale_lasts_600_ms_a_quarter_note_and_strikes_each_key_once(chorales: list[Chorale]) -> None:
    for c in chorales[::23]:
        ids = chorale_events(c)
        quarters = (c.onset + c.duration).max() / TICKS_PER_QUARTER
        assert seconds(ids) == pytest.approx(0.6 * quarters)
        notes = notes_of(ids)
        assert len(notes) == len(merge_unisons(c)[0]) == (ids < 128).sum() == ((ids >= 128) & (ids < 256)).sum()
        for pitch in set(notes["pitch"]):
            same = notes[notes["pitch"] == pitch]
            assert all(a["offset_s"] <= b["onset_s"] for a, b in pairwise(same))


@pytest.mark.parametrize(
    ("second", "merged"),
    [
        ((0, 24, 60, 1), [(0, 24, 60)]),  # together: one key, for the longer
        ((0, 4, 60, 1), [(0, 16, 60)]),
        ((8, 16, 60, 1), [(0, 8, 60), (8, 16, 60)]),  # joins: struck anew
        ((8, 4, 60, 1), [(0, 8, 60), (8, 8, 60)]),  # and sounds as long as the first voice asks
        ((16, 8, 60, 1), [(0, 16, 60), (16, 8, 60)]),  # after the first: untouched
        ((8, 8, 61, 1), [(0, 16, 60), (8, 8, 61)]),  # another pitch: untouched
    ],
)
def test_unisons_become_keys_that_one_player_can_press(
    second: tuple[int, int, int, int], merged: list[tuple[int, int, int]]
) -> None:
    keys = merge_unisons(chorale((0, 16, 60, 0), second))
    assert list(zip(*(values.tolist() for values in keys), strict=True)) == merged


def test_a_transposition_beyond_the_keyboard_says_what_is_allowed() -> None:
    c = chorale((0, 8, 72, 0), (0, 8, 48, 3))
    assert chorale_events(c, 55)[2] == 127
    with pytest.raises(ValueError, match=r"transpose=56 would move BWV 0: Test out .* -48\.\.55 are allowed"):
        chorale_events(c, 56)
