"""Small MIDI files, written here byte by byte, and what is heard in them."""

from pathlib import Path

import numpy as np
import pytest

from perceivers.data import midi as midi_module
from perceivers.data.midi import read_midi, read_notes
from perceivers.data.music import encode_performance

PEDAL_DOWN, PEDAL_UP = 127, 0


def number(value: int) -> bytes:
    """A variable-length number, seven bits a byte."""
    parts = [value & 0x7F]
    while value := value >> 7:
        parts.insert(0, value & 0x7F | 0x80)
    return bytes(parts)


def on(tick: int, pitch: int, velocity: int = 64, channel: int = 0) -> tuple[int, bytes]:
    return tick, bytes([0x90 | channel, pitch, velocity])


def off(tick: int, pitch: int, channel: int = 0) -> tuple[int, bytes]:
    return tick, bytes([0x80 | channel, pitch, 0])


def pedal(tick: int, value: int, channel: int = 0) -> tuple[int, bytes]:
    return tick, bytes([0xB0 | channel, 64, value])


def program(tick: int, value: int) -> tuple[int, bytes]:
    return tick, bytes([0xC0, value])


def tempo(tick: int, microseconds: int) -> tuple[int, bytes]:
    return tick, b"\xff\x51\x03" + microseconds.to_bytes(3)


def chunk(kind: bytes, content: bytes) -> bytes:
    return kind + len(content).to_bytes(4) + content


def track(*events: tuple[int, bytes]) -> bytes:
    now, content = 0, b""
    for tick, message in events:
        content += number(tick - now) + message
        now = tick
    return chunk(b"MTrk", content + b"\x00\xff\x2f\x00")


def header(tracks: int, ticks_per_quarter: int = 50) -> bytes:
    """With 50 ticks in a quarter note, at the tempo of files that name none, a tick is 10 ms: a step."""
    return chunk(b"MThd", bytes([0, 1, 0, tracks]) + ticks_per_quarter.to_bytes(2))


def midi(*events: tuple[int, bytes], ticks_per_quarter: int = 50) -> bytes:
    return header(1, ticks_per_quarter) + track(*events)


def heard(data: bytes) -> list[tuple[int, int, int]]:
    """(onset, offset, pitch) of each note in steps of 10 ms, in order of onset."""
    notes = read_notes(data)
    rows = [(round(100 * n["onset_s"]), round(100 * n["offset_s"]), int(n["pitch"])) for n in notes]
    return sorted(rows)


# --- events to ids, counted by hand: velocity 64 is bin 16, id 356 + 15


def test_one_note() -> None:
    ids = encode_performance(midi(on(0, 60), off(30, 60)))
    assert ids.dtype == np.int32
    assert ids.tolist() == [371, 60, 285, 188]


def test_a_velocity_event_stands_only_where_the_bin_changes() -> None:
    loudness = [61, 64, 65, 68, 1, 4, 127]  # bins 16 16 17 17 1 1 32
    events = [e for i, v in enumerate(loudness) for e in (on(10 * i, 60, v), off(10 * i + 5, 60))]
    ids = encode_performance(midi(*events))
    assert [(i - 356 + 1) for i in ids.tolist() if i >= 356] == [16, 17, 1, 32]
    assert ids.tolist()[:6] == [371, 60, 260, 188, 260, 60]


@pytest.mark.parametrize(
    ("rest", "shifts"),
    [(1, [256]), (99, [354]), (100, [355]), (101, [355, 256]), (200, [355, 355]), (250, [355, 355, 305])],
)
def test_long_rests_are_several_shifts(rest: int, shifts: list[int]) -> None:
    assert encode_performance(midi(on(rest, 60), off(rest + 1, 60))).tolist() == [*shifts, 371, 60, 256, 188]


def test_times_round_half_up_and_a_note_lasts_at_least_one_step() -> None:
    data = midi(on(1, 60), off(2, 60), on(3, 62), off(4, 62), ticks_per_quarter=100)  # ticks of 5 ms
    # 60 at 5..10 ms: steps 1..1, made 1..2; 62 at 15..20 ms: steps 2..2, made 2..3
    assert encode_performance(data).tolist() == [256, 371, 60, 256, 188, 62, 256, 190]


def test_within_a_step_ends_come_before_onsets_and_onsets_keep_their_true_order() -> None:
    data = midi(on(0, 50), on(101, 64), on(102, 60), off(102, 50), off(300, 60), off(300, 64), ticks_per_quarter=500)
    # ticks of 1 ms: 64 at 101 ms sounds before 60 at 102 ms, both in step 10, in which 50 ends
    assert encode_performance(data).tolist() == [371, 50, 265, 178, 64, 60, 275, 192, 188]


