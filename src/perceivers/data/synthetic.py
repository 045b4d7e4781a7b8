"""The copy task, the tokenizer "copy": random bytes and then the same bytes backwards.

The second half can be predicted only by looking back across the whole first half, so it measures how far a model
really remembers (Perceiver AR's official `RandomMirroredDataset`). Lengths include SOS and EOS, as there:

    SOS  a b c  c b a  EOS          length 8
"""

import numpy as np
from jaxtyping import Bool, Int

from perceivers.data.batch import NUM_SPECIAL, TokenBatch, collate, model_tokens
from perceivers.data.config import CopyConfig
from perceivers.data.loader import rank_rows

__all__ = ["COPY_VOCAB_SIZE", "MirroredLoader", "copy_accuracy_targets", "mirrored_ids"]

COPY_VOCAB_SIZE = 256
SPLITS = ("train", "validation", "test")


def mirrored_ids(length: int, *, seed: int, split: str, index: int) -> Int[np.ndarray, " tokens"]:
    """Raw ids of sequence `index` of a split: `length - 2` of them, as SOS and EOS are the loader's.

    Raises:
        ValueError: `length` is odd or too short, or there is no such split.
    """
    if length < 4 or length % 2:
        raise ValueError(f"length={length} must be even and at least 4: SOS, a token, its mirror, EOS")
    return _mirrored(length, _generator(seed, split, index))


def copy_accuracy_targets(length: int) -> Bool[np.ndarray, " targets"]:
    """Which of a sequence's `length - 1` targets can be known: the mirrored half and the EOS, the last length / 2.

    Target i is token i + 1. As in the reference: accuracy is measured on these.
    """
    return np.arange(1, length) >= length // 2


class MirroredLoader:
    """Endless batches of the copy task, with the interface of `TokenLoader`; no sequence is seen twice.

    The training split has crops that stop somewhere in the mirrored half, and lengths that grow if `config`
    says so. Shorter sequences are placed so that all have their mirror at the same position, half of the full
    length: the rule that links a token's position to its mirror image's is then the same for all lengths, and a
    longer sequence only adds pairs outside. The other splits have whole sequences of full length.
    """

    def __init__(
        self,
        config: CopyConfig,
        *,
        seed: int,
        split: str = "train",
        offset: int = NUM_SPECIAL,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Nothing is made yet.

        Args:
            config: Lengths and batch size.
            seed: Not negative; each split has its own sequences.
            split: "train", "validation" or "test".
            offset: The model's id for raw id 0.
            rank: This process.
            world_size: Processes that share each batch.

        Raises:
            ValueError: The batch cannot be shared evenly, or there is no such split.
        """
        _check_split(split)
        self.config, self.seed, self.split, self.offset = config, seed, split, offset
        self.rank, self.world_size = rank, world_size
        rank_rows(config.batch_size, rank=rank, world_size=world_size)  # checks them

    def batch(self, step: int) -> TokenBatch:
        """This rank's rows of step `step`, counted from 0."""
        training = self.split == "train"
        length = self.config.length_at(step) if training else self.config.length
        rows = self.config.rows_at(step) if training else self.config.batch_size
        shift = (self.config.length - length) // 2
        tokens, positions = [], []
        for row in rank_rows(rows, rank=self.rank, world_size=self.world_size):
            where = (step, row) if training else (step * rows + row,)
            rng = _generator(self.seed, self.split, *where)
            ids = _mirrored(length, rng)
            shortest = length // 2 + min(self.config.min_mirrored, length // 2)
            stop = int(rng.integers(shortest, length + 1)) if training else length
            tokens.append(model_tokens(ids, stop=stop, offset=self.offset))
            positions.append(np.arange(shift + 1, shift + stop + 1)[:, None])
        return collate(tokens, positions)


def _generator(seed: int, split: str, *index: int) -> np.random.Generator:
    _check_split(split)
    return np.random.default_rng((seed, SPLITS.index(split), *index))


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split {split!r} must be one of {', '.join(SPLITS)}")


def _mirrored(length: int, rng: np.random.Generator) -> Int[np.ndarray, " tokens"]:
    half = rng.integers(COPY_VOCAB_SIZE, size=length // 2 - 1, dtype=np.int32)
    return np.concatenate([half, half[::-1]])
