"""Standard MIDI files -> the notes that one hears, in seconds.

The rules are those behind the published performance data sets (pretty_midi reads, Magenta's note-seq applies the
pedal), kept to the last bit of each float64: which note-off ends which notes, whose pedal a pedal is, how ticks
become seconds. Libraries that read MIDI differ from them where notes of one pitch overlap, so this file reads the
bytes itself; it needs nothing but numpy.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

__all__ = ["NOTE", "read_notes"]

NOTE = np.dtype([("onset_s", "f8"), ("offset_s", "f8"), ("pitch", "i4"), ("velocity", "i4")])
"""A note: its start and end in seconds, MIDI pitch 0..127, velocity 1..127."""

MAX_HOURS = 24
"""Longest file that is read: broken ones claim months, and every second would become a token."""

NOTE_OFF, NOTE_ON, CONTROL, PROGRAM, PITCH_BEND = 0x80, 0x90, 0xB0, 0xC0, 0xE0
SUSTAIN_PEDAL = 64  # the controller's number; its values from 64 on mean "down"
DRUM_CHANNEL = 9
DEFAULT_TEMPO_US = 500_000  # per quarter note: 120 a minute, until the file says otherwise

Message = tuple[int, int, int, int]  # tick, status byte, first and second data byte
Tempo = tuple[int, int]  # tick, microseconds per quarter note
Pedal = list[tuple[int, bool]]  # tick, is down


@dataclass
class _Parts:
    """What each instrument plays; a part is a program on a channel of a track. Times in ticks."""

    notes: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    """(part, onset, offset, pitch, velocity) in the order in which the notes end."""

    pedals: list[Pedal] = field(default_factory=list)
    """One for each part; two parts of one channel may share theirs."""

    is_drums: list[bool] = field(default_factory=list)
    """One for each part; no pedal holds a drum."""


def read_notes(source: Path | str | bytes, *, name: str | None = None) -> np.ndarray:
    """Read a MIDI file's notes as they sound: a note lasts while its key or the sustain pedal is down.

    As in the reference: tempo changes count on the first track only, notes that are never switched off are
    left out, and so are notes that start and end on one tick.

    Args:
        source: A path, or a file's bytes.
        name: What errors call the file; by default its path.

    Returns:
        Array of dtype `NOTE`: one part after the other, each in the order in which its notes end.

    Raises:
        ValueError: Not a MIDI file, or a broken one.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        ticks_per_quarter, tracks = _split(data)
        parts = _Parts()
        tempos: list[Tempo] = []
        for number, track in enumerate(tracks):
            messages, tempos_here = _parse(track)
            _play(messages, parts)
            if number == 0:
                tempos = tempos_here
        return _hold(parts, _tempo_map(tempos, ticks_per_quarter))
    except (ValueError, IndexError) as error:
        reason = "a track ends in the middle of an event" if isinstance(error, IndexError) else error
        raise ValueError(f"{name or ('MIDI data' if data is source else source)}: {reason}") from None


def _split(data: bytes) -> tuple[int, list[bytes]]:
    """Split a file into its ticks per quarter note and its tracks."""
    if data[:4] != b"MThd" or len(data) < 14:
        raise ValueError("not a MIDI file: the MThd header is missing")
    num_tracks = int.from_bytes(data[10:12])
    ticks_per_quarter = int.from_bytes(data[12:14])
    if not 0 < ticks_per_quarter < 0x8000:
        raise ValueError(
            f"time division {data[12:14].hex()} is not in ticks per quarter note; save it with metrical time"
        )
    tracks: list[bytes] = []
    end = 8 + int.from_bytes(data[4:8])
    while len(tracks) < num_tracks:
        kind, start = data[end : end + 4], end + 8
        end = start + int.from_bytes(data[start - 4 : start])
        if start > len(data) or end > len(data):
            raise ValueError(f"the file is cut off in track {len(tracks) + 1} of {num_tracks}")
        if kind == b"MTrk":  # other chunks are for the programs that wrote them
            tracks.append(data[start:end])
    return ticks_per_quarter, tracks


