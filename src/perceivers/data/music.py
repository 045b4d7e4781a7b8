"""Performances as events: MIDI <-> ids of the 388-event vocabulary of Music Transformer and Perceiver AR.

    0..127    a key goes down        128..255  a key comes up (or its pedal lets go)
    256..355  time passes: 10 ms .. 1 s        356..387  how hard the next keys are struck, 32 bins

(Oore et al. 2018, https://arxiv.org/abs/1808.03715; in this id order in Magenta's note-seq.) Times lie on a grid of
10 ms, called steps. Ids here are the raw ones; a model's special ids are added by the loader.
"""

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int32, Integer

from perceivers.data.midi import NOTE, read_notes
from perceivers.key_use import STEPS_PER_SECOND
from perceivers.writing import write_bytes

if TYPE_CHECKING:
    from symusic.core import ScoreTick

__all__ = [
    "NOTE",
    "NOTE_OFF",
    "NOTE_ON",
    "STEPS_PER_SECOND",
    "TIME_SHIFT",
    "VELOCITY",
    "VOCAB_SIZE",
    "decode_performance",
    "encode_notes",
    "encode_performance",
    "notes_of",
    "seconds",
    "stretch",
    "transpose",
    "write_midi",
]

NOTE_ON, NOTE_OFF, TIME_SHIFT, VELOCITY, VOCAB_SIZE = 0, 128, 256, 356, 388  # first id of each kind, then the end
MAX_SHIFT = 100  # steps in the longest time shift
VELOCITIES_PER_BIN = 4
DEFAULT_VELOCITY = 64  # MIDI's value for instruments that know none; used before the first velocity event
TICKS_PER_QUARTER, TICKS_PER_SECOND = 500, 1000  # at 120 quarter notes a minute

Ids = Integer[np.ndarray, " tokens"]


def encode_performance(source: Path | str | bytes, *, name: str | None = None) -> Int32[np.ndarray, " tokens"]:
    """Turn a MIDI file into event ids, token for token as Magenta's note-seq does.

    All instruments are merged into one stream; the sustain pedal is applied by lengthening notes.

    Args:
        source: A path, or a file's bytes, such as a zip member's.
        name: What errors call the file; by default its path.

    Raises:
        ValueError: Not a MIDI file, or a broken one.
    """
    return encode_notes(read_notes(source, name=name))


def encode_notes(notes: np.ndarray) -> Int32[np.ndarray, " tokens"]:
    """Turn notes (dtype `NOTE`, any order) into event ids.

    Times are rounded to the nearest step, and a note lasts at least one. Within a step, events keep the order of
    their notes' unrounded onsets, then of pitches; a velocity event stands where the bin changes.
    """
    notes = notes[np.lexsort((notes["pitch"], notes["onset_s"]))]
    onset = (notes["onset_s"] * STEPS_PER_SECOND + 0.5).astype(np.int64)
    offset = np.maximum((notes["offset_s"] * STEPS_PER_SECOND + 0.5).astype(np.int64), onset + 1)

    is_off = np.repeat([False, True], len(notes))
    note = np.tile(np.arange(len(notes)), 2)
    steps = np.concatenate([onset, offset])
    order = np.lexsort((is_off, note, steps))
    is_off, note, steps = is_off[order], note[order], steps[order]
    events = notes["pitch"][note] + NOTE_OFF * is_off

    onsets = np.flatnonzero(~is_off)
    bins = (notes["velocity"][note[onsets]] - 1) // VELOCITIES_PER_BIN
    changed = np.diff(bins, prepend=-1) != 0
    at = onsets[changed]
    return _with_shifts(np.insert(events, at, VELOCITY + bins[changed]), np.insert(steps, at, steps[at]))


