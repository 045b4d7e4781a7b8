"""What token loaders yield and objectives take."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

__all__ = ["EOS", "NUM_SPECIAL", "PAD", "SOS", "TokenBatch", "collate", "model_tokens"]

PAD, EOS, SOS = 0, 1, 2
"""The special ids that a model sees; they are not in the token store."""

NUM_SPECIAL = 3
"""Ids below this are special; a store's id `i` is the model's id `i + NUM_SPECIAL` (Perceiver AR)."""


def model_tokens(
    ids: Integer[np.ndarray, " tokens"], *, start: int = 0, stop: int | None = None, offset: int = NUM_SPECIAL
) -> Int[np.ndarray, " seq"]:
    """What a model sees of a document: `([SOS] + (ids + offset) + [EOS])[start:stop]`, in one go.

    Token i of the document has position i + 1.

    Args:
        ids: The document's raw ids.
        start: First token, counted with the SOS.
        stop: One after the last token; None takes all.
        offset: The model's id for raw id 0.
    """
    length = len(ids) + 2
    stop = length if stop is None else stop
    tokens = np.empty(stop - start, dtype=np.int64)
    first, last = max(start, 1), min(stop, length - 1)  # the crop's share of the data, again counted with the SOS
    np.add(ids[first - 1 : last - 1], offset, out=tokens[first - start : last - start], dtype=np.int64)
    if start == 0:
        tokens[0] = SOS
    if stop == length:
        tokens[-1] = EOS
    return tokens


@dataclass(frozen=True)
class TokenBatch:
    """Rows of tokens, padded on the right; inputs and targets are not yet shifted against each other."""

    tokens: Int[Tensor, "batch seq"]
    """Model ids: PAD 0, EOS 1, SOS 2, data after them."""
    positions: Int[Tensor, "batch seq axes"]
    """Where each token sits in its document, counted from 1 (the SOS has 1); 0 where padded."""
    lengths: Int[Tensor, " batch"]
    """Real tokens of each row."""
    targets: Int[Tensor, "batch seq"] | None = None
    """What each token should have been, given those before it. None: the tokens themselves."""
    weights: Float[Tensor, "batch seq"] | None = None
    """How much the loss of each token counts. None: all alike."""

    def to(self, device: torch.device | str) -> "TokenBatch":
        """The same batch on `device`; from pinned memory the copy does not block."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "TokenBatch":
        """The same batch in page-locked memory, from where copies to a GPU overlap with its work."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "TokenBatch":
        tensors = (self.tokens, self.positions, self.lengths, self.targets, self.weights)
        return type(self)(*(None if tensor is None else change(tensor) for tensor in tensors))  # pyright: ignore


def collate(
    tokens: Sequence[Int[np.ndarray, " _"]],
    positions: Sequence[Int[np.ndarray, "_ axes"]],
    *,
    targets: Sequence[Int[np.ndarray, " _"]] | None = None,
    weights: Sequence[Float[np.ndarray, " _"]] | None = None,
) -> TokenBatch:
    """Make a batch of rows, padded to the longest of them.

    Args:
        tokens: One array of model ids per row, without padding.
        positions: One array per row, as long as its tokens.
        targets: Likewise, where they are not the tokens themselves.
        weights: Likewise, where not all losses count alike.
    """
    lengths = np.array([len(row) for row in tokens], dtype=np.int64)
    padded_tokens = np.full((len(tokens), int(lengths.max())), PAD, dtype=np.int64)
    padded_positions = np.zeros((*padded_tokens.shape, positions[0].shape[1]), dtype=np.int64)
    for row, (ids, places) in enumerate(zip(tokens, positions, strict=True)):
        padded_tokens[row, : len(ids)] = ids
        padded_positions[row, : len(ids)] = places
    batch = TokenBatch(*map(torch.from_numpy, (padded_tokens, padded_positions, lengths)))
    more: dict[str, Tensor] = {}
    for name, rows in (("targets", targets), ("weights", weights)):
        if rows is not None:
            padded = np.zeros(padded_tokens.shape, np.result_type(*rows))
            for row, values in enumerate(rows):
                padded[row, : len(values)] = values
            more[name] = torch.from_numpy(padded)
    return replace(batch, **more)
