"""Byte store -> text with holes.

For training in an order that is a pure function of (seed, step), for evaluation with holes that stay where they are.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int, Integer
from torch import Tensor

from perceivers.data.loader import ROW, epoch_order, rank_rows
from perceivers.data.masked_config import MaskedTextConfig
from perceivers.data.text import BYTES_VOCAB_SIZE, PERCEIVER_MASK, PERCEIVER_OFFSET, PERCEIVER_PAD
from perceivers.data.tokens import TokenSplit

__all__ = ["MaskedBatch", "MaskedTextLoader", "Window", "choose_masked", "evaluation_windows", "masked_batches"]

WINDOW = 2
"""Keeps the random numbers of evaluation apart from those of training, which are seeded by 0 and 1."""

LONGEST_WORD = 32
"""In bytes; longer ones are cut, so that data without spaces is not masked as a whole."""

SPACES = np.isin(np.arange(BYTES_VOCAB_SIZE), np.frombuffer(b" \t\n\r\v\f", np.uint8))


@dataclass(frozen=True)
class MaskedBatch:
    """Rows of text with holes, padded on the right; ids are Perceiver IO's: PAD 0, MASK 3, byte b is 6 + b."""

    tokens: Int[Tensor, "batch seq"]
    """What the model reads: MASK in the holes."""
    labels: Int[Tensor, "batch seq"]
    """The true ids, everywhere."""
    masked: Bool[Tensor, "batch seq"]
    """Holes."""
    lengths: Int[Tensor, " batch"]
    """Bytes of each row, holes counted."""

    @property
    def targets(self) -> int:
        """Bytes that get a loss."""
        return int(self.masked.sum())

    @property
    def real(self) -> Bool[Tensor, "batch seq"] | None:
        """What is not padding, for the model's `mask` and `query_mask`; None where nothing is padded."""
        places = torch.arange(self.tokens.shape[1], device=self.lengths.device)
        real = places < self.lengths[:, None]
        return None if bool(real.all()) else real

    def to(self, device: torch.device | str) -> "MaskedBatch":
        """The same batch on `device`; from pinned memory the copy does not block."""
        return MaskedBatch(*(tensor.to(device, non_blocking=True) for tensor in self._tensors))

    def pin_memory(self) -> "MaskedBatch":
        """The same batch in page-locked memory, from where copies to a GPU overlap with its work."""
        return MaskedBatch(*(tensor.pin_memory() for tensor in self._tensors))

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return self.tokens, self.labels, self.masked, self.lengths


