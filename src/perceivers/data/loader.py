"""Token store -> batches, in an order that is a pure function of (seed, step)."""

import itertools
import math
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int

from perceivers.data.batch import NUM_SPECIAL, TokenBatch, collate, model_tokens
from perceivers.data.blocks import evaluation_block
from perceivers.data.config import DataConfig
from perceivers.data.late_offs import late_note_offs
from perceivers.data.music import stretch, transpose
from perceivers.data.tokens import TokenSplit
from perceivers.data.windows import num_windows, window_stop, window_weights

__all__ = ["TokenLoader", "epoch_order", "prefetch", "rank_rows"]

Batch = TypeVar("Batch")

Row = tuple[Int[np.ndarray, " seq"], Int[np.ndarray, "seq 1"], Int[np.ndarray, " seq"], Float[np.ndarray, " seq"]]
"""Tokens, their positions, what each should have been, and how much its loss counts."""

EPOCH, ROW = 0, 1
"""Keep the random numbers of epochs and of rows apart: they are seeded by (seed, EPOCH or ROW, count)."""


class TokenLoader:
    """Crops of a split's documents, see `DataConfig`; `batch(step)` depends on nothing but the arguments.

    All rows of a run form one endless list, the same on every machine; step s has rows s * batch_size and on,
    and rank r of w takes every w-th of them from r on. So a run resumes from one integer, on any number of ranks.
    """

    def __init__(
        self,
        split: TokenSplit,
        config: DataConfig,
        *,
        seq_len: int,
        num_targets: int | None = None,
        offset: int = NUM_SPECIAL,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        tokenizer: str = "performance",
    ) -> None:
        """Prepare to load; reads only the documents' lengths.

        Args:
            split: Documents of raw ids.
            config: Which crops, how many a batch, changed how.
            seq_len: Longest row, in tokens: the model's inputs and one more, which is only predicted.
            num_targets: Last tokens of a row that get a loss (the model's latents); None: all but the first.
            offset: The model's id for raw id 0.
            seed: Not negative; decides order, crops and changes.
            rank: This process.
            world_size: Processes that share each batch.
            tokenizer: What made the ids; transposing and stretching need "performance".

        Raises:
            ValueError: Arguments or `config` do not fit each other.
        """
        num_targets = seq_len - 1 if num_targets is None else num_targets
        if not 1 <= num_targets < seq_len:
            raise ValueError(f"num_targets={num_targets} must lie in 1..{seq_len - 1}, below seq_len={seq_len}")
        if offset < NUM_SPECIAL:
            raise ValueError(f"offset={offset} must be at least {NUM_SPECIAL}: ids below are PAD, EOS and SOS")
        if (config.min_crop or 0) >= seq_len:
            raise ValueError(f"min_crop={config.min_crop} is more than the model's {seq_len - 1} inputs")
        if tokenizer != "performance" and (config.transpose or config.stretches or config.late_offs):
            field = "transpose" if config.transpose else "stretch" if config.stretches else "late_offs"
            raise ValueError(
                f"{field}={getattr(config, field)} changes music events, but this data's tokenizer is "
                f"{tokenizer!r}, not 'performance'; leave {field} off"
            )
        self.split, self.config, self.seq_len, self.num_targets = split, config, seq_len, num_targets
        self.offset, self.seed = offset, seed
        self.rows_of = rank_rows(config.batch_size, rank=rank, world_size=world_size)
        self._lengths = split.lengths + 2  # with SOS and EOS
        self._shortest = 1 + (num_targets if config.min_crop is None else config.min_crop)
        blocks = (self._lengths - 2) // num_targets + 1  # as in `num_blocks`
        counts = blocks if config.crop == "cover" else num_windows(self._lengths, num_targets)
        self._counts = np.concatenate([[0], np.cumsum(counts)])

    @property
    def rows_per_epoch(self) -> int:
        """Rows after which the order starts anew."""
        match self.config.crop:
            case "random":
                return len(self.split)
            case "uniform":
                return max(1, int(self._counts[-1]) // self.num_targets)
            case "cover":
                return int(self._counts[-1])

    def batch(self, step: int) -> TokenBatch:
        """This rank's rows of training step `step`, counted from 0."""
        rows = [self._row(step * self.config.batch_size + row) for row in self.rows_of]
        tokens, positions, targets, weights = (list(part) for part in zip(*rows, strict=True))
        return collate(
            tokens,
            positions,
            targets=targets if self.config.late_offs else None,
            weights=weights if self.config.crop == "uniform" else None,
        )

    def _row(self, index: int) -> Row:
        """Row `index` of the endless list."""
        epoch, place = divmod(index, self.rows_per_epoch)
        unit = int(epoch_order(self.rows_per_epoch, seed=self.seed, epoch=epoch)[place])
        rng = np.random.default_rng((self.seed, ROW, index))
        document, stop = self._choose(unit, rng)
        factor = self.config.stretch[rng.integers(len(self.config.stretch))]
        semitones = int(rng.integers(-self.config.transpose, self.config.transpose + 1))
        # A faster tempo leaves fewer tokens, as pauses need fewer; about `factor` of them where all is pauses.
        start = max(0, stop - math.ceil(self.seq_len / min(factor, 1.0)))
        tokens = model_tokens(self.split[document], start=start, stop=stop, offset=self.offset)
        if factor != 1.0 or semitones:
            changed = self._changed(tokens, factor, semitones)
            start = round(start * len(changed) / len(tokens))  # what came before is taken to change likewise
            tokens = changed
        start += max(0, len(tokens) - self.seq_len)
        tokens = targets = tokens[-self.seq_len :]
        if self.config.late_offs:
            # Half of the rows stay as they are, so that a model can tell playing that slips from playing that does not.
            share = max(0.0, rng.uniform(-self.config.late_offs, self.config.late_offs))
            tokens, targets = (x + self.offset for x in late_note_offs(tokens - self.offset, share, rng))
        positions = np.arange(start + 1, start + 1 + len(tokens))[:, None]
        return tokens, positions, targets, self._weights(document, stop, len(tokens))

    def _weights(self, document: int, stop: int, row: int) -> Float[np.ndarray, " row"]:
        """How much the losses of a row of so many tokens count; of its first ones nobody asks."""
        weights = np.ones(row, np.float32)
        if self.config.crop == "uniform":
            window = window_weights(int(self._lengths[document]), self.num_targets, stop)[-row:]
            weights[-len(window) :] = window
        return weights

    def _changed(self, tokens: Int[np.ndarray, " seq"], factor: float, semitones: int) -> Int[np.ndarray, " changed"]:
        """A crop at another tempo and pitch, its SOS and EOS kept."""
        data = tokens >= self.offset
        ids = (tokens[data] - self.offset).astype(np.int32)
        ids = transpose(stretch(ids, factor) if factor != 1.0 else ids, semitones)
        return np.concatenate([tokens[:1][~data[:1]], ids.astype(np.int64) + self.offset, tokens[-1:][~data[-1:]]])

    def _choose(self, unit: int, rng: np.random.Generator) -> tuple[int, int]:
        """The document of a row, and where in it the row stops."""
        if self.config.crop == "random":
            length = int(self._lengths[unit])
            return unit, int(rng.integers(min(self._shortest, length), length + 1))
        if self.config.crop == "uniform":  # epochs have one window in each of `rows_per_epoch` equal stretches
            total = int(self._counts[-1])
            point = min(int((unit + rng.random()) * total / self.rows_per_epoch), total - 1)
            document = int(np.searchsorted(self._counts, point, side="right")) - 1
            index = point - int(self._counts[document])
            return document, window_stop(int(self._lengths[document]), self.num_targets, index)
        document = int(np.searchsorted(self._counts, unit, side="right")) - 1
        length, index = int(self._lengths[document]), unit - int(self._counts[document])
        block = evaluation_block(length, index, max_len=self.seq_len - 1, stride=self.num_targets)
        return document, block.stop


@lru_cache(maxsize=4)
def epoch_order(num_rows: int, *, seed: int, epoch: int) -> Int[np.ndarray, " rows"]:
    """Order of one epoch's rows; the same on every rank and machine."""
    order = np.random.default_rng((seed, EPOCH, epoch)).permutation(num_rows)
    order.flags.writeable = False  # it is shared by all who ask
    return order


def rank_rows(batch_size: int, *, rank: int, world_size: int) -> range:
    """Which rows of a batch belong to a process.

    Raises:
        ValueError: The batch cannot be shared evenly, or there is no such rank.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank={rank} must lie in 0..{world_size - 1}")
    if batch_size % world_size:
        raise ValueError(f"batch_size={batch_size} must be a multiple of the {world_size} processes that share it")
    return range(rank, batch_size, world_size)


def prefetch(make: Callable[[int], Batch], first_step: int, *, ahead: int = 2) -> Generator[Batch, None, None]:
    """`make(first_step)`, `make(first_step + 1)`, ... without end; a thread is up to `ahead` steps in front.

    The thread ends with the iterator, and an error in `make` is raised where the batch is asked for.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    try:
        waiting = deque(pool.submit(make, first_step + step) for step in range(ahead))
        for step in itertools.count(first_step + ahead):
            batch = waiting.popleft().result()
            waiting.append(pool.submit(make, step))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
