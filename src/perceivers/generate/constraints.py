"""What may come next, given what has come."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from perceivers.data.music import NOTE_OFF, NOTE_ON, TIME_SHIFT, VOCAB_SIZE

Constraint = Callable[[Sequence[int]], Bool[np.ndarray, " ids"]]
"""From all raw ids of a row so far, prompt included, to the ones that may follow.

It may remember what it read, so every row of a batch has its own: whoever generates takes a function that makes one.
"""


class PlayableKeys:
    """Music: a key that is down can only go up, and one that is up only down.

    A model that was trained little releases keys that it never pressed, and presses some twice; each such slip leads it
    further from the music that it knows.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._pressed: set[int] = set()
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
                self._pressed.add(event - NOTE_ON)
            elif NOTE_OFF <= event < TIME_SHIFT:
                self._pressed.discard(event - NOTE_OFF)
        self._read, self._last = len(ids), ids[-1] if len(ids) else None
        allowed = np.ones(VOCAB_SIZE, dtype=bool)
        down = np.array(sorted(self._pressed), dtype=int)
        allowed[NOTE_ON + down] = False
        allowed[NOTE_OFF:TIME_SHIFT] = False
        allowed[NOTE_OFF + down] = True
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


def usual_constraint(tokenizer: str, num_ids: int) -> Callable[[], Constraint] | None:
    """What keeps generated tokens sensible, one for each row: `PlayableKeys` for a model of music, nothing for others.

    Args:
        tokenizer: Of the model.
        num_ids: Raw ids that the model knows; more than music has can't be constrained.
    """
    return PlayableKeys if tokenizer == "performance" and num_ids == VOCAB_SIZE else None