class MaskedTextLoader:
    """Rows of a split, see `MaskedTextConfig`; `batch(step)` depends on nothing but the arguments.

    All rows of a run form one endless list, the same on every machine; step s has rows s * batch_size and on,
    and rank r of w takes every w-th of them from r on. So a run resumes from one integer, on any number of ranks.
    """

    def __init__(
        self,
        split: TokenSplit,
        config: MaskedTextConfig,
        *,
        seq_len: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        tokenizer: str = "bytes",
    ) -> None:
        """Prepare to load; reads only the documents' lengths.

        Args:
            split: Documents of bytes.
            config: What is masked.
            seq_len: Bytes that the model reads; every row is as long, with padding where a document is shorter.
            seed: Not negative; decides order, windows and holes.
            rank: This process.
            world_size: Processes that share each batch.
            tokenizer: What made the ids; must be "bytes".

        Raises:
            ValueError: The ids are no bytes, the model reads nothing, or the batch cannot be shared evenly.
        """
        if tokenizer != "bytes":
            raise ValueError(f"masked text is made of bytes, this data holds {tokenizer!r} tokens: prepare text")
        if seq_len < 1:
            raise ValueError(f"seq_len={seq_len} must be at least 1 byte")
        self.split, self.config, self.seq_len, self.seed = split, config, seq_len, seed
        self.rows_of = rank_rows(config.batch_size, rank=rank, world_size=world_size)

    @property
    def rows_per_epoch(self) -> int:
        """Rows after which the order starts anew: as many as hold all bytes."""
        return max(1, self.split.num_tokens // self.seq_len)

    def batch(self, step: int) -> MaskedBatch:
        """This rank's rows of training step `step`, counted from 0."""
        rows = [self._row(step * self.config.batch_size + row) for row in self.rows_of]
        return _collate([ids for ids, _ in rows], [masked for _, masked in rows], seq_len=self.seq_len)

    def _row(self, index: int) -> tuple[Integer[np.ndarray, " length"], Bool[np.ndarray, " length"]]:
        """Row `index` of the endless list: its bytes, and which are masked."""
        epoch, place = divmod(index, self.rows_per_epoch)
        unit = int(epoch_order(self.rows_per_epoch, seed=self.seed, epoch=epoch)[place])
        rng = np.random.default_rng((self.seed, ROW, index))
        total = self.split.num_tokens
        # An epoch has one byte of each of `rows_per_epoch` equal stretches; its window has it anywhere.
        byte = min(int((unit + rng.random()) * total / self.rows_per_epoch), total - 1)
        document = int(np.searchsorted(self.split.offsets, byte, side="right")) - 1
        ids = self.split[document]
        start = byte - int(self.split.offsets[document]) - int(rng.integers(self.seq_len))
        start = max(0, min(start, len(ids) - self.seq_len))
        ids = ids[start : start + self.seq_len]
        return ids, choose_masked(ids, self.config, rng)


def choose_masked(
    ids: Integer[np.ndarray, " length"], config: MaskedTextConfig, rng: np.random.Generator
) -> Bool[np.ndarray, " length"]:
    """Which bytes to mask: `share` of the words or bytes, rounded, but at least one.

    A word is a run of bytes other than white space, with the white space before it; it ends after `LONGEST_WORD` bytes.
    """
    unit = np.arange(len(ids))
    if config.unit == "words":
        space = SPACES[ids]
        starts = space & ~np.concatenate([[False], space[:-1]])
        starts[0] = True
        since = unit - np.flatnonzero(starts)[np.cumsum(starts) - 1]
        unit = np.cumsum(starts | (since % LONGEST_WORD == 0)) - 1
    units = int(unit[-1]) + 1
    chosen = np.zeros(units, bool)
    chosen[rng.permutation(units)[: max(1, round(config.share * units))]] = True
    return chosen[unit]


@dataclass(frozen=True)
class Window:
    """A stretch of a document."""

    document: int
    """Its index in the split."""
    start: int
    """First byte."""
    stop: int
    """One after the last."""


def evaluation_windows(split: TokenSplit, *, seq_len: int, max_tokens: int | None = None) -> list[Window]:
    """Every document, cut into the fewest windows of about equal length that the model can read.

    Args:
        split: Documents of bytes.
        seq_len: Longest window.
        max_tokens: Take windows of about so many bytes only, spread evenly over the split.
    """
    windows = []
    for document, length in enumerate(split.lengths):
        edges = np.linspace(0, length, -(-int(length) // seq_len) + 1).round().astype(int).tolist()
        windows += [Window(document, start, stop) for start, stop in itertools.pairwise(edges)]
    if max_tokens is not None and max_tokens < split.num_tokens:
        wanted = max(1, round(len(windows) * max_tokens / split.num_tokens))
        windows = [windows[i] for i in np.linspace(0, len(windows) - 1, wanted).round().astype(int)]
    return windows


def masked_batches(
    split: TokenSplit,
    config: MaskedTextConfig,
    *,
    seq_len: int,
    batch_size: int | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
) -> Iterator[tuple[list[Window], MaskedBatch]]:
    """Windows of a split with holes that depend on nothing but the seed and the window: not on batches or on the model.

    Args:
        split: Documents of bytes.
        config: What is masked.
        seq_len: Bytes that the model reads.
        batch_size: Windows a batch; None for the config's.
        max_tokens: As in `evaluation_windows`.
        seed: Of the holes.
    """
    windows = evaluation_windows(split, seq_len=seq_len, max_tokens=max_tokens)
    size = config.batch_size if batch_size is None else batch_size
    for first in range(0, len(windows), size):
        group = windows[first : first + size]
        texts = [split[window.document][window.start : window.stop] for window in group]
        generators = (np.random.default_rng((seed, WINDOW, window.document, window.start)) for window in group)
        masked = [choose_masked(ids, config, rng) for ids, rng in zip(texts, generators, strict=True)]
        yield group, _collate(texts, masked, seq_len=seq_len)


def _collate(texts: Sequence[np.ndarray], masked: Sequence[np.ndarray], *, seq_len: int) -> MaskedBatch:
    """A batch of rows of bytes and their holes."""
    lengths = np.array([len(ids) for ids in texts], np.int64)
    labels = np.full((len(texts), seq_len), PERCEIVER_PAD, np.int64)
    holes = np.zeros((len(texts), seq_len), bool)
    for row, (ids, chosen) in enumerate(zip(texts, masked, strict=True)):
        np.add(ids, PERCEIVER_OFFSET, out=labels[row, : len(ids)], dtype=np.int64)
        holes[row, : len(ids)] = chosen
    tokens = np.where(holes, PERCEIVER_MASK, labels)
    return MaskedBatch(*map(torch.from_numpy, (tokens, labels, holes, lengths)))