def test_notes_of_one_moment_are_ordered_by_pitch() -> None:
    chord = midi(on(0, 67), on(0, 60), on(0, 64), off(10, 60), off(10, 64), off(10, 67))
    assert encode_performance(chord).tolist() == [371, 60, 64, 67, 265, 188, 192, 195]


def test_a_file_without_notes_has_no_events() -> None:
    assert encode_performance(midi(pedal(3, PEDAL_DOWN))).tolist() == []
    assert encode_performance(header(0)).tolist() == []


# --- which note-off ends which notes


def test_velocity_zero_and_running_status_end_notes() -> None:
    data = midi((0, b"\x90\x3c\x40"), (10, b"\x3e\x40"), (20, b"\x3c\x00"), (30, b"\x3e\x00"))
    assert heard(data) == [(0, 20, 60), (10, 30, 62)]


def test_a_meta_event_keeps_the_running_status() -> None:
    data = midi((0, b"\x90\x3c\x40"), (5, b"\xff\x01\x02hi"), (10, b"\x3c\x00"))
    assert heard(data) == [(0, 10, 60)]


def test_one_note_off_ends_all_open_notes_of_its_pitch() -> None:
    assert heard(midi(on(0, 60), on(10, 60), off(20, 60), off(30, 60))) == [(0, 20, 60), (10, 20, 60)]


def test_a_note_that_starts_on_the_tick_of_the_note_off_goes_on() -> None:
    assert heard(midi(on(0, 60), on(10, 60), off(10, 60), off(25, 60))) == [(0, 10, 60), (10, 25, 60)]


def test_a_note_that_ends_on_its_own_tick_is_none() -> None:
    assert heard(midi(on(7, 60), off(7, 60), off(9, 60), on(11, 62), off(13, 62))) == [(11, 13, 62)]


def test_hanging_notes_and_lone_note_offs_are_left_out() -> None:
    assert heard(midi(off(0, 61), on(0, 60), on(5, 62), off(10, 62))) == [(5, 10, 62)]


def test_channels_keep_their_notes_apart() -> None:
    data = midi(on(0, 60, channel=0), on(5, 60, channel=1), off(10, 60, channel=1), off(20, 60, channel=0))
    assert heard(data) == [(0, 20, 60), (5, 10, 60)]


# --- the pedal


def test_the_pedal_holds_notes_until_it_comes_up() -> None:
    data = midi(on(0, 60), pedal(5, PEDAL_DOWN), off(10, 60), on(12, 64), off(15, 64), pedal(30, PEDAL_UP))
    assert heard(data) == [(0, 30, 60), (12, 30, 64)]


def test_a_key_that_stays_down_outlasts_the_pedal() -> None:
    assert heard(midi(pedal(0, PEDAL_DOWN), on(1, 60), pedal(10, PEDAL_UP), off(20, 60))) == [(1, 20, 60)]


@pytest.mark.parametrize(("value", "end"), [(63, 10), (64, 30)])
def test_the_pedal_is_down_from_half_way(value: int, end: int) -> None:
    assert heard(midi(on(0, 60), pedal(5, value), off(10, 60), pedal(30, PEDAL_UP))) == [(0, end, 60)]


def test_a_pitch_struck_again_under_the_pedal_ends_its_earlier_note() -> None:
    data = midi(pedal(0, PEDAL_DOWN), on(1, 60), off(5, 60), on(10, 60), off(12, 60), pedal(20, PEDAL_UP))
    assert heard(data) == [(1, 10, 60), (10, 20, 60)]


def test_under_the_pedal_even_a_key_that_is_down_gives_way_to_the_next() -> None:
    data = midi(pedal(0, PEDAL_DOWN), on(1, 60), on(10, 60), off(15, 60), pedal(20, PEDAL_UP))
    assert heard(data) == [(1, 10, 60), (10, 20, 60)]


def test_of_two_equal_onsets_under_the_pedal_the_later_one_remains() -> None:
    events = [on(1, 60, 20), on(1, 60, 90), off(5, 60)]
    assert heard(midi(*events)) == [(1, 5, 60), (1, 5, 60)]
    kept = read_notes(midi(pedal(0, PEDAL_DOWN), *events, pedal(20, PEDAL_UP)))
    assert kept["velocity"].tolist() == [90]


def test_at_one_moment_the_pedal_acts_before_notes() -> None:
    goes_down = midi(on(0, 60), off(10, 60), pedal(10, PEDAL_DOWN), pedal(20, PEDAL_UP))
    comes_up = midi(on(0, 60), pedal(5, PEDAL_DOWN), off(10, 60), pedal(10, PEDAL_UP), pedal(20, PEDAL_UP))
    both = midi(on(0, 60), off(10, 60), pedal(10, PEDAL_UP), pedal(10, PEDAL_DOWN), pedal(20, PEDAL_UP))
    assert heard(goes_down) == [(0, 20, 60)]
    assert heard(comes_up) == [(0, 10, 60)]
    assert heard(both) == [(0, 10, 60)]  # down and up at once leave it up


