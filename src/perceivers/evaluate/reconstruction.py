"""What masked auto-encoding has learned: the error at hidden pixels, and whether learned positions know their place."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from tqdm import tqdm

from perceivers.arguments import checked_numbers
from perceivers.data.picture_config import PictureConfig
from perceivers.data.picture_loader import picture_batches
from perceivers.data.picture_store import PictureSplit
from perceivers.device import autocast
from perceivers.evaluate.classification import thinned
from perceivers.evaluate.pictures import image_modality, reconstruction_errors
from perceivers.models.hip_config import HiPConfig

FOLDS = 5
"""Of the cross-validation of `linear_decodability`."""


@dataclass(frozen=True)
class Reconstructed:
    """Scores of a split's pictures."""

    pictures: int
    squared_error: float
    """Mean over all numbers at hidden pixels; pixels lie in -1..1."""
    mean_squared_error: float
    """The same for whoever always says the mean of each pixel over these pictures."""


@checked_numbers()
def score_reconstruction(
    model: nn.Module,
    split: PictureSplit,
    config: PictureConfig,
    *,
    max_pictures: int | None = None,
    precision: str = "auto",
    progress: bool = False,
) -> Reconstructed:
    """Reconstruct hidden pixels of a split, the same ones each time.

    Args:
        model: A Hierarchical Perceiver, see `evaluate.pictures`.
        split: Pictures.
        config: As in training: how much is hidden.
        max_pictures: Only so many, evenly spread; None for all.
        precision: As in training.
        progress: Show a bar with ETA.
    """
    split = thinned(split, max_pictures)
    device = next(model.parameters()).device
    mean = torch.from_numpy(split.pixels.mean(0, dtype=np.float64) / 127.5 - 1).float().to(device)
    total, baseline, count, was_training = 0.0, 0.0, 0, model.training
    model.eval()
    bar = tqdm(total=len(split), unit="picture", disable=not progress, desc="reconstructing")
    with torch.no_grad(), autocast(device, precision), bar:
        for batch in picture_batches(split, config):
            batch = batch.to(device)
            assert batch.hidden is not None
            errors = reconstruction_errors(model, batch.pixels, batch.hidden)
            total += float(errors.float().square().sum())
            baseline += float((batch.pixels - mean).flatten(1, 2)[batch.hidden].square().sum())
            count += errors.numel()
            bar.update(batch.targets)
    model.train(was_training)
    return Reconstructed(len(split), total / count, baseline / count)


@checked_numbers()
def position_decodability(model: nn.Module, split: PictureSplit, *, ridge: float = 1e-3) -> dict[str, float]:
    """How well a linear map reads a pixel's row and column off its learned position: cross-validated R squared.

    Only pixels that vary over the split count: nothing can be learned of the others' places. "row" and "column" are
    read by one map for all pixels; "row_in_group" and "column_in_group" by one for each group of the first block, and
    measured from the group's mean: groups have latents of their own, so nothing asks for the same code in all of them.

    Args:
        model: A Hierarchical Perceiver, see `evaluate.pictures`.
        split: Pictures of the kind that it was trained on.
        ridge: Strength of the map's regularisation, as a share of the positions' mean variance times their number.
    """
    config: HiPConfig = model.config  # pyright: ignore[reportAssignmentType]
    name = image_modality(config).name
    positions = model.get_parameter(f"modalities.{name}.positions").detach().cpu().double().numpy()
    varies = split.pixels.std(0).max(-1).flatten() > 0
    rows, columns = np.divmod(np.arange(len(positions)), split.shape[1])
    groups = np.arange(len(positions)) // config.layout(config.data_sets[0]).filled(name)
    result = {}
    for place, where in (("row", rows), ("column", columns)):
        y = where.astype(np.float64)
        result[place] = linear_decodability([(positions[varies], y[varies])], ridge=ridge)
        in_groups = [varies & (groups == group) for group in range(groups[-1] + 1)]
        parts = [(positions[chosen], y[chosen]) for chosen in in_groups]
        result[f"{place}_in_group"] = linear_decodability(parts, ridge=ridge)
    return result


@checked_numbers()
def linear_decodability(
    parts: list[tuple[Float[np.ndarray, "_ channels"], Float[np.ndarray, " _"]]], *, ridge: float
) -> float:
    """R squared of predictions of y by ridge regression on the other folds' x, each part by a map of its own.

    0 is no better than each part's mean; parts of fewer rows than folds don't count.
    """
    unexplained, total = 0.0, 0.0
    for x, y in (part for part in parts if len(part[1]) >= FOLDS):
        fold = np.random.default_rng(0).permutation(len(y)) % FOLDS
        predicted = np.empty_like(y)
        for k in range(FOLDS):
            predicted[fold == k] = _ridge(x[fold != k], y[fold != k], x[fold == k], ridge)
        unexplained += np.square(y - predicted).sum()
        total += np.square(y - y.mean()).sum()
    return float(1 - unexplained / total) if total else 0.0


def _ridge(x: np.ndarray, y: np.ndarray, at: np.ndarray, ridge: float) -> np.ndarray:
    mean, level = x.mean(0), y.mean()
    x = x - mean
    strength = ridge * len(x) * max(x.var(0).mean(), 1e-12)
    return (at - mean) @ np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ (y - level)) + level
