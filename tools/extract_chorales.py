"""Extract Bach's four-part chorales from music21's corpus into the one small file that the package carries.

    pip install music21==10.5.1 numpy
    python tools/extract_chorales.py src/perceivers/data/assets/bach_chorales.npz

Takes about two minutes and writes the same bytes every time. The notes are in the public domain (J. S. Bach,
1685-1750; chorales as numbered by Riemenschneider).

What is taken: the scores of the 371 Riemenschneider numbers, of which 21 point at a score that another number has
already (350 remain). Left out: BWV 27.6, whose five voices are Johann Rosenmueller's, and four scores that repeat
another one note by note (see `REPEATED`). 345 chorales remain.

What is kept of a score: the four vocal parts. Horns, strings, continuo and the like are dropped, so that a few
chorales (BWV 248) rest for some bars where only instruments play. Ties are merged into one note, grace notes are
dropped, repeats are not played twice, and time starts at the first note.

Two chorales on one tune go to the same split (train, validation or test): see `tune_similarity` and `group_tunes`.
"""

import argparse
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from music21 import corpus  # pyright: ignore[reportMissingImports]

TICKS_PER_QUARTER = 8  # the shortest note is a 32nd; there are no triplets
VOICES = ("Soprano", "Alto", "Tenor", "Bass")

REPEATED = {"18.5-l": "18.5-w", "62.6": "274", "69.6": "69.6-a", "253": "414"}
"""Scores that hold the same notes as another one (BWV numbers)."""
FIVE_VOICES = "27.6"

SAME_TUNE = 0.6
"""At least this `tune_similarity` makes two melodies one tune: between 0.55 and 0.7 there are few pairs."""
COMPARED_NOTES = 24
"""How much of a melody is aligned: two or three phrases, after which some settings repeat and others do not."""
SAME_PHRASE = 13
"""Melodies that have so many notes in a row in common, wherever they stand, are kept together as well."""
HELD_OUT = 0.1
"""Share of the chorales in each of validation and test."""
LARGEST_HELD_OUT = 4
"""Tunes with more settings than this are for training: a test of 34 chorales shall not hold one tune ten times."""


@dataclass(frozen=True)
class Score:
    """One chorale: rows of (onset, duration, pitch, voice), times in ticks, ordered by onset, then voice."""

    bwv: str
    riemenschneider: tuple[int, ...]
    title: str
    notes: np.ndarray


