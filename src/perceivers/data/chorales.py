"""Bach's four-part chorales, carried by the package: real music to train on without a download.

345 of the 371 chorales of the Riemenschneider edition: the vocal parts, from music21's corpus. Johann Sebastian Bach
died in 1750, so the notes are in the public domain. `tools/extract_chorales.py` wrote the file and says what was
left out and how the chorales that share a tune were found, so that all settings of a tune are in one split.
"""

from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from jaxtyping import Int32, Integer

from perceivers.data.music import NOTE, STEPS_PER_SECOND, encode_notes

__all__ = ["TICKS_PER_QUARTER", "Chorale", "chorale_events", "chorale_splits", "load_chorales", "merge_unisons"]

TICKS_PER_QUARTER = 8  # a 32nd note is one tick; there are no triplets
STEPS_PER_QUARTER = 60  # 0.6 s: 100 quarter notes a minute
LOUDNESS = 80  # MIDI velocity of every note: the scores have none
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Chorale:
    """One chorale as notes in order of onset; repeats are written once."""

    name: str
    """Such as `BWV 267: An Wasserflüssen Babylon`."""
    riemenschneider: int
    """Number in the Riemenschneider edition, 1..371; the lowest where it has several."""
    tune: int
    """Settings of one melody have the same number."""
    split: str
    """`train`, `validation` or `test`."""
    onset: Integer[np.ndarray, " notes"]
    """In ticks from the first note, `TICKS_PER_QUARTER` in a quarter note."""
    duration: Integer[np.ndarray, " notes"]
    """In ticks."""
    pitch: Integer[np.ndarray, " notes"]
    """MIDI key numbers; middle C is 60."""
    voice: Integer[np.ndarray, " notes"]
    """Soprano 0, alto 1, tenor 2, bass 3; no voice overlaps itself."""


def load_chorales() -> list[Chorale]:
    """All chorales, by Riemenschneider number."""
    with (files("perceivers.data") / "assets" / "bach_chorales.npz").open("rb") as file:
        asset = np.load(file, allow_pickle=False)
        ends = np.cumsum(asset["lengths"], dtype=np.int64)[:-1]
        notes = [np.split(asset[field].astype(np.int64), ends) for field in ("onset", "duration", "pitch", "voice")]
        names = [f"BWV {bwv}: {title}" for bwv, title in zip(asset["bwv"], asset["title"], strict=True)]
        numbers, tunes = asset["riemenschneider"].tolist(), asset["tune"].tolist()
        splits = [SPLITS[split] for split in asset["split"]]
    return [Chorale(*fields) for fields in zip(names, numbers, tunes, splits, *notes, strict=True)]


def chorale_splits() -> dict[str, list[Chorale]]:
    """The chorales of `train`, `validation` and `test`, about 80, 10 and 10 in a hundred.

    Settings of one tune are never in two splits. Tunes that Bach set more than four times are all in `train`.
    """
    return {split: [chorale for chorale in load_chorales() if chorale.split == split] for split in SPLITS}


def chorale_events(chorale: Chorale, transpose: int = 0) -> Int32[np.ndarray, " tokens"]:
    """Event ids (`perceivers.data.music`) of a chorale at 100 beats a minute, every note equally loud.

    The same ids as `encode_performance` gives for the chorale as a MIDI file, with unisons merged.

    Args:
        chorale: From `load_chorales`.
        transpose: Semitones up, or down where negative; -5..6 is every key once.

    Raises:
        ValueError: A pitch would leave 0..127.
    """
    onset, duration, pitch = merge_unisons(chorale)
    if not 0 <= pitch.min() + transpose <= pitch.max() + transpose <= 127:
        raise ValueError(
            f"transpose={transpose} would move {chorale.name} out of MIDI's keys 0..127; "
            f"{-pitch.min()}..{127 - pitch.max()} are allowed"
        )
    notes = np.empty(len(onset), dtype=NOTE)
    notes["onset_s"] = _steps(onset) / STEPS_PER_SECOND
    notes["offset_s"] = _steps(onset + duration) / STEPS_PER_SECOND
    notes["pitch"], notes["velocity"] = pitch + transpose, LOUDNESS
    return encode_notes(notes)


def _steps(ticks: np.ndarray) -> np.ndarray:
    """Nearest step, the later one where a 32nd note falls between two; in integers, so that it is the same anywhere."""
    return (2 * ticks * STEPS_PER_QUARTER + TICKS_PER_QUARTER) // (2 * TICKS_PER_QUARTER)


def merge_unisons(
    chorale: Chorale,
) -> tuple[Integer[np.ndarray, " keys"], Integer[np.ndarray, " keys"], Integer[np.ndarray, " keys"]]:
    """Onset, duration (ticks) and pitch of the keys that one player would press, by onset, then pitch.

    Events know keys, not voices, and a key cannot go down twice. Voices that begin a pitch together become one key
    for the longer of the two; a voice that joins a sounding pitch strikes the key anew, and it then sounds as long
    as either voice asks for.
    """
    keys: list[list[int]] = []
    last: dict[int, list[int]] = {}  # pitch -> its latest key as onset, end, pitch
    for i in np.lexsort((chorale.pitch, chorale.onset)):
        onset, pitch = int(chorale.onset[i]), int(chorale.pitch[i])
        end = onset + int(chorale.duration[i])
        before = last.get(pitch)
        if before is not None and before[1] > onset:
            end = max(end, before[1])
            if before[0] == onset:
                before[1] = end
                continue
            before[1] = onset
        last[pitch] = [onset, end, pitch]
        keys.append(last[pitch])
    onset, end, pitch = np.array(keys).T
    return onset, end - onset, pitch
