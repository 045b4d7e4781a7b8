"""How a model's continuations use the keys, beside the pieces that they continue."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Integer

from perceivers.arguments import checked_numbers
from perceivers.data.key_counter import KeyUseCounter
from perceivers.data.music import STEPS_PER_SECOND, seconds
from perceivers.data.tokens import TokenSplit
from perceivers.generate.config import SamplingConfig
from perceivers.generate.constraints import Constraint
from perceivers.generate.files import first_seconds
from perceivers.generate.loaded import Loaded
from perceivers.key_use import KeyUse

__all__ = ["Hands", "Playing", "hands", "play", "played", "playing_rows"]

EVENTS_A_SECOND = 100
"""More than music has: a continuation in which time hardly passes ends here."""

Ids = Integer[np.ndarray, " events"]


@dataclass(frozen=True, kw_only=True)
class Hands:
    """What one piece asks of a player's hands."""

    most_down: int
    """Keys that are down at once, at most, while time passes."""
    longest_s: float
    """Longest time that a key is down."""
    crowded: float
    """Share of the time in which more keys are down than real performances have (99.9 % of the time)."""


@dataclass(frozen=True, kw_only=True)
class Playing:
    """Pieces of one length, real ones and a model's."""

    seconds: float
    """Length of each, the opening included; a real piece may end before."""
    prompt_seconds: float
    """Of the opening, which is real in both."""
    use: KeyUse
    """Of the performances that a key more or a moment longer is measured by."""
    real: list[Hands]
    continued: list[Hands]
    """As `perceivers generate` plays, within what hands can do."""
    any_keys: list[Hands]
    """As the model alone has it."""

    def numbers(self) -> dict[str, Any]:
        """Plain values, for JSON and tables."""
        return {
            "seconds": self.seconds,
            "prompt_seconds": self.prompt_seconds,
            "usual_keys": self.use.most_down,
            "real": _summary(self.real),
            "continued": _summary(self.continued),
            "any_keys": _summary(self.any_keys),
        }


def playing_rows(numbers: dict[str, Any]) -> list[tuple[str, ...]]:
    """`Playing.numbers` as a table for people."""
    crowded = f"time with more than {numbers['usual_keys']}"
    rows = [("", "keys at once, mean (most)", crowded, "longest note, median (most)")]
    for name in ("real", "continued", "any_keys"):
        pieces = numbers[name]
        keys = f"{pieces['most_keys_mean']:.1f} ({pieces['most_keys']})"
        notes = f"{pieces['longest_note_median_s']:.1f} s ({pieces['longest_note_s']:.1f} s)"
        rows.append((name.replace("any_keys", "with --any-keys"), keys, f"{pieces['crowded']:.1%}", notes))
    return rows


def played(playing: dict[str, Any]) -> str:
    """What the pieces of `Playing.numbers` are, as a sentence."""
    count, opening, length = playing["real"]["pieces"], playing["prompt_seconds"], playing["seconds"]
    return f"{count} pieces of {length:g} s at most, as they are and played on by the model after {opening:g} s:"


def hands(ids: Ids, use: KeyUse) -> Hands:
    """Describe a piece's use of the keys beside that of real performances."""
    counter = KeyUseCounter()
    counter.add(ids)
    time = sum(counter.down.values())
    return Hands(
        most_down=max(counter.down, default=0),
        longest_s=max(counter.held, default=0) / STEPS_PER_SECOND,
        crowded=sum(n for down, n in counter.down.items() if down > use.most_down) / max(time, 1),
    )


@checked_numbers()
def play(
    loaded: Loaded,
    split: TokenSplit,
    *,
    pieces: int = 20,
    prompt_seconds: float = 10.0,
    length: float = 30.0,
    sampling: SamplingConfig | None = None,
) -> Playing | None:
    """Continue openings of a split's pieces; None where no piece is longer than an opening.

    What is usual is what the model learned of its training data, or else what the split has.

    Args:
        loaded: A model of music.
        split: Real pieces.
        pieces: Openings to continue at most: evenly spread over the pieces that are as long as `length`, or else of the
            longest pieces, of which the real ones are then all that there is.
        prompt_seconds: Length of an opening.
        length: Length of a piece with its continuation, in seconds.
        sampling: How to draw; None as usual.
    """
    chosen = _long_pieces(split, pieces, opening=prompt_seconds, length=length)
    if not chosen or (use := loaded.keys or _key_use(split)) is None:
        return None
    prompts = [first_seconds(split[index], prompt_seconds) for index in chosen]

    def made(constraint: Callable[[], Constraint] | None) -> list[Hands]:
        continuations = loaded.generate_many(
            prompts,
            max_tokens=round((length - prompt_seconds) * EVENTS_A_SECOND),
            seconds=length - prompt_seconds,
            sampling=sampling,
            stop_at_end=False,
            constraint=constraint,
        )
        pieces = zip(prompts, continuations, strict=True)
        return [hands(np.concatenate([prompt, continuation.ids]), use) for prompt, continuation in pieces]

    return Playing(
        seconds=length,
        prompt_seconds=prompt_seconds,
        use=use,
        real=[hands(first_seconds(split[index], length), use) for index in chosen],
        continued=made(loaded.usual_constraint()),
        any_keys=made(None),
    )


def _long_pieces(split: TokenSplit, pieces: int, *, opening: float, length: float) -> list[int]:
    """At most so many pieces, in the split's order; shorter ones than `length` only where there are too few others."""
    lasting = [seconds(split[index]) for index in range(len(split))]
    long = [index for index, lasts in enumerate(lasting) if lasts >= length]
    if len(long) < pieces:
        by_length = sorted(range(len(split)), key=lambda index: -lasting[index])
        return sorted(index for index in by_length[:pieces] if lasting[index] > opening)
    return [long[i] for i in np.linspace(0, len(long) - 1, pieces).round().astype(int)]


def _key_use(split: TokenSplit) -> KeyUse | None:
    counter = KeyUseCounter()
    for index in range(len(split)):
        counter.add(split[index])
    return counter.result()


def _summary(pieces: Sequence[Hands]) -> dict[str, int | float]:
    """Means and extremes over pieces."""
    most, longest = [piece.most_down for piece in pieces], [piece.longest_s for piece in pieces]
    return {
        "pieces": len(pieces),
        "most_keys_mean": float(np.mean(most)),
        "most_keys": max(most),
        "crowded": float(np.mean([piece.crowded for piece in pieces])),
        "longest_note_median_s": float(np.median(longest)),
        "longest_note_s": max(longest),
    }
