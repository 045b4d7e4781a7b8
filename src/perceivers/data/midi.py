"""Standard MIDI files -> the notes that one hears, in seconds.

The rules are those behind the published performance data sets (pretty_midi reads, Magenta's note-seq applies the
pedal), kept to the last bit of each float64: which note-off ends which notes, whose pedal a pedal is, how ticks
become seconds. Libraries that read MIDI differ from them where notes of one pitch overlap, so this file reads the
bytes itself; it needs nothing but numpy.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

__all__ = ["NOTE", "MidiFile", "read_midi", "read_notes"]

NOTE = np.dtype([("onset_s", "f8"), ("offset_s", "f8"), ("pitch", "i4"), ("velocity", "i4")])
"""A note: its start and end in seconds, MIDI pitch 0..127, velocity 1..127."""

MAX_HOURS = 24
"""Longest file that is read: broken ones claim months, and every second would become a token."""

NOTE_OFF, NOTE_ON, CONTROL, PROGRAM, PITCH_BEND = 0x80, 0x90, 0xB0, 0xC0, 0xE0
SUSTAIN_PEDAL = 64  # the controller's number; its values from 64 on mean "down"
DRUM_CHANNEL = 9
META, SYSTEM_EXCLUSIVE = 0xFF, (0xF0, 0xF7)
SYSTEM_DATA = {0xF1: 1, 0xF2: 2, 0xF3: 1, 0xF6: 0, 0xF8: 0, 0xFA: 0, 0xFB: 0, 0xFC: 0, 0xFE: 0}
"""Data bytes of the messages that belong on a cable, not in a file; some files have them, and they say nothing here."""
TEMPO = 0x51
KNOWN_META = {*range(8), 9, 0x20, 0x21, 0x2F, TEMPO, 0x54, 0x58, 0x59, 0x7F}
LONGEST_WAIT = 2**40
"""Ticks that no file waits for; bounds the work that a number of a million bytes makes."""
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


@dataclass(frozen=True)
class MidiFile:
    """What a MIDI file says."""

    notes: np.ndarray
    """Array of dtype `NOTE`: one part after the other, each in the order in which its notes end."""
    has_later_tempos: bool
    """A track after the first sets a tempo that the first does not; it counts for nothing."""


def read_notes(source: Path | str | bytes, *, name: str | None = None) -> np.ndarray:
    """Read a MIDI file's notes as they sound: the `notes` of `read_midi`."""
    return read_midi(source, name=name).notes


