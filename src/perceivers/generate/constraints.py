"""What may come next, given what has come."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool

from perceivers.data.music import NOTE_OFF, NOTE_ON, TIME_SHIFT, VELOCITY, VOCAB_SIZE
from perceivers.key_use import KeyUse

Constraint = Callable[[Sequence[int]], Bool[np.ndarray, " ids"]]
"""From all raw ids of a row so far, prompt included, to the ones that may follow.

It may remember what it read, so every row of a batch has its own: whoever generates takes a function that makes one.
"""


class PlayableKeys:
    """Music: a key that is down can only go up, and one that is up only down.

    A model that was trained little releases keys that it never pressed, and presses some twice; each such slip leads it
    further from the music that it knows. Where `use` says how real performances use the keys, time does not pass a
    key's longest time (99.9 % of the notes are shorter): once it is reached the key can only go up. Nor does a key go
    down while as many are down as real performances have (99.9 % of the time).
    """

    def __init__(self, use: KeyUse | None = None) -> None:
        self._longest = None if use is None else use.longest_steps
        self._most = NOTE_OFF if use is None else use.most_down
        self._forget()

    def _forget(self) -> None:
        self._pressed: dict[int, int] = {}  # key -> step at which it went down, the oldest first
        self._now = 0
        self._read = 0
        self._last: int | None = None

    def __call__(self, ids: Sequence[int]) -> Bool[np.ndarray, " ids"]:
        """Ids that may follow `ids`.

        Where they go on from those of the call before, only the new ones are read. Others are read from their start;
        what gives them away is that they are shorter, or have another id where the earlier ones ended.
        """
        if self._read > len(ids) or (self._read and ids[self._read - 1] != self._last):
            self._forget()
        for event in ids[self._read :]:
            if NOTE_ON <= event < NOTE_OFF:
                self._pressed.setdefault(event - NOTE_ON, self._now)
            elif NOTE_OFF <= event < TIME_SHIFT:
                self._pressed.pop(event - NOTE_OFF, None)
            elif event < VELOCITY:
                self._now += event - TIME_SHIFT + 1
        self._read, self._last = len(ids), ids[-1] if len(ids) else None
        return self._allowed()

    def _allowed(self) -> Bool[np.ndarray, " ids"]:
        allowed = np.ones(VOCAB_SIZE, dtype=bool)
        down = np.array(list(self._pressed), dtype=int)
        allowed[NOTE_ON + down] = False
        allowed[NOTE_OFF:TIME_SHIFT] = False
        allowed[NOTE_OFF + down] = True
        if len(down) >= self._most:
            allowed[NOTE_ON:NOTE_OFF] = False
        if self._longest is not None and len(down):
            left = {key: pressed + self._longest - self._now for key, pressed in self._pressed.items()}
            if overdue := [NOTE_OFF + key for key, steps in left.items() if steps <= 0]:
                allowed[:] = False
                allowed[overdue] = True
            else:
                allowed[TIME_SHIFT + min(left.values()) : VELOCITY] = False
        return allowed


@dataclass(frozen=True)
class InterleavedIds:
    """Channels of pixels or levels of an audio codec that take turns, each with its own range of ids.

    As in the reference (`process_logits`, sample_utils.py): after n ids only ids of group n mod `groups` may come.
    Images have 3 groups of 256 ids, SoundStream has 24 (12 kbps) or 44 (22 kbps) groups of 1024.
    """

    groups: int
    """Channels or levels."""
    size: int
    """Ids of each: group g has those in [g * size, (g + 1) * size)."""

    def __post_init__(self) -> None:
        for name in ("groups", "size"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}={value} must be at least 1; an RGB image has groups=3 of size=256")

    def __call__(self, ids: Sequence[int]) -> Bool[np.ndarray, " ids"]:
        """Ids that may follow `ids`: those of one group."""
        first = len(ids) % self.groups * self.size
        allowed = np.zeros(self.groups * self.size, dtype=bool)
        allowed[first : first + self.size] = True
        return allowed


def usual_constraint(tokenizer: str, num_ids: int, use: KeyUse | None = None) -> Callable[[], Constraint] | None:
    """What keeps generated tokens sensible, one for each row: `PlayableKeys` for a model of music, nothing for others.

    Args:
        tokenizer: Of the model.
        num_ids: Raw ids that the model knows; more than music has can't be constrained.
        use: How the model's training data use the keys, where that is known.
    """
    return partial(PlayableKeys, use) if tokenizer == "performance" and num_ids == VOCAB_SIZE else None
