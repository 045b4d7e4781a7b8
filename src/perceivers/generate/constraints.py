"""What may come next, given what has come."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool

from perceivers.data.music import NOTE_OFF, NOTE_ON, TIME_SHIFT, VOCAB_SIZE

Constraint = Callable[[Sequence[int]], Bool[np.ndarray, " ids"]]
"""From all raw ids so far, prompt included, to the ones that may follow."""


class PlayableKeys:
    """Music: a key that is down can only go up, and one that is up only down.

    A model that was trained little releases keys that it never pressed, and presses some twice; each such slip leads it
    further from the music that it knows.
    """

    def __init__(self) -> None:
        self._pressed: set[int] = set()
        self._read = 0

    def __call__(self, ids: Sequence[int]) -> Bool[np.ndarray, " ids"]:
        """Ids that may follow `ids`, which must go on from those of the call before."""
        for event in ids[self._read :]:
            if NOTE_ON <= event < NOTE_OFF:
                self._pressed.add(event - NOTE_ON)
            elif NOTE_OFF <= event < TIME_SHIFT:
                self._pressed.discard(event - NOTE_OFF)
        self._read = len(ids)
        allowed = np.ones(VOCAB_SIZE, dtype=bool)
        down = np.array(sorted(self._pressed), dtype=int)
        allowed[NOTE_ON + down] = False
        allowed[NOTE_OFF:TIME_SHIFT] = False
        allowed[NOTE_OFF + down] = True
        return allowed


def usual_constraint(tokenizer: str, num_ids: int) -> Constraint | None:
    """What keeps generated tokens sensible: `PlayableKeys` for a model of music, nothing for others.

    Args:
        tokenizer: Of the model.
        num_ids: Raw ids that the model knows; more than music has can't be constrained.
    """
    return PlayableKeys() if tokenizer == "performance" and num_ids == VOCAB_SIZE else None
