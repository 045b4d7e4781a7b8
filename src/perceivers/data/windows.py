"""Windows of targets in which every token of a document counts alike, its first and last ones too.

Windows of n targets that lie anywhere within a document hold its middle n times as often as its ends. Here the two
windows at the ends are taken more often, as if there were a quarter of n more of each, and what is still held more or
less often than others counts less or more. So each window is full, no place of a document always ends one, and

    expected weight of a token = n / (windows of all documents), whatever its place and its document's length.
"""

import numpy as np
from jaxtyping import Float, Int, Integer

__all__ = ["num_windows", "window_stop", "window_weights"]


def num_windows(lengths: Integer[np.ndarray, " documents"], size: int) -> Int[np.ndarray, " documents"]:
    """Windows of documents of `lengths` tokens, SOS and EOS included; `size` targets each, or all that there are."""
    targets = lengths.astype(np.int64) - 1
    return np.where(targets <= size, size, targets - size + 1 + 2 * _more(size))


def window_stop(length: int, size: int, index: int) -> int:
    """Where window `index` of `num_windows` ends: one after its last token, the SOS being token 0."""
    if length - 1 <= size:
        return length
    return int(np.clip(size + 1 + index - _more(size), size + 1, length))


def window_weights(length: int, size: int, stop: int) -> Float[np.ndarray, " targets"]:
    """How much the loss of each target of the window that ends at `stop` counts."""
    last = length - 1  # targets are tokens 1 to this
    if last <= size:
        return np.ones(last)
    target = np.arange(stop - size, stop)
    held = np.minimum(last, target + size - 1) - np.maximum(size, target) + 1
    return size / (held + _more(size) * ((target <= size).astype(int) + (target > last - size)))


def _more(size: int) -> int:
    """Windows at each end beside the one that is there anyway."""
    return -(-size // 4)
