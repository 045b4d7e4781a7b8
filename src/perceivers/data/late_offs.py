"""Note-offs that come late or never: states that a model meets in its own playing, and real music does not show.

A model that misses the moment to release a key is, from then on, in a state that training never showed, and keeps the
key down for good. Here inputs are led into such states, and the targets say how to leave them: release the key. It is
the idea of DAgger (Ross et al. 2011, https://arxiv.org/abs/1011.0686), whose expert is the score.
"""

import math

import numpy as np
from jaxtyping import Int

from perceivers.data.music import NOTE_OFF, TIME_SHIFT

__all__ = ["MOST_EVENTS", "late_note_offs"]

MOST_EVENTS = 256
"""A late note-off comes at most so many events after its moment; delays are spread evenly over their logarithm."""


def late_note_offs(
    ids: Int[np.ndarray, " events"], share: float, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " played"], Int[np.ndarray, " played"]]:
    """Move some note-offs back, and say at each event what should have come there.

    A note-off comes before its key goes down again, and is left out where that lies beyond the end. From its moment on
    until it comes the target is the note-off, the earliest one where several are missing.

    Args:
        ids: Raw events, perhaps with special ids below 0 among them.
        share: Share of the note-offs that are moved.
        rng: Decides which, and how far.

    Returns:
        The events as played, and a target for each.
    """
    offs = np.flatnonzero((ids >= NOTE_OFF) & (ids < TIME_SHIFT))
    offs = offs[rng.random(len(offs)) < share]
    delays = np.ceil(np.exp(rng.random(len(offs)) * math.log(MOST_EVENTS))).astype(int)
    place = np.arange(len(ids), dtype=float)  # where each event is played, between the numbers of the others
    kept = np.ones(len(ids), dtype=bool)
    for off, delay in zip(offs.tolist(), delays.tolist(), strict=True):
        struck = np.flatnonzero(ids[off:] == ids[off] - NOTE_OFF)
        before = min(off + 1 + delay, off + int(struck[0]) if len(struck) else len(ids))
        place[off] = before - 0.5
        kept[off] = before < len(ids)
    order = np.argsort(place, kind="stable")
    order = order[kept[order]]
    played = ids[order]
    targets = played.copy()
    for off in offs[::-1].tolist():  # the earliest last, so that it has its way
        due = int(np.searchsorted(place[order], off))
        come = int(np.flatnonzero(order == off)[0]) if kept[off] else len(order)
        targets[due:come] = ids[off]
    return played, targets