def read_midi(source: Path | str | bytes, *, name: str | None = None) -> MidiFile:
    """Read a MIDI file, .mid or .rmi (in a RIFF envelope), as it sounds: a note lasts while key or pedal is down.

    As in the reference: tempo changes count on the first track only, notes that are never switched off are
    left out, and so are notes that start and end on one tick; what comes after an end-of-track event in its chunk
    counts, and messages that belong on a cable (clock, active sensing, song position) are passed over.

    Differs from the reference: chunks that are no track, values that no note depends on (a key signature of nine
    sharps, system exclusive data above 127) and tracks without an event don't make a file unreadable, a tempo that
    has not three bytes does.

    Args:
        source: A path, or a file's bytes.
        name: What errors call the file; by default its path.

    Raises:
        ValueError: Not a MIDI file, or a broken one.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        ticks_per_quarter, tracks = _split(_unwrapped(data))
        parts = _Parts()
        tempos: list[Tempo] = []
        later_tempos: set[Tempo] = set()
        for number, track in enumerate(tracks):
            messages, tempos_here = _parse(track)
            _play(messages, parts)
            if number == 0:
                tempos = tempos_here
            else:
                later_tempos.update(tempos_here)
        notes = _hold(parts, _tempo_map(tempos, ticks_per_quarter))
        return MidiFile(notes, has_later_tempos=not later_tempos <= {(0, DEFAULT_TEMPO_US), *tempos})
    except (ValueError, IndexError) as error:
        reason = "a track ends in the middle of an event" if isinstance(error, IndexError) else error
        raise ValueError(f"{name or ('MIDI data' if data is source else source)}: {reason}") from None


def _unwrapped(data: bytes) -> bytes:
    """The MIDI file in a RIFF envelope (.rmi); anything else as it is."""
    if data[:4] != b"RIFF" or data[8:12] != b"RMID":
        return data
    start = 12
    while start + 8 <= len(data):
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        if data[start : start + 4] == b"data":
            return data[start + 8 : start + 8 + size]
        start += 8 + size + size % 2
    raise ValueError("a RIFF file without MIDI data in it")


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
    """Read a track's channel messages and tempos; IndexError where the track ends too early.

    As in the reference: every status but that of meta events may be left out where it repeats, and the time before a
    meta event of a kind that mido 1.3.3 does not know is lost.
    """
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
            if status != META:
                running_status = status
        if 0x80 <= status < 0xF0:
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
        elif status == META:
            kind = track[position]
            value, position = _block(track, position + 1)
            if kind not in KNOWN_META:
                tick -= delta
            elif kind == TEMPO:
                if len(value) != 3:
                    raise ValueError(f"the tempo at tick {tick} has {len(value)} bytes in place of 3")
                tempos.append((tick, int.from_bytes(value)))
        elif status in SYSTEM_EXCLUSIVE:
            repeats = track[position - 1] != status  # As in the reference: the byte that showed it is lost then.
            _, position = _block(track, position + repeats)
        else:
            position = _behind_system_message(track, position, status, tick)
    if tick > LONGEST_WAIT:
        raise ValueError(f"it lasts {tick:,} ticks: probably broken")
    return messages, tempos


def _block(track: bytes, position: int) -> tuple[bytes, int]:
    """Some bytes after their number, and the position behind them."""
    length, start = _variable_length(track, position)
    if start + length > len(track):
        raise IndexError
    return track[start : start + length], start + length


def _behind_system_message(track: bytes, position: int, status: int, tick: int) -> int:
    """The position behind the data of a message that belongs on a cable."""
    shown = status >= 0x80 and track[position - 1] == status
    if status not in SYSTEM_DATA or (not shown and SYSTEM_DATA[status] == 0):
        raise ValueError(f"byte 0x{track[position - shown]:02x} at tick {tick} starts no event")
    end = position + SYSTEM_DATA[status]
    if end > len(track):
        raise IndexError
    if any(byte >= 0x80 for byte in track[position:end]):
        raise ValueError(f"a data byte is above 127 at tick {tick}")
    return end


def _variable_length(track: bytes, position: int) -> tuple[int, int]:
    """Read a number, seven bits a byte; returns it and the position behind it."""
    value = 0
    while True:
        byte = track[position]
        position += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, position
        if value > LONGEST_WAIT:
            raise ValueError("a number is too large")


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

    shared = {id(events): events for events in parts.pedals if events}  # each once, however many parts share it
    pedals = {key: _pedal(events, tempo_map) for key, events in shared.items()}
    held = ~np.array(parts.is_drums, dtype=bool)[part]
    last_s = max([notes["offset_s"][held].max(initial=0.0), *(pedal.times[-1] for pedal in pedals.values())])
    if (longest := max(last_s, notes["offset_s"].max(initial=0.0))) > MAX_HOURS * 3600:
        raise ValueError(
            f"it lasts {longest / 3600:.0f} hours, more than the {MAX_HOURS} that are read: probably broken"
        )

    begin = np.searchsorted(part, np.arange(len(parts.pedals) + 1)).tolist()
    for index, events in enumerate(parts.pedals):
        if events and not parts.is_drums[index]:
            mine = slice(begin[index], begin[index + 1])
            notes["offset_s"][mine] = _held_offsets(notes[mine], pedals[id(events)], last_s)
    return notes[notes["offset_s"] > notes["onset_s"]]


@dataclass(frozen=True)
class _Pedal:
    """One pedal, in the order of its moments."""

    times: np.ndarray
    """When it moves, in seconds."""
    state: np.ndarray
    """`state[n]`: whether it is down after n moves."""
    ups: np.ndarray
    """When it comes up."""


def _pedal(events: Pedal, tempo_map: np.ndarray) -> _Pedal:
    ticks, down = np.array(events, dtype=np.int64).T
    moments = np.lexsort((1 - down, ticks))
    times, down = _seconds(ticks[moments], tempo_map), down[moments] > 0
    return _Pedal(times, np.concatenate([[False], down]), times[~down])


def _held_offsets(notes: np.ndarray, pedal: _Pedal, last_s: float) -> np.ndarray:
    """Ends of one part's notes under its pedal, which comes up at `last_s` at the latest."""
    state, ups = pedal.state, pedal.ups
    offset = notes["offset_s"]
    sustained = state[np.searchsorted(pedal.times, offset, side="right")]
    following_up = np.searchsorted(ups, offset, side="right")
    comes_up = np.full(len(notes), last_s)
    comes_up[following_up < len(ups)] = ups[following_up[following_up < len(ups)]]
    offset = np.where(sustained, comes_up, offset)

    # Notes of one pitch side by side, in order of onset; each ends at the next that is struck with the pedal down.
    order = np.lexsort((notes["onset_s"], notes["pitch"]))
    onset, pitch = notes["onset_s"][order], notes["pitch"][order]
    none = len(notes)
    strikes = np.where(state[np.searchsorted(pedal.times, onset, side="right")], np.arange(none), none)
    following = np.append(np.minimum.accumulate(strikes[::-1])[::-1], none)[1:]
    found = np.append(pitch, -1)[following] == pitch
    cut = np.where(found, np.append(onset, np.inf)[following], np.inf)
    offset[order] = np.minimum(offset[order], cut)
    return offset
