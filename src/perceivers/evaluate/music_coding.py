"""Music events as a counter should see them: which keys are down, what is near in pitch, where in the bar it is.

Each id becomes a kind and a value that means the same in every key: a key that goes down is so many semitones from the
pitch that is expected next, a key that comes up is the first, second, ... of those that are down. What an id becomes
depends on the ids before it alone, and no two ids become the same, so a distribution of one is one of the other.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Integer, UInt64

from perceivers.data.music import NOTE_OFF, NOTE_ON, TIME_SHIFT, VELOCITY, VOCAB_SIZE
from perceivers.evaluate.mixing import Coded, Symbol, mixed

__all__ = ["SIZES", "Moment", "MusicReader", "code_music"]

ON, OFF, SHIFT, LOUDNESS, END = range(5)
SIZES = (NOTE_OFF - NOTE_ON, TIME_SHIFT - NOTE_OFF, VELOCITY - TIME_SHIFT, VOCAB_SIZE - VELOCITY, 1)
"""Values of each kind of event."""
BEAT = 60
"""Steps of 10 ms: a quarter note of the chorales. Other music has other beats; these contexts then say little."""
LONGEST = 500
"""Keys that are held for longer, in steps, are all alike."""
NONE = 999
"""Where there is no such pitch or time."""
PRIME = 2**61 - 1

# How well each pitch class fits a major and a minor key (Krumhansl & Kessler 1982).
MAJOR = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)
FORGETTING = 0.97
"""Weight of the notes so far in the guess of the key, at each new one."""


class Moment(NamedTuple):
    """What is known before an event. Pitches and chords are measured from `near`, or from the bass, the lowest key."""

    last: int
    """Kind of the event before."""
    ons: int
    """Keys that went down at this moment so far."""
    offs: int
    """Keys that came up at this moment so far."""
    down: int
    """Keys that are down."""
    beat: int
    bar: int
    """Steps since the start, modulo a beat and four beats."""
    shift1: int
    shift2: int
    shift3: int
    """The last time shifts."""
    last_on: int
    """The key that went down last at this moment."""
    waiting: int
    """Keys that came up at this moment and are not followed yet."""
    rest: int
    """Those above `near`, as a chord."""
    held: int
    """How long `near` was held."""
    moved1: int
    moved2: int
    """By how much the voice of `near` moved to get there, and before."""
    chord: int
    before1: int
    before2: int
    """Keys that are down, and were down before the last two moments."""
    tops: int
    """The last three highest keys."""
    scale: int
    """Pitch classes of the last 14 notes."""
    tonic: int
    """The likeliest tonic, and whether it is of a major or of a minor key."""
    bass: int
    chord_on_bass: int
    tonic_on_bass: int
    top_on_bass: int
    first_on_bass: int
    """The key that may come up first: the oldest, from the lowest pitch up, after the last that came up."""
    candidates: int
    """How many may."""
    first_age: int
    ages: int
    """For how long they are down: the first one, and all."""
    all_ages: int
    """Those of all keys that are down."""


class MusicReader:
    """Follows events one by one."""

    def __init__(self) -> None:
        self.now, self.last, self.shifts = 0, END, (0, 0, 0)
        self.down: dict[int, int] = {}  # pitch -> when it went down
        self.up: list[int] = []  # at this moment, upwards
        self.ons: list[int] = []
        self.last_up = (-1, -1)  # when it had gone down, and its pitch
        self.held: dict[int, int] = {}
        self.voice: dict[int, tuple[int, ...]] = {}  # pitch -> the voice's earlier pitches, latest first
        self.chords, self.tops = [0, 0], [0, 0, 0]
        self.recent = [60]  # the last pitches that went down
        self.weights, self.tonic = np.zeros(12), 0

    @property
    def near(self) -> int:
        """The pitch from which the next key to go down is measured: the next of those that came up, or the last."""
        return self.up[len(self.ons)] if len(self.ons) < len(self.up) else (self.ons or self.recent)[-1]

    def keys_by_age(self) -> tuple[list[tuple[int, int]], int]:
        """Keys that are down, as (when, pitch), and how many may come up next; events name the oldest first."""
        order = sorted((when, pitch) for pitch, when in self.down.items())
        later = [key for key in order if key > self.last_up]
        return later + order[: len(order) - len(later)], len(later)

    def symbol(self, event: int) -> Symbol:
        """Kind and value of an id."""
        if event >= VOCAB_SIZE:
            return END, 0
        if event >= VELOCITY:
            return LOUDNESS, event - VELOCITY
        if event >= TIME_SHIFT:
            return SHIFT, event - TIME_SHIFT
        if event < NOTE_OFF:
            return ON, (event - self.near) % SIZES[ON]
        pitch = event - NOTE_OFF
        if pitch in self.down:
            return OFF, [key for _, key in self.keys_by_age()[0]].index(pitch)
        return OFF, len(self.down) + pitch - sum(key < pitch for key in self.down)

    def read(self, event: int) -> None:
        """Go on by one id."""
        self.last = self.symbol(event)[0]
        if self.last == ON:
            self._press(event)
        elif self.last == OFF:
            pitch = event - NOTE_OFF
            when = self.down.pop(pitch, None)
            if when is not None:
                self.last_up, self.held[pitch] = (when, pitch), min(self.now - when, LONGEST)
            self.up = sorted([*self.up, pitch])
        elif self.last == SHIFT:
            if self.up or self.ons:
                self.chords = [_chord(self.down), self.chords[0]]
                if self.down and max(self.down) != self.tops[0]:
                    self.tops = [max(self.down), *self.tops[:2]]
            self.shifts = (event - TIME_SHIFT + 1, *self.shifts[:2])
            self.now += self.shifts[0]
            self.up, self.ons, self.last_up, self.held = [], [], (-1, -1), {}

    def _press(self, pitch: int) -> None:
        if len(self.ons) < len(self.up):
            self.voice[pitch] = (self.near, *self.voice.get(self.near, ()))[:2]
        else:
            self.voice[pitch] = ()
        self.down[pitch] = self.now
        self.ons.append(pitch)
        self.recent = [*self.recent, pitch][-14:]
        self.weights *= FORGETTING
        self.weights[pitch % 12] += 1
        self.tonic = int((_KEYS @ self.weights).argmax())

    def moment(self) -> Moment:
        """What is known now."""
        near, now = self.near, self.now
        keys, candidates = self.keys_by_age()
        bass, top = min(self.down, default=near), max(self.down, default=near)
        first_age, first = (now - keys[0][0], keys[0][1] - bass) if candidates else (NONE, NONE)
        voice = (near, *self.voice.get(near, ()))
        moves = [later - earlier for later, earlier in pairwise(voice)] + [NONE, NONE]
        waiting = max(0, len(self.up) - len(self.ons))
        chord = _chord(self.down)
        scale = _chord({(pitch - near) % 12 for pitch in self.recent})
        key, mode = self.tonic % 12, 12 * (self.tonic // 12)
        return Moment(
            last=self.last,
            ons=min(len(self.ons), 6),
            offs=min(len(self.up), 6),
            down=min(len(self.down), 6),
            beat=now % BEAT,
            bar=now % (4 * BEAT),
            shift1=self.shifts[0],
            shift2=self.shifts[1],
            shift3=self.shifts[2],
            last_on=self.ons[-1] - near if self.ons else NONE,
            waiting=waiting,
            rest=_from(_chord(self.up[len(self.ons) + 1 :]), near),
            held=self.held.get(near, NONE) if waiting else NONE,
            moved1=moves[0],
            moved2=moves[1],
            chord=_from(chord, near),
            before1=_from(self.chords[0], near),
            before2=_from(self.chords[1], near),
            tops=_number(top - near for top in self.tops),
            scale=scale,
            tonic=(key - near) % 12 + mode,
            bass=bass - near,
            chord_on_bass=_from(chord, bass),
            tonic_on_bass=(key - bass) % 12 + mode,
            top_on_bass=top - bass,
            first_on_bass=first,
            candidates=candidates,
            first_age=min(first_age, LONGEST),
            ages=_number(min(now - when, LONGEST) for when, _ in keys[:candidates]),
            all_ages=_number(sorted(min(now - when, LONGEST) for when, _ in keys)),
        )


CONTEXTS: tuple[tuple[str, ...], ...] = (
    (  # of the kind
        *("last offs ons down", "last offs ons down beat", "last offs ons down bar", "last offs bar all_ages"),
        *("last all_ages", "last all_ages beat", "last ons waiting all_ages shift1", "last ons waiting ages"),
        *("last candidates ages ons", "last candidates ages beat first_on_bass", "last ons waiting down first_on_bass"),
        *("last offs shift1 shift2 beat", "last offs shift1 shift2 shift3 bar", "last chord_on_bass ages"),
        *("last chord_on_bass beat", "last chord_on_bass tonic_on_bass", "last chord_on_bass all_ages beat"),
        *("last offs ons tonic_on_bass beat", "last chord before1"),
    ),
    (  # of a key that goes down
        *("ons waiting", "ons waiting last_on", "rest last_on", "last_on bass", "chord", "chord rest", "chord before1"),
        *("before1 last_on", "before1 before2", "tonic", "tonic last_on", "tonic chord", "tonic chord beat"),
        *(
            "tonic chord last_on",
            "tonic chord rest",
            "tonic before1 last_on",
            "tonic last_on bass",
            "tonic last_on bar",
        ),
        *("moved1", "moved1 moved2", "moved1 moved2 tonic", "moved1 beat held", "moved1 tonic last_on", "moved1 chord"),
        *("chord beat", "tops waiting", "tops chord", "scale", "scale chord", "scale chord last_on"),
        *("held bar ons waiting",),
    ),
    (  # of a key that comes up
        *("candidates", "candidates ages", "candidates ages beat", "candidates all_ages offs"),
        *("candidates first_on_bass down", "candidates offs shift1 beat", "candidates first_age bar", "ages bar"),
        *("candidates chord", "candidates chord before1", "candidates chord_on_bass", "candidates tops"),
        *("candidates chord_on_bass tonic_on_bass", "candidates chord_on_bass all_ages beat"),
        *("candidates tonic_on_bass top_on_bass", "candidates first_age first_on_bass tonic_on_bass"),
    ),
    (  # of a time shift
        *("beat", "bar", "beat shift1", "beat shift1 shift2", "beat shift1 shift2 shift3", "bar shift1"),
        *("all_ages", "all_ages beat", "chord_on_bass all_ages", "chord_on_bass all_ages beat", "chord_on_bass beat"),
        *("chord_on_bass bar", "chord_on_bass tonic_on_bass", "bar tonic_on_bass", "bar ons tonic_on_bass"),
        *("beat ons offs", "beat ons top_on_bass", "beat down shift1", "tops beat"),
    ),
    ("last",),  # of the loudness
    (),
)
"""What is counted after what: for the choice of a kind, then for the value of each. The last events come besides."""
SUFFIXES = (1, 2, 3, 4, 6, 9, 14, 20)
"""How many of them."""


def code_music(ids: Integer[np.ndarray, " tokens"]) -> Coded:
    """Events and their end as kinds, values and contexts."""
    reader = MusicReader()
    moments: list[Moment] = []
    symbols: list[Symbol] = []
    for event in [*ids.tolist(), VOCAB_SIZE]:
        moments.append(reader.moment())
        symbols.append(reader.symbol(event))
        reader.read(event)
    columns = dict(zip(Moment._fields, np.array(moments, dtype=np.int64).T, strict=True))
    suffixes = _suffixes(np.array(symbols))
    contexts = tuple(
        np.stack([mixed(*(columns[word] for word in words.split())) for words in of_kind] + suffixes, axis=1)
        for of_kind in CONTEXTS
    )
    clipped = [np.minimum(columns[word], 3) for word in ("last", "offs", "ons")]
    return Coded(np.array(symbols), contexts, clipped[0] * 16 + clipped[1] * 4 + clipped[2])


def _suffixes(symbols: Int[np.ndarray, "events 2"]) -> list[UInt64[np.ndarray, " events"]]:
    """A number for the last 1, 2, 3, ... symbols before each event."""
    numbers = symbols[:, 0] * SIZES[0] + symbols[:, 1] + 1
    found, result = np.zeros(len(symbols), np.uint64), []
    for length in range(1, max(SUFFIXES) + 1):
        earlier = np.concatenate([np.zeros(length, np.int64), numbers])[: len(symbols)]
        found = mixed(found, earlier)
        if length in SUFFIXES:
            result.append(found)
    return result


def _chord(pitches: Iterable[int]) -> int:
    """A set of pitches as the bits of a number."""
    return sum(1 << pitch for pitch in set(pitches))


def _from(chord: int, pitch: int) -> int:
    """A chord's intervals from a pitch, as a number that fits 64 bits."""
    return (chord << (128 - pitch)) % PRIME


def _number(values: Iterable[int]) -> int:
    """A few numbers as one."""
    result = 1
    for value in values:
        result = result * 1009 + value + 127
    return result % PRIME


def _keys() -> np.ndarray:
    """Profiles of 12 major and 12 minor keys, each of mean 0 and length 1."""
    profiles = [np.array(mode) - np.mean(mode) for mode in (MAJOR, MINOR)]
    return np.array([np.roll(p / np.linalg.norm(p), tonic) for p in profiles for tonic in range(12)])


_KEYS = _keys()