def _with_shifts(events: np.ndarray, steps: np.ndarray) -> Int32[np.ndarray, " tokens"]:
    """Write events at ascending `steps` as one stream, with time shifts between them."""
    gaps = np.diff(steps, prepend=0)
    shifts = -(-gaps // MAX_SHIFT)
    at = np.cumsum(shifts + 1) - 1  # where the events themselves stand; all before are full shifts but the last
    ids = np.full(at[-1] + 1 if len(at) else 0, TIME_SHIFT + MAX_SHIFT - 1, dtype=np.int32)
    ids[at] = events
    moved = gaps > 0
    ids[at[moved] - 1] = TIME_SHIFT + (gaps[moved] - 1) % MAX_SHIFT
    return ids


def notes_of(ids: Ids) -> np.ndarray:
    """Notes in a stream of events, as an array of dtype `NOTE` in order of onset, then pitch.

    Any ids are understood, a model's as well: a key that never comes up sounds to the end, a key that comes up
    without having gone down is passed over, and a note without length is left out. Where one pitch goes down
    twice before it comes up, the first to go down is the first to come up.

    Raises:
        ValueError: An id is not in 0..387.
    """
    now, velocity = 0, DEFAULT_VELOCITY
    down: dict[int, deque[tuple[int, int]]] = {}  # pitch -> (onset, velocity)
    rows: list[tuple[int, int, int, int]] = []
    for event in _checked(ids).tolist():
        if event >= VELOCITY:
            velocity = 1 + (event - VELOCITY) * VELOCITIES_PER_BIN
        elif event >= TIME_SHIFT:
            now += event - TIME_SHIFT + 1
        elif event < NOTE_OFF:
            down.setdefault(event, deque()).append((now, velocity))
        elif keys := down.get(event - NOTE_OFF):
            onset, struck = keys.popleft()
            rows.append((onset, now, event - NOTE_OFF, struck))
    rows += [(onset, now, pitch, struck) for pitch, keys in down.items() for onset, struck in keys]
    rows.sort(key=lambda row: (row[0], row[2]))
    onset, offset, pitch, struck = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    notes = np.empty(len(rows), dtype=NOTE)
    notes["onset_s"], notes["offset_s"] = onset / STEPS_PER_SECOND, offset / STEPS_PER_SECOND
    notes["pitch"], notes["velocity"] = pitch, struck
    return notes[offset > onset]


def seconds(ids: Ids) -> float:
    """Length of a stream of events: the sum of its time shifts.

    Raises:
        ValueError: An id is not in 0..387.
    """
    return int(_shift_steps(_checked(ids)).sum()) / STEPS_PER_SECOND


def decode_performance(ids: Ids) -> "ScoreTick":
    """Turn event ids into a score of one piano track, times in milliseconds (500 ticks per quarter at 120 a minute).

    Raises:
        ValueError: An id is not in 0..387.
        ImportError: symusic is missing.
    """
    try:
        from symusic.core import NoteTick, ScoreTick, TempoTick, TrackTick
    except ImportError as error:
        raise ImportError("making a score needs symusic: pip install 'perceivers[music]'") from error
    score = ScoreTick(TICKS_PER_QUARTER)
    score.tempos.append(TempoTick(0, qpm=120.0))
    score.tracks.append(TrackTick("Piano"))
    notes = notes_of(ids)
    onset = np.rint(notes["onset_s"] * TICKS_PER_SECOND).astype(np.int64)
    duration = np.rint(notes["offset_s"] * TICKS_PER_SECOND).astype(np.int64) - onset
    for row in np.stack([onset, duration, notes["pitch"], notes["velocity"]], axis=1).tolist():
        score.tracks[0].notes.append(NoteTick(*row))
    return score


def write_midi(ids: Ids, path: Path | str) -> None:
    """Write event ids as a MIDI file.

    Where one pitch sounds twice at a time, whoever reads the file will pair its ends in their own way: MIDI has no
    means to say which of the two ends. Everything else returns from `encode_performance`, with the events of one
    step in order of pitch.

    Raises:
        ValueError: An id is not in 0..387.
        ImportError: symusic is missing.
    """
    write_bytes(Path(path), decode_performance(ids).dumps_midi())


def transpose(ids: Ids, semitones: int) -> Int32[np.ndarray, " tokens"]:
    """Move all keys by `semitones`, or by the most that keeps each of them in 0..127."""
    ids = ids.astype(np.int32)
    is_key = ids < TIME_SHIFT
    pitches = ids[is_key] % NOTE_OFF
    if len(pitches):
        ids[is_key] += np.clip(semitones, -pitches.min(), 127 - pitches.max())
    return ids


def stretch(ids: Ids, factor: float) -> Int32[np.ndarray, " stretched"]:
    """Play slower (`factor` above 1) or faster; the number of ids may change.

    Moments are scaled and rounded, not the shifts between them, so no error accumulates. Moments that differ stay
    at least one step apart, so that no note loses its length: where many crowd together they may come late by
    some steps until there is room again.

    Raises:
        ValueError: `factor` is not positive.
    """
    if not factor > 0:
        raise ValueError(f"factor={factor} must be above 0: 1.05 plays 5 percent slower")
    moments = np.cumsum(_shift_steps(ids))
    is_shift = (ids >= TIME_SHIFT) & (ids < VELOCITY)
    end = moments[-1] if len(ids) else 0
    steps = np.append(moments[~is_shift], end)  # the end is a moment too: a crop may stop within a rest
    which = np.cumsum(np.diff(steps, prepend=0) > 0)  # number of the moment: 0 at the start
    scaled = (steps * factor + 0.5).astype(np.int64)
    steps = which + np.maximum.accumulate(np.maximum(scaled - which, 0))
    return _with_shifts(np.append(ids[~is_shift], 0), steps)[:-1]


def _shift_steps(ids: np.ndarray) -> np.ndarray:
    """Steps by which each event moves the time."""
    return np.where((ids >= TIME_SHIFT) & (ids < VELOCITY), ids.astype(np.int64) - (TIME_SHIFT - 1), 0)


def _checked(ids: Ids) -> Ids:
    """`ids` themselves, if all of them are events."""
    if len(ids) and not 0 <= ids.min() <= ids.max() < VOCAB_SIZE:
        wrong = int(ids.min() if ids.min() < 0 else ids.max())
        raise ValueError(
            f"id {wrong} is no performance event, they are 0..{VOCAB_SIZE - 1}; "
            "a model's ids need its offset taken off first"
        )
    return ids
