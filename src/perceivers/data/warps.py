"""Pairs of frames with known optical flow: photos and their smoothly warped copies.

The second frame is a crop of a photo, P(x) at each of its pixels x. The first is the same photo read elsewhere,
P(x + flow(x)), bilinearly. So the first frame at x shows what the second shows at x + flow(x), and the flow on the
first frame's grid is exact by construction; where x + flow(x) lies outside of the second frame, the first still shows
what the photo has there.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from perceivers.data.loader import ROW, epoch_order, rank_rows
from perceivers.data.picture_config import WarpConfig
from perceivers.data.picture_files import brightness
from perceivers.data.picture_loader import scaled
from perceivers.data.picture_store import PictureSplit

__all__ = ["FlowBatch", "WarpLoader", "flow_batches", "warp"]

EVALUATION_SEED = 0
"""Pairs for evaluation are the same whenever a model is evaluated."""
REACH = 4
"""Nothing moves by more than so many times the mean along an axis; crops keep that far from the photo's border, where
the photo is large enough."""


@dataclass(frozen=True)
class FlowBatch:
    """Pairs of frames, and what moved where."""

    frames: Float[Tensor, "batch 2 rows columns channels"]
    """In -1..1."""
    flow: Float[Tensor, "batch rows columns 2"]
    """In pixels (columns, rows): what is at x in the first frame is at x + flow(x) in the second."""

    @property
    def targets(self) -> int:
        """Pixels of the first frames."""
        return self.flow[..., 0].numel()

    def to(self, device: torch.device | str) -> "FlowBatch":
        """The same batch on `device`; from pinned memory the copy does not block."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "FlowBatch":
        """The same batch in page-locked memory, from where copies to a GPU overlap with its work."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "FlowBatch":
        return type(self)(change(self.frames), change(self.flow))


class WarpLoader:
    """Pairs of random crops of a split's photos, see `WarpConfig`; `batch(step)` depends on the arguments alone.

    An epoch takes every photo once. As in `TokenLoader`, all rows form one endless list, which ranks share.
    """

    def __init__(
        self,
        split: PictureSplit,
        config: WarpConfig,
        *,
        grey: bool = False,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Nothing is read yet.

        Args:
            split: Photos.
            config: How many pairs a batch, how large, how far things move.
            grey: Frames have no colours, whatever the photos have.
            seed: Not negative; decides order, crops and flow.
            rank: This process.
            world_size: Processes that share each batch.

        Raises:
            ValueError: Photos are smaller than frames, or the batch cannot be shared evenly.
        """
        _check_size(split, config)
        self.split, self.config, self.grey, self.seed = split, config, grey, seed
        self.rows_of = rank_rows(config.batch_size, rank=rank, world_size=world_size)

    @property
    def rows_per_epoch(self) -> int:
        """Rows after which the order of photos starts anew; crops and flow never repeat."""
        return len(self.split)

    def batch(self, step: int) -> FlowBatch:
        """This rank's rows of training step `step`, counted from 0."""
        rows = [step * self.config.batch_size + row for row in self.rows_of]
        places = [divmod(row, self.rows_per_epoch) for row in rows]
        photos = [int(epoch_order(self.rows_per_epoch, seed=self.seed, epoch=e)[place]) for e, place in places]
        rngs = [np.random.default_rng((self.seed, ROW, row)) for row in rows]
        return _batch(self.split, self.config, photos, rngs, grey=self.grey, flip=self.config.flip)


def flow_batches(
    split: PictureSplit, config: WarpConfig, *, count: int, batch_size: int | None = None, grey: bool = False
) -> Iterator[FlowBatch]:
    """`count` pairs for evaluation, always the same ones, not mirrored: pair i shows photo i modulo their number.

    Args:
        split: Photos.
        config: As in training.
        count: Pairs.
        batch_size: Pairs a batch, the last may have fewer; None for as many as in training.
        grey: Frames have no colours, whatever the photos have.

    Raises:
        ValueError: Photos are smaller than frames, or `count` is below 1.
    """
    _check_size(split, config)
    if count < 1:
        raise ValueError(f"count={count} must be at least 1 pair")
    size = config.batch_size if batch_size is None else batch_size
    for start in range(0, count, size):
        pairs = range(start, min(start + size, count))
        rngs = [np.random.default_rng((EVALUATION_SEED, ROW, pair)) for pair in pairs]
        yield _batch(split, config, [pair % len(split) for pair in pairs], rngs, grey=grey, flip=False)


