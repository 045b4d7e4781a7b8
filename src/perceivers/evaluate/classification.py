"""How often a model names the right class of a picture."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm

from perceivers.arguments import checked_numbers
from perceivers.data.picture_config import PictureConfig
from perceivers.data.picture_loader import picture_batches
from perceivers.data.picture_store import PictureSplit
from perceivers.device import autocast
from perceivers.evaluate.pictures import class_logits
from perceivers.evaluate.prediction import cross_entropy, is_right


@dataclass(frozen=True)
class Classification:
    """Scores of a split's pictures."""

    pictures: int
    correct: int
    nats: float
    """Sum over all pictures."""

    @property
    def accuracy(self) -> float:
        """Share of pictures whose most likely class is right."""
        return self.correct / self.pictures

    @property
    def standard_error(self) -> float | None:
        """Of the accuracy, if pictures are drawn one by one; None of a single one, which says nothing of others."""
        if self.pictures == 1:
            return None
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.pictures)

    @property
    def nats_per_picture(self) -> float:
        """Mean cross-entropy."""
        return self.nats / self.pictures


@checked_numbers()
def score_classes(
    model: nn.Module,
    split: PictureSplit,
    config: PictureConfig,
    *,
    max_pictures: int | None = None,
    precision: str = "auto",
    progress: bool = False,
) -> Classification:
    """Classify the pictures of a split, each once and as it is.

    Args:
        model: See `class_logits`.
        split: With labels.
        config: As in training, of which only `permutation` matters here, and how many pictures are read at once.
        max_pictures: Only so many, evenly spread; None for all.
        precision: As in training.
        progress: Show a bar with ETA.

    Raises:
        ValueError: The split has no labels.
    """
    if split.labels is None:
        raise ValueError(f"split {split.name!r} has no labels, so nothing says which class is right")
    split = thinned(split, max_pictures)
    device = next(model.parameters()).device
    correct, nats, was_training = 0, 0.0, model.training
    model.eval()
    bar = tqdm(total=len(split), unit="picture", disable=not progress, desc="classifying")
    with torch.no_grad(), autocast(device, precision), bar:
        for batch in picture_batches(split, config):
            batch = batch.to(device)
            assert batch.labels is not None
            logits = class_logits(model, batch.pixels)
            correct += int(is_right(logits, batch.labels).sum())
            nats += float(cross_entropy(logits, batch.labels)[0].sum())
            bar.update(batch.targets)
    model.train(was_training)
    return Classification(len(split), correct, nats)


def thinned(split: PictureSplit, most: int | None) -> PictureSplit:
    """At most so many pictures of a split, evenly spread."""
    step = 1 if most is None else max(1, -(-len(split) // most))
    labels = None if split.labels is None else split.labels[::step]
    return PictureSplit(split.name, split.pixels[::step], labels)