def test_a_pedal_that_never_comes_up_holds_to_the_last_event() -> None:
    data = midi(pedal(0, PEDAL_DOWN), on(1, 60), off(5, 60), on(6, 62), off(9, 62), pedal(40, PEDAL_DOWN))
    assert heard(data) == [(1, 40, 60), (6, 40, 62)]


def test_a_pedal_is_its_channels_own_and_drums_have_none() -> None:
    data = midi(
        pedal(0, PEDAL_DOWN, channel=1),
        pedal(0, PEDAL_DOWN, channel=9),
        on(0, 60, channel=0),
        on(0, 62, channel=1),
        on(0, 64, channel=9),
        off(10, 60, channel=0),
        off(10, 62, channel=1),
        off(10, 64, channel=9),
        pedal(30, PEDAL_UP, channel=1),
        pedal(30, PEDAL_UP, channel=9),
    )
    assert heard(data) == [(0, 10, 60), (0, 10, 64), (0, 30, 62)]


def test_after_a_program_change_the_old_pedal_counts_only_if_it_came_before_all_notes() -> None:
    notes = [on(2, 60), off(4, 60), program(5, 7), on(6, 62), off(8, 62)]
    up = pedal(20, PEDAL_UP)
    assert heard(midi(pedal(0, PEDAL_DOWN), *notes, up)) == [(2, 20, 60), (6, 20, 62)]
    late = [*notes[:2], pedal(4, PEDAL_DOWN), *notes[2:], up]
    assert heard(midi(*late)) == [(2, 20, 60), (6, 8, 62)]


# --- time


def test_tempo_changes() -> None:
    slow, fast = 1_000_000, 250_000  # a tick of 20 ms, of 5 ms
    data = midi(on(0, 60), tempo(50, slow), off(100, 60), on(100, 62), tempo(110, fast), off(130, 62))
    assert heard(data) == [(0, 150, 60), (150, 180, 62)]
    notes = read_notes(data)
    assert notes["onset_s"].tolist() == [0.0, 1.5]
    assert notes["offset_s"].tolist() == pytest.approx([1.5, 1.8], abs=1e-12)


def test_of_several_tempos_at_the_start_the_last_one_counts() -> None:
    assert heard(midi(tempo(0, 250_000), tempo(0, 1_000_000), on(0, 60), off(10, 60))) == [(0, 20, 60)]


def test_tempos_count_on_the_first_track_only() -> None:
    notes = track(tempo(0, 1_000_000), on(0, 60), off(10, 60))
    assert heard(header(1) + notes) == [(0, 20, 60)]
    assert heard(header(2) + track() + notes) == [(0, 10, 60)]


def test_tracks_are_merged() -> None:
    data = header(2) + track(on(5, 60), off(10, 60)) + track(on(0, 72), off(20, 72))
    assert encode_performance(data).tolist() == [371, 72, 260, 60, 260, 188, 265, 200]


def test_tempos_of_later_tracks_are_told() -> None:
    notes = [on(0, 60), off(10, 60)]
    same = track(tempo(0, 500_000), tempo(15, 400_000))
    assert not read_midi(midi(*notes, tempo(15, 400_000))).has_later_tempos
    assert not read_midi(header(2) + track(*notes, tempo(15, 400_000)) + same).has_later_tempos
    assert read_midi(header(2) + track(*notes) + same).has_later_tempos


# --- what is not as it should be, as mido 1.3.3 reads it


NOTES = [371, 60, 275, 188, 64, 275, 192]  # by note-seq 0.0.5, for each of the files below
FIRST, SECOND = b"\x00\x90\x3c\x40\x14\x80\x3c\x00", b"\x00\x90\x40\x40\x14\x80\x40\x00"
END = b"\x00\xff\x2f\x00"


@pytest.mark.parametrize(
    "content",
    [
        FIRST + END + SECOND + END,  # events after the end of the track
        FIRST + b"\x00\xfc" + SECOND + END,
        b"\x00\xf2\x01\x02" + FIRST + SECOND,
        FIRST + b"\x00\xf8\x00\xfe\x00\xf1\x01\x00\xf3\x07\x00\xf6" + SECOND,
        b"\x00\xf2\x01\x02\x00\x01\x02" + FIRST + SECOND,  # its status byte left out where it repeats
        b"\x00\xf0\x02\x01\xf7\x00\x01\x01\x02" + FIRST + SECOND,  # and that of system exclusive data
        FIRST + b"\x64\xff\x08\x01x" + SECOND,  # the time before a kind of meta event that mido does not know
        b"\x80\x80\x80\x80\x80\x00" + FIRST[1:] + SECOND,  # a number of six bytes
    ],
)
def test_events_that_do_not_belong_there(content: bytes) -> None:
    data = header(1) + chunk(b"MTrk", content)
    assert encode_performance(data).tolist() == NOTES
    size = len(data).to_bytes(4, "little")
    assert encode_performance(b"RIFF\0\0\0\0RMIDxyzw\x01\0\0\0?\0data" + size + data).tolist() == NOTES


