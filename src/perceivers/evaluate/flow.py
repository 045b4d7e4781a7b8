"""How well a model knows what moved where: end-point error, and pictures of optical flow."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import nn
from tqdm import tqdm

from perceivers.arguments import checked_numbers
from perceivers.data.picture_config import WarpConfig
from perceivers.data.picture_store import PictureSplit
from perceivers.data.warps import flow_batches
from perceivers.device import autocast
from perceivers.evaluate.bootstrap import Comparison, Interval, mean_with_interval, paired_bootstrap
from perceivers.evaluate.plots import new_figure
from perceivers.writing import write_figure

__all__ = ["FlowScore", "LucasKanade", "flow_picture", "plot_flow", "score_flow"]


@dataclass(frozen=True)
class FlowScore:
    """End-point errors of a split: how far, in pixels, predicted flow ends from where true flow does; by photo."""

    errors: Float[np.ndarray, " photos"]
    """Sum over the pixels of a photo's pairs."""
    lengths: Float[np.ndarray, " photos"]
    """Sum of the true flow's lengths: the errors of a prediction that nothing moves."""
    pixels: Float[np.ndarray, " photos"]
    """Pixels of a photo's pairs."""
    pairs: int
    """Pairs of frames."""

    @property
    def photos(self) -> int:
        """Photos that the pairs are from."""
        return len(self.errors)

    @property
    def end_point_error(self) -> float:
        """Mean over all pixels, in pixels."""
        return float(self.errors.sum() / self.pixels.sum())

    @property
    def zero_flow(self) -> float:
        """End-point error of a prediction that nothing moves."""
        return float(self.lengths.sum() / self.pixels.sum())

    @property
    def interval(self) -> Interval:
        """The end-point error, and where resampling photos puts it."""
        return mean_with_interval(self.errors, self.pixels)

    @property
    def against_zero(self) -> Comparison:
        """The model beside a prediction that nothing moves, on the same photos."""
        return paired_bootstrap(self.errors, self.lengths, self.pixels)


@checked_numbers()
def score_flow(
    model: nn.Module,
    split: PictureSplit,
    config: WarpConfig,
    *,
    count: int = 200,
    grey: bool = False,
    unit: float = 1.0,
    precision: str = "auto",
    progress: bool = False,
) -> FlowScore:
    """Measure a model on warped photos, which are the same whenever it is measured.

    Args:
        model: Flow [b, rows, columns, 2] of frames [b, 2, rows, columns, channels].
        split: Photos.
        config: What the pairs are like.
        count: Pairs, the same number of each photo or one more.
        grey: The model reads frames without colours.
        unit: Pixels that the model's flow of 1 is.
        precision: As in training.
        progress: Show a bar with ETA.

    Raises:
        ValueError: Photos are smaller than frames, or `count` is below 1.
    """
    device = next(model.parameters(), torch.empty(0)).device
    was_training = model.training
    model.eval()
    errors, lengths = [], []
    bar = tqdm(total=count, unit="pair", disable=not progress, desc=f"scoring {split.name}")
    with torch.no_grad(), autocast(device, precision), bar:
        for batch in flow_batches(split, config, count=count, grey=grey):
            batch = batch.to(device)
            predicted = model(batch.frames).float() * unit
            errors.append((predicted - batch.flow).norm(dim=-1).sum((1, 2), dtype=torch.float64).cpu().numpy())
            lengths.append(batch.flow.norm(dim=-1).sum((1, 2), dtype=torch.float64).cpu().numpy())
            bar.update(len(batch.frames))
    model.train(was_training)
    photo = np.arange(count) % len(split)
    per_pair = np.full(count, float(config.shape[0] * config.shape[1]))
    sums = (np.concatenate(errors), np.concatenate(lengths), per_pair)
    return FlowScore(*(np.bincount(photo, weights=values) for values in sums), pairs=count)


