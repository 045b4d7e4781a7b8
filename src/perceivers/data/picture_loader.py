"""Picture store -> batches, in an order that is a pure function of (seed, step)."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor

from perceivers.data.loader import ROW, epoch_order, rank_rows
from perceivers.data.picture_config import PictureConfig
from perceivers.data.picture_store import PictureSplit

__all__ = ["PictureBatch", "PictureLoader", "picture_batches", "scaled"]

EVALUATION_SEED = 0
"""What a model does not see in evaluation is the same whenever it is evaluated."""


@dataclass(frozen=True)
class PictureBatch:
    """Pictures, their labels, and which pixels a model shall not see."""

    pixels: Float[Tensor, "batch rows columns channels"]
    """In -1..1, or as the configuration scales them."""
    labels: Int64[Tensor, " batch"] | None
    """Classes; None where nothing is known."""
    hidden: Bool[Tensor, "batch pixels"] | None
    """True where a model sees nothing, pixels row by row; None where it sees everything."""

    @property
    def targets(self) -> int:
        """Pictures."""
        return len(self.pixels)

    def to(self, device: torch.device | str) -> "PictureBatch":
        """The same batch on `device`; from pinned memory the copy does not block."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "PictureBatch":
        """The same batch in page-locked memory, from where copies to a GPU overlap with its work."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "PictureBatch":
        labels = None if self.labels is None else change(self.labels)
        return type(self)(change(self.pixels), labels, None if self.hidden is None else change(self.hidden))


class PictureLoader:
    """Pictures of a split, see `PictureConfig`; `batch(step)` depends on nothing but the arguments.

    As in `TokenLoader`, all rows form one endless list, which ranks share, so a run resumes from one integer.
    """

    def __init__(
        self, split: PictureSplit, config: PictureConfig, *, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        """Nothing is read yet.

        Args:
            split: Pictures.
            config: How many a batch, changed how.
            seed: Not negative; decides order, changes and what is hidden.
            rank: This process.
            world_size: Processes that share each batch.

        Raises:
            ValueError: The batch cannot be shared evenly, or there is no such rank.
        """
        self.split, self.config, self.seed = split, config, seed
        self.rows_of = rank_rows(config.batch_size, rank=rank, world_size=world_size)

    @property
    def rows_per_epoch(self) -> int:
        """Rows after which the order starts anew."""
        return len(self.split)

    def batch(self, step: int) -> PictureBatch:
        """This rank's rows of training step `step`, counted from 0."""
        rows = [step * self.config.batch_size + row for row in self.rows_of]
        places = [divmod(row, self.rows_per_epoch) for row in rows]
        units = [int(epoch_order(self.rows_per_epoch, seed=self.seed, epoch=e)[place]) for e, place in places]
        random = self.config.moves or self.config.hidden  # otherwise generators would take most of the time
        rngs = [np.random.default_rng((self.seed, ROW, row)) for row in rows] if random else []
        return _batch(self.split, self.config, units, rngs, training=True)


def picture_batches(
    split: PictureSplit, config: PictureConfig, *, batch_size: int | None = None
) -> Iterator[PictureBatch]:
    """All pictures of a split in order, for evaluation: each once and as it is, but for `permutation` and `hidden`.

    Args:
        split: Pictures.
        config: As in training; of its changes only `permutation` and `hidden` are made. What is hidden of a picture
            is always the same.
        batch_size: Pictures a batch, the last may have fewer; None for as many as in training.
    """
    size = config.batch_size if batch_size is None else batch_size
    for start in range(0, len(split), size):
        units = range(start, min(start + size, len(split)))
        rngs = [np.random.default_rng((EVALUATION_SEED, ROW, unit)) for unit in units] if config.hidden else []
        yield _batch(split, config, units, rngs, training=False)


def scaled(
    pixels: UInt8[np.ndarray, "*shape"] | Float32[np.ndarray, "*shape"],
    *,
    mean: tuple[float, ...] = (0.5,),
    std: tuple[float, ...] = (0.5,),
) -> Float[Tensor, "*shape"]:
    """Pixels 0..255 as 0..1 less `mean` over `std`, which is -1..1 for 0.5 and 0.5; other numbers as they are.

    Raises:
        ValueError: There are other channels than numbers in `mean`.
    """
    if pixels.dtype == np.float32:
        return torch.from_numpy(pixels)
    numbers = torch.from_numpy(pixels.astype(np.float32))
    if mean == std == (0.5,):
        return numbers.div_(127.5).sub_(1)
    if len(mean) not in (1, pixels.shape[-1]):
        raise ValueError(f"mean={mean} is for {len(mean)} channels, the pictures have {pixels.shape[-1]}")
    return numbers.div_(255).sub_(torch.tensor(mean)).div_(torch.tensor(std))


def _batch(
    split: PictureSplit,
    config: PictureConfig,
    units: Sequence[int],
    rngs: Sequence[np.random.Generator],
    *,
    training: bool,
) -> PictureBatch:
    pixels = scaled(split.pixels[list(units)], mean=config.mean, std=config.std)
    if training and config.moves:
        pixels = _moved(pixels, np.stack([_inverse_motion(config, rng) for rng in rngs]))
    rows, columns, _ = split.shape
    if config.permutation is not None:
        order = _pixel_order(rows * columns, config.permutation)
        pixels = pixels.flatten(1, 2)[:, order].unflatten(1, (rows, columns))
    hidden = None
    if config.hidden:
        hidden = torch.from_numpy(np.stack([_hidden(rows * columns, config.hidden, rng) for rng in rngs]))
    labels = None if split.labels is None else torch.from_numpy(split.labels[list(units)])
    return PictureBatch(pixels, labels, hidden)


def _inverse_motion(config: PictureConfig, rng: np.random.Generator) -> Float[np.ndarray, "2 3"]:
    """Where a pixel of a changed picture comes from: a matrix for its (column, row, 1), counted from the centre."""
    shift = rng.integers(-config.shift, config.shift + 1, size=2)
    angle = math.radians(rng.uniform(-config.rotate, config.rotate))
    size = rng.uniform(1 - config.scale, 1 + config.scale)
    mirrored = -1 if config.flip and rng.random() < 0.5 else 1
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) / size
    turn[0] *= mirrored
    return np.concatenate([turn, -turn @ shift[:, None]], 1)


def _moved(
    pixels: Float[Tensor, "batch rows columns channels"], motions: Float[np.ndarray, "batch 2 3"]
) -> Float[Tensor, "batch rows columns channels"]:
    """Pictures changed by one affine motion each."""
    batch, rows, columns, channels = pixels.shape
    half = np.array([columns / 2, rows / 2, 1.0])
    # From pixels to coordinates in which a picture reaches from -1 to 1, borders included.
    theta = torch.from_numpy((motions * half / half[:2, None]).astype(np.float32))
    grid = F.affine_grid(theta, [batch, channels, rows, columns], align_corners=False)
    moved = F.grid_sample(pixels.movedim(-1, 1), grid, padding_mode="border", align_corners=False)
    return moved.movedim(1, -1).contiguous()


def _hidden(pixels: int, share: float, rng: np.random.Generator) -> Bool[np.ndarray, " pixels"]:
    """`share` of the pixels, rounded down or up at random so that the mean is exact."""
    hidden = np.zeros(pixels, dtype=bool)
    hidden[rng.permutation(pixels)[: int(share * pixels + rng.random())]] = True
    return hidden


@lru_cache(maxsize=4)
def _pixel_order(pixels: int, seed: int) -> Tensor:
    """The one order of all pixels."""
    return torch.from_numpy(np.random.default_rng(seed).permutation(pixels))