def test_a_pedal_that_many_parts_share_is_read_once() -> None:
    pedals = [pedal(tick, 127 * (tick % 2)) for tick in range(0, 3000)]
    parts = [e for i in range(128) for e in (program(3000 + 10 * i, i), on(3001 + 10 * i, 60), off(3005 + 10 * i, 60))]
    moves: list[int] = []
    seconds = midi_module._seconds
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(midi_module, "_seconds", lambda ticks, tempos: moves.append(len(ticks)) or seconds(ticks, tempos))
        assert len(read_notes(midi(*pedals, *parts))) == 128
    assert sum(moves) == 3000 + 2 * 128


# --- files


def test_foreign_chunks_and_events_are_passed_over() -> None:
    data = header(1) + chunk(b"XFIH", b"abc")
    data += track((0, b"\xf0\x03\x01\x02\xf7"), (0, b"\xff\x03\x05Piano"), on(0, 60), (4, b"\xe0\x00\x40"), off(10, 60))
    assert heard(data + b"more") == [(0, 10, 60)]


def test_paths_and_bytes_give_the_same(tmp_path: Path) -> None:
    data = midi(on(0, 60), off(10, 60))
    (tmp_path / "a.mid").write_bytes(data)
    assert np.array_equal(read_notes(tmp_path / "a.mid"), read_notes(data))
    assert np.array_equal(read_notes(str(tmp_path / "a.mid")), read_notes(data))


GOOD = midi(on(0, 60), tempo(3, 400_000), pedal(5, PEDAL_DOWN), off(200, 60))


@pytest.mark.parametrize("length", range(len(GOOD)))
def test_a_file_cut_anywhere_is_refused(length: int) -> None:
    with pytest.raises(
        ValueError, match=r"^take 5: (not a MIDI file: the MThd header|the file is cut off in track 1 of 1)"
    ):
        read_notes(GOOD[:length], name="take 5")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a MIDI file: the MThd header is missing"),
        (b"Once upon a time there was a fugue", "not a MIDI file: the MThd header is missing"),
        (header(1, 0), "time division 0000 is not in ticks per quarter note"),
        (
            header(1, 0xE728) + track(),
            "time division e728 is not in ticks per quarter note; save it with metrical time",
        ),
        (header(2) + track(), "the file is cut off in track 2 of 2"),
        (header(1) + chunk(b"MTrk", b"\x00\x90\x3c"), "a track ends in the middle of an event"),
        (header(1) + chunk(b"MTrk", b"\x00\xff\x01\x09hi"), "a track ends in the middle of an event"),
        (midi((3, b"\x90\x3c\x80")), "a data byte is above 127 at tick 3"),
        (midi((3, b"\x3c\x40")), "byte 0x3c at tick 3 starts no event"),
        (midi((3, b"\xf4\x00")), "byte 0xf4 at tick 3 starts no event"),
        (midi((3, b"\xf2\x00\x80")), "a data byte is above 127 at tick 3"),
        (midi(on(0, 60), (3, b"\xfc"), (3, b"\x3c\x40")), "byte 0x3c at tick 3 starts no event"),
        (midi(on(0, 60), (3, b"\xf0\x01\xf7"), (3, b"\x3c\x40")), "a track ends in the middle of an event"),
        (midi(tempo(3, 0)), "the tempo at tick 3 is 0 microseconds"),
        (midi((3, b"\xff\x51\x81\x48" + b"\xff" * 200)), "the tempo at tick 3 has 200 bytes in place of 3"),
        (header(1) + chunk(b"MTrk", b"\xff" * 1000 + b"\x7f"), "a number is too large"),
        (midi((0, b"\xfe"), *[(2**41, b"\xfe")]), "it lasts 2,199,023,255,552 ticks: probably broken"),
        (b"RIFF\x04\0\0\0RMID", "a RIFF file without MIDI data in it"),
        (midi(on(0, 60), off(0xFFFFFFF, 60)), "it lasts 746 hours, more than the 24 that are read"),
    ],
)
def test_a_broken_file_is_refused_in_one_line_that_names_it(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.mid"
    path.write_bytes(data)
    for source, name in ((path, str(path)), (str(path), str(path)), (data, "MIDI data")):
        with pytest.raises(ValueError, match=message) as caught:
            encode_performance(source)
        assert str(caught.value).startswith(f"{name}: ")
        assert "\n" not in str(caught.value)


def test_a_missing_file_is_missing() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mid"):
        read_notes("nowhere.mid")