class LucasKanade(nn.Module):
    """Optical flow by scikit-image's iterative Lucas-Kanade with its defaults: nothing learned, and hard to beat.

    Raises:
        ImportError: scikit-image is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from skimage.registration import optical_flow_ilk
        except ImportError as error:
            raise ImportError("Lucas-Kanade needs scikit-image: pip install 'perceivers[flow]'") from error
        self.solve = optical_flow_ilk

    def forward(
        self, frames: Float[torch.Tensor, "batch 2 rows columns channels"]
    ) -> Float[torch.Tensor, "batch rows columns 2"]:
        """Flow of grey frames, in pixels (columns, rows)."""
        flow = np.stack([self.solve(first, second) for first, second in frames.mean(-1).numpy()])  # rows come first
        return torch.from_numpy(flow).flip(1).movedim(1, -1)


def flow_picture(
    flow: Float[np.ndarray, "rows columns 2"], *, longest: float | None = None
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Optical flow as colours: hue is the direction, the paler the shorter; white where nothing moves.

    Source: the colour wheel of Baker et al., A Database and Evaluation Methodology for Optical Flow (Middlebury).

    Args:
        flow: In pixels (columns, rows).
        longest: Length that has full colour, longer ones are darker; None for the longest that is there.
    """
    length = np.linalg.norm(flow, axis=-1)
    if longest is None:
        longest = float(length.max())
    radius = (length / max(longest, 1e-6))[..., None]
    wheel = colour_wheel()
    angle = np.arctan2(-flow[..., 1], -flow[..., 0]) / np.pi  # -1..1
    place = (angle + 1) / 2 * (len(wheel) - 1)
    lower = np.floor(place).astype(int)
    share = (place - lower)[..., None]
    colour = (1 - share) * wheel[lower] + share * wheel[(lower + 1) % len(wheel)]
    colour = np.where(radius <= 1, 1 - radius * (1 - colour), 0.75 * colour)
    return np.floor(255 * colour).astype(np.uint8)


@lru_cache(maxsize=1)
def colour_wheel() -> Float[np.ndarray, "55 3"]:
    """The 55 full colours by direction, 0..1: red, yellow, green, cyan, blue, magenta, in uneven steps."""
    corners = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1], [1, 0, 0]])
    steps = (15, 6, 4, 11, 13, 6)
    arcs = [
        first + (second - first) * np.arange(count)[:, None] / count
        for first, second, count in zip(corners, corners[1:], steps, strict=False)
    ]
    return np.floor(255 * np.concatenate(arcs)) / 255


def plot_flow(
    frames: Float[np.ndarray, "pairs 2 rows columns channels"],
    flow: Float[np.ndarray, "pairs rows columns 2"],
    predicted: Float[np.ndarray, "pairs rows columns 2"],
    path: Path,
) -> None:
    """Pairs as rows of four pictures, as a PNG: both frames, true flow, predicted flow.

    Args:
        frames: In -1..1, of one or three channels.
        flow: True flow, in pixels.
        predicted: A model's.
        path: Where to write.

    Raises:
        ImportError: matplotlib is not installed.
    """
    pairs, _, rows, columns, _ = frames.shape
    figure, axes = new_figure(10.0, 0.4 + 2.5 * pairs * rows / columns)
    axes.remove()
    grid: Any = figure.subplots(pairs, 4, squeeze=False)
    titles = ("first frame", "second frame", "true flow", "predicted flow")
    for pair, cells in enumerate(grid):
        longest = float(np.linalg.norm(flow[pair], axis=-1).max())
        error = np.linalg.norm(predicted[pair] - flow[pair], axis=-1).mean()
        shown = [((frame + 1) * 127.5).round().clip(0, 255).astype(np.uint8) for frame in frames[pair]]
        shown += [flow_picture(which[pair], longest=longest) for which in (flow, predicted)]
        for cell, picture, title in zip(cells, shown, titles, strict=True):
            cell.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=255)
            cell.set(xticks=[], yticks=[], title=title if pair == 0 else "")
        cells[3].set_xlabel(f"error {error:.2f} pixels")
    write_figure(path, figure, dpi=120)