def _parse(track: bytes) -> tuple[list[Message], list[Tempo]]:
    """Read a track's channel messages and tempos; IndexError where the track ends too early."""
    messages: list[Message] = []
    tempos: list[Tempo] = []
    position = tick = running_status = 0
    while position < len(track):
        delta, position = _variable_length(track, position)
        tick += delta
        status = track[position]
        if status < 0x80:  # the status byte is left out where it repeats
            status = running_status
        else:
            position += 1
        if 0x80 <= status < 0xF0:
            running_status = status
            first = track[position]
            if PROGRAM <= status < PITCH_BEND:  # the two kinds that have one data byte
                second = 0
                position += 1
            else:
                second = track[position + 1]
                position += 2
            if (first | second) >= 0x80:
                raise ValueError(f"a data byte is above 127 at tick {tick}")
            messages.append((tick, status, first, second))
        elif status in (0xF0, 0xF7, 0xFF):  # system exclusive, its continuation, meta
            meta = -1
            if status == 0xFF:
                meta = track[position]
                position += 1
            else:
                running_status = 0
            length, start = _variable_length(track, position)
            position = start + length
            if position > len(track):
                raise IndexError
            if meta == 0x2F:  # end of track
                break
            if meta == 0x51:
                tempos.append((tick, int.from_bytes(track[start:position])))
        else:
            raise ValueError(f"byte 0x{status or track[position]:02x} at tick {tick} starts no event")
    return messages, tempos


def _variable_length(track: bytes, position: int) -> tuple[int, int]:
    """Read a number of one to four bytes, seven bits each; returns it and the position behind it."""
    value = track[position] & 0x7F
    if track[position] < 0x80:
        return value, position + 1
    for behind in range(position + 1, position + 4):
        value = value << 7 | track[behind] & 0x7F
        if track[behind] < 0x80:
            return value, behind + 1
    raise ValueError("a number is longer than four bytes")


def _play(messages: list[Message], parts: _Parts) -> None:
    """Add one track's notes and pedals to `parts`."""
    programs = [0] * 16
    sounding: dict[tuple[int, int], list[tuple[int, int]]] = {}  # (channel, pitch) -> (onset, velocity)
    part_of: dict[tuple[int, int], int] = {}  # (program, channel) -> part, from the part's first note on
    early: dict[int, Pedal] = {}  # channel -> pedal of a part that has no note yet
    for tick, status, first, second in messages:
        kind, channel = status & 0xF0, status & 0x0F
        if kind == NOTE_ON and second > 0:
            sounding.setdefault((channel, first), []).append((tick, second))
        elif kind in (NOTE_OFF, NOTE_ON):
            notes = sounding.pop((channel, first), [])
            ended = [note for note in notes if note[0] != tick]
            if not ended:
                continue
            if len(ended) < len(notes):  # the pitch starts anew on the tick where it ends
                sounding[channel, first] = [note for note in notes if note[0] == tick]
            key = (programs[channel], channel)
            if key not in part_of:
                part_of[key] = len(parts.pedals)
                parts.pedals.append(early.get(channel, []))
                parts.is_drums.append(channel == DRUM_CHANNEL)
            part = part_of[key]
            parts.notes.extend((part, onset, tick, first, velocity) for onset, velocity in ended)
        elif kind == PROGRAM:
            programs[channel] = first
        elif kind in (CONTROL, PITCH_BEND):
            # As in the reference: each of them opens the list that the channel's next parts share.
            part = part_of.get((programs[channel], channel))
            pedal = early.setdefault(channel, []) if part is None else parts.pedals[part]
            if kind == CONTROL and first == SUSTAIN_PEDAL:
                pedal.append((tick, second >= 64))