def main() -> None:
    """Write the asset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output
    scores = read_corpus()
    tunes = group_tunes(scores)
    splits = assign_splits(tunes)
    notes = np.concatenate([score.notes for score in scores])
    np.savez_compressed(
        output,
        ticks_per_quarter=np.int64(TICKS_PER_QUARTER),
        lengths=np.array([len(score.notes) for score in scores], dtype=np.uint16),
        onset=notes[:, 0].astype(np.uint16),
        duration=notes[:, 1].astype(np.uint8),
        pitch=notes[:, 2].astype(np.uint8),
        voice=notes[:, 3].astype(np.uint8),
        bwv=np.array([score.bwv for score in scores]),
        riemenschneider=np.array([score.riemenschneider[0] for score in scores], dtype=np.uint16),
        title=np.array([score.title for score in scores]),
        tune=tunes.astype(np.uint16),
        split=splits.astype(np.uint8),
    )
    shared = np.bincount(tunes)[tunes] > 1
    print(f"{len(scores)} chorales, {len(notes)} notes, {tunes.max() + 1} tunes")
    print(f"{shared.sum()} chorales share their tune; train/validation/test {np.bincount(splits).tolist()}")
    print(f"{output}: {output.stat().st_size} bytes")


def read_corpus() -> list[Score]:
    """Every chorale once, in the order of the Riemenschneider numbers."""
    numbers: dict[str, list[int]] = defaultdict(list)
    titles: dict[str, str] = {}
    for number, entry in sorted(corpus.chorales.ChoraleListRKBWV().byRiemenschneider.items()):
        numbers[entry["bwv"]].append(number)
        titles.setdefault(entry["bwv"], entry["title"].replace("AAch", "Ach"))
    kept = [bwv for bwv in numbers if bwv not in REPEATED and bwv != FIVE_VOICES]
    return [Score(bwv, tuple(numbers[bwv]), titles[bwv], read_notes(bwv)) for bwv in kept]


def read_notes(bwv: str) -> np.ndarray:
    """The notes of the four voices: int array [notes, 4] of onset, duration, pitch, voice.

    Raises:
        ValueError: Voices that cannot be told, a time between two ticks, or a voice that overlaps itself.
    """
    rows = []
    for voice, part in enumerate(vocal_parts(bwv)):
        free_from = 0
        for note in part.flatten().stripTies().notes:
            if note.duration.isGrace:
                continue
            onset, duration = (Fraction(time) * TICKS_PER_QUARTER for time in (note.offset, note.quarterLength))
            if onset.denominator != 1 or duration.denominator != 1 or onset < free_from or note.isChord:
                raise ValueError(f"BWV {bwv}: {VOICES[voice]} has {note} of {duration} ticks at tick {onset}")
            free_from = onset + duration
            rows.append((int(onset), int(duration), note.pitch.midi, voice))
    notes = np.array(sorted(rows, key=lambda row: (row[0], row[3])))
    notes[:, 0] -= notes[0, 0]
    return notes


def vocal_parts(bwv: str) -> list:
    """Soprano, alto, tenor and bass by their names, or the only four parts from the top down."""
    parts = list(corpus.parse(f"bach/bwv{bwv}").parts)
    # "Soprano Oboe 1 Violin 1" is a soprano that instruments double.
    found = [[part for part in parts if (part.partName or "").startswith(voice)] for voice in VOICES]
    if all(len(match) == 1 for match in found):
        return [match[0] for match in found]
    if len(parts) == len(VOICES):
        return parts
    raise ValueError(f"BWV {bwv}: cannot tell the four voices among {[part.partName for part in parts]}")


def melody(score: Score) -> np.ndarray:
    """Soprano pitches, without notes that begin off the beat and are shorter than one.

    Ornaments differ between settings of one tune and fall off the beat; the notes of the tune do not.
    """
    soprano = score.notes[score.notes[:, 3] == 0]
    on_beat = soprano[:, 0] % TICKS_PER_QUARTER == 0
    return soprano[on_beat | (soprano[:, 1] >= TICKS_PER_QUARTER), 2]


def tune_similarity(melodies: list[np.ndarray]) -> np.ndarray:
    """Best local alignment of every two melodies over all transpositions, 1 for equal ones: [melodies, melodies].

    Smith-Waterman with match +1, mismatch -1 and gap -1, divided by the shorter length: rhythm and metre do not
    count, a note more or less costs little, and unrelated melodies reach 0.1 to 0.4.
    """
    lengths = np.array([len(pitches) for pitches in melodies])
    padded = np.full((len(melodies), COMPARED_NOTES), 999)  # no transposition reaches 999
    for row, pitches in zip(padded, melodies, strict=True):
        row[: len(pitches)] = pitches
    shifts = np.arange(-12, 13)
    best = np.zeros((len(melodies), len(melodies)))
    for i, pitches in enumerate(melodies):
        above = np.zeros((COMPARED_NOTES + 1, len(melodies), len(shifts)))
        for pitch in pitches:
            row = np.zeros_like(above)
            for j in range(COMPARED_NOTES):
                gain = np.where(padded[:, j, None] - pitch == shifts, 1.0, -1.0)
                np.maximum(above[j] + gain, above[j + 1] - 1, out=row[j + 1])
                np.maximum(row[j + 1], row[j] - 1, out=row[j + 1])
                np.maximum(row[j + 1], 0, out=row[j + 1])
            best[i] = np.maximum(best[i], row.max(axis=(0, 2)))
            above = row
    return best / np.minimum.outer(lengths, lengths)


def group_tunes(scores: list[Score]) -> np.ndarray:
    """A tune number for every chorale: links between two chorales are transitive.

    Linked are similar melodies, melodies with a long phrase in common, and equal titles, which find the tunes that
    changed mode (minor in one setting, Dorian in another). Some titles were sung to two tunes, and some tunes end
    alike; these are then one group, which does no harm: it only keeps them on one side of the split.
    """
    melodies = [melody(score) for score in scores]
    titles = np.array([plain_letters(score.title) for score in scores])
    runs = [phrases(pitches) for pitches in melodies]
    linked = tune_similarity([pitches[:COMPARED_NOTES] for pitches in melodies]) >= SAME_TUNE
    linked |= titles[:, None] == titles
    linked |= np.array([[not a.isdisjoint(b) for b in runs] for a in runs])
    group = np.arange(len(scores))
    for i, j in np.argwhere(linked):
        group[group == group[i]] = group[j]
    return np.unique(group, return_inverse=True)[1]


def phrases(pitches: np.ndarray) -> set[tuple[int, ...]]:
    """All runs of `SAME_PHRASE` notes, as intervals."""
    intervals = np.diff(pitches).tolist()
    return {tuple(intervals[i : i + SAME_PHRASE - 1]) for i in range(len(intervals) - SAME_PHRASE + 2)}


def plain_letters(title: str) -> str:
    """The title's letters alone, lower case: spellings differ in accents, apostrophes and commas."""
    return "".join(c for c in unicodedata.normalize("NFKD", title.casefold()) if c.isalpha())


def assign_splits(tunes: np.ndarray) -> np.ndarray:
    """Split of every chorale: 0 train, 1 validation, 2 test; whole tunes at a time, in an order drawn once."""
    splits = np.zeros(len(tunes), dtype=np.int64)
    room = {1: HELD_OUT * len(tunes), 2: HELD_OUT * len(tunes)}
    for tune in np.random.default_rng(0).permutation(tunes.max() + 1):
        members = tunes == tune
        for split in room:
            if members.sum() <= min(room[split], LARGEST_HELD_OUT):
                splits[members] = split
                room[split] -= members.sum()
                break
    return splits


if __name__ == "__main__":
    main()