def warp(
    pictures: Float[Tensor, "batch rows columns channels"], flow: Float[Tensor, "batch rows2 columns2 2"]
) -> Float[Tensor, "batch rows2 columns2 channels"]:
    """Pictures read at x + flow(x), bilinearly; beyond the border they repeat it.

    Args:
        pictures: Read from here.
        flow: In pixels (columns, rows); its grid lies in the middle of the pictures, which may be larger.
    """
    rows, columns = pictures.shape[1:3]
    height, width = flow.shape[1:3]
    size = torch.tensor([columns, rows], dtype=flow.dtype)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    corner = torch.tensor([(columns - width) // 2, (rows - height) // 2])
    places = torch.stack([x, y], -1) + corner + flow
    grid = (2 * places + 1) / size - 1  # a picture reaches from -1 to 1, borders included
    read = F.grid_sample(pictures.movedim(-1, 1), grid, padding_mode="border", align_corners=False)
    return read.movedim(1, -1)


def _check_size(split: PictureSplit, config: WarpConfig) -> None:
    rows, columns, _ = split.shape
    if rows < config.shape[0] or columns < config.shape[1]:
        raise ValueError(
            f"photos of {rows} x {columns} are smaller than frames of {config.shape[0]} x {config.shape[1]}; "
            "prepare them larger, or take smaller frames"
        )


def _batch(
    split: PictureSplit,
    config: WarpConfig,
    photos: Sequence[int],
    rngs: Sequence[np.random.Generator],
    *,
    grey: bool,
    flip: bool,
) -> FlowBatch:
    windows = torch.stack([_window(split, photo, config, grey, rng) for photo, rng in zip(photos, rngs, strict=True)])
    flow = _flow(config, rngs)
    rows, columns = config.shape
    top, left = (windows.shape[1] - rows) // 2, (windows.shape[2] - columns) // 2
    second = windows[:, top : top + rows, left : left + columns]
    frames = torch.stack([warp(windows, flow), second], 1)
    if flip:
        mirrored = torch.tensor([rng.random() < 0.5 for rng in rngs])[:, None, None, None]
        frames = torch.where(mirrored[..., None], frames.flip(3), frames)
        flow = torch.where(mirrored, flow.flip(2) * torch.tensor([-1.0, 1.0]), flow)
    return FlowBatch(frames.contiguous(), flow.contiguous())


def _window(
    split: PictureSplit, photo: int, config: WarpConfig, grey: bool, rng: np.random.Generator
) -> Float[Tensor, "rows columns channels"]:
    """A random part of a photo: a frame, and as much around it as flow may reach, if the photo has that."""
    reach = math.ceil(REACH * config.mean)
    spans = []
    for length, frame in zip(split.shape, config.shape, strict=False):
        margin = min(reach, (length - frame) // 2)
        start = int(rng.integers(0, length - frame - 2 * margin + 1))
        spans.append(slice(start, start + frame + 2 * margin))
    pixels = split.pixels[photo, spans[0], spans[1]]
    return scaled(brightness(pixels) if grey and pixels.shape[-1] == 3 else pixels)


def _flow(config: WarpConfig, rngs: Sequence[np.random.Generator]) -> Float[Tensor, "batch rows columns 2"]:
    """Random smooth flow.

    It is the sum of a translation, of a turn with a change of size, and of random displacements of a coarse grid
    between whose points it is interpolated bicubically. Each has a mean length of 1 before they are mixed.
    """
    rows, columns = config.shape
    points = [max(1, (size - 1) // config.spacing) + 1 for size in config.shape]
    angles = np.stack([rng.uniform(0, 2 * math.pi, size=2) for rng in rngs])
    coarse = np.stack([rng.uniform(-1, 1, size=(2, *points)) for rng in rngs])
    shares = np.stack([rng.dirichlet(np.ones(3)) for rng in rngs])
    means = np.array([rng.uniform(0.5, 1.5) for rng in rngs]) * config.mean

    translation = np.stack([np.cos(angles[:, 0]), np.sin(angles[:, 0])], -1)[:, None, None, :]
    y, x = np.mgrid[:rows, :columns] - np.array([rows - 1, columns - 1])[:, None, None] / 2
    turn, grow = np.cos(angles[:, 1])[:, None, None], np.sin(angles[:, 1])[:, None, None]
    affine = np.stack([grow * x - turn * y, grow * y + turn * x], -1)
    local = F.interpolate(torch.from_numpy(coarse), size=(rows, columns), mode="bicubic", align_corners=True)
    parts = [np.broadcast_to(translation, affine.shape), affine, local.movedim(1, -1).numpy()]
    mixed = np.zeros(affine.shape)
    for share, part in zip(shares.T, parts, strict=True):
        mixed += share[:, None, None, None] * part / _mean_length(part)
    flow = mixed * (means[:, None, None, None] / _mean_length(mixed))
    flow *= np.minimum(1, REACH * config.mean / np.abs(flow).max(axis=(1, 2, 3), keepdims=True))
    return torch.from_numpy(flow.astype(np.float32))


def _mean_length(flow: Float[np.ndarray, "batch rows columns 2"]) -> Float[np.ndarray, "batch 1 1 1"]:
    return np.linalg.norm(flow, axis=-1, keepdims=True).mean(axis=(1, 2), keepdims=True)