def _tempo_map(tempos: list[Tempo], ticks_per_quarter: int) -> np.ndarray:
    """Stretches of constant tempo: rows of first tick, its time in seconds, seconds per tick."""
    rows: list[tuple[int, float, float]] = []
    for tick, tempo_us in [(0, DEFAULT_TEMPO_US), *tempos]:
        if tempo_us == 0:
            raise ValueError(f"the tempo at tick {tick} is 0 microseconds per quarter note")
        seconds_per_tick = 60.0 / (6e7 / tempo_us * ticks_per_quarter)  # rounded as in the reference
        if tick == 0:
            rows = [(0, 0.0, seconds_per_tick)]
        elif seconds_per_tick != rows[-1][2]:
            start, start_s, scale = rows[-1]
            rows.append((tick, start_s + scale * (tick - start), seconds_per_tick))
    return np.array(rows)


def _seconds(ticks: np.ndarray, tempo_map: np.ndarray) -> np.ndarray:
    """The times of some ticks."""
    start, start_s, scale = tempo_map[np.searchsorted(tempo_map[:, 0], ticks, side="right") - 1].T
    return start_s + scale * (ticks - start)


def _hold(parts: _Parts, tempo_map: np.ndarray) -> np.ndarray:
    """Let the sustain pedal hold what was played.

    A note that ends while the pedal is down sounds on until the pedal comes up, or to the end of the piece. A
    pitch struck again while the pedal is down ends its earlier note there, whether or not that key was still
    down; of two notes with one onset the first then vanishes. Where pedal and note fall on one moment, the pedal
    acts first, and of a pedal that goes down and up on one moment only the up remains.
    """
    part, onset, offset, pitch, velocity = np.array(parts.notes, dtype=np.int64).reshape(-1, 5).T
    order = np.argsort(part, kind="stable")
    part = part[order]
    notes = np.empty(len(part), dtype=NOTE)
    notes["onset_s"], notes["offset_s"] = _seconds(onset[order], tempo_map), _seconds(offset[order], tempo_map)
    notes["pitch"], notes["velocity"] = pitch[order], velocity[order]

    pedals = []
    for pedal in parts.pedals:
        ticks, down = np.array(pedal, dtype=np.int64).reshape(-1, 2).T
        moments = np.lexsort((1 - down, ticks))
        pedals.append((_seconds(ticks[moments], tempo_map), down[moments] > 0))
    held = ~np.array(parts.is_drums, dtype=bool)[part]
    last_s = max([notes["offset_s"][held].max(initial=0.0), *(times.max(initial=0.0) for times, _ in pedals)])
    if (longest := max(last_s, notes["offset_s"].max(initial=0.0))) > MAX_HOURS * 3600:
        raise ValueError(
            f"it lasts {longest / 3600:.0f} hours, more than the {MAX_HOURS} that are read: probably broken"
        )

    for index, (times, down) in enumerate(pedals):
        if parts.is_drums[index]:
            continue
        mine = np.flatnonzero(part == index)
        notes["offset_s"][mine] = _held_offsets(notes[mine], times, down, last_s)
    return notes[notes["offset_s"] > notes["onset_s"]]


def _held_offsets(notes: np.ndarray, times: np.ndarray, down: np.ndarray, last_s: float) -> np.ndarray:
    """Ends of one part's notes under its pedal, whose states are `down` from `times` on."""
    state = np.concatenate([[False], down])  # state[n]: after the first n changes
    ups = np.append(times[~down], last_s)

    offset = notes["offset_s"]
    sustained = state[np.searchsorted(times, offset, side="right")]
    offset = np.where(sustained, ups[np.searchsorted(ups[:-1], offset, side="right")], offset)

    # Notes of one pitch side by side, in order of onset; each ends at the next that is struck with the pedal down.
    order = np.lexsort((notes["onset_s"], notes["pitch"]))
    onset, pitch = notes["onset_s"][order], notes["pitch"][order]
    none = len(notes)
    strikes = np.where(state[np.searchsorted(times, onset, side="right")], np.arange(none), none)
    following = np.append(np.minimum.accumulate(strikes[::-1])[::-1], none)[1:]
    found = np.append(pitch, -1)[following] == pitch
    cut = np.where(found, np.append(onset, np.inf)[following], np.inf)
    offset[order] = np.minimum(offset[order], cut)
    return offset
