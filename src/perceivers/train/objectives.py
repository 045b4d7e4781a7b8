"""What a step minimises: a sum and a count, divided once over everything that a step sees."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perceivers.data.batch import TokenBatch
from perceivers.data.masked_text import MaskedBatch
from perceivers.data.picture_loader import PictureBatch
from perceivers.data.warps import FlowBatch
from perceivers.evaluate.masked import masked_logits
from perceivers.evaluate.pictures import class_logits, reconstruction_errors
from perceivers.evaluate.prediction import cross_entropy, is_right, predict, targets_of
from perceivers.models.config import ModelConfig, SequenceConfig
from perceivers.models.cost import MOST_LOGITS
from perceivers.models.swept import swept
from perceivers.train.config import CrossEntropy, EndPointError, ObjectiveConfig, Reconstruction, num_targets

Batch = TokenBatch | MaskedBatch | PictureBatch | FlowBatch


@dataclass(frozen=True)
class Loss:
    """Sums over the targets of a batch."""

    sum: Float[Tensor, ""]
    """What is differentiated."""
    shown: dict[str, Float[Tensor, ""]]
    """What is logged, without gradients; the first is shown while a model trains."""

    def __add__(self, other: "Loss") -> "Loss":
        shown = {name: value + other.shown[name] for name, value in self.shown.items()}
        return Loss(self.sum + other.sum, shown)

    def reduced(self, add: Callable[[Tensor], Tensor]) -> "Loss":
        """With the sums of other processes, which `add` adds; all of them travel together."""
        first, *others = add(torch.stack([self.sum, *(value.to(self.sum) for value in self.shown.values())]))
        return Loss(first, dict(zip(self.shown, others, strict=True)))

    def detach(self) -> "Loss":
        """The numbers alone."""
        return Loss(self.sum.detach(), self.shown)


def objective_loss(model: nn.Module, batch: Batch, config: ObjectiveConfig) -> Loss:
    """The loss of a batch, summed; which one follows from the objective and from what the batch holds.

    Raises:
        ValueError: The objective is not for such data.
    """
    match config, batch:
        case CrossEntropy(), TokenBatch():
            targets = num_targets(model.config, config)  # pyright: ignore[reportArgumentType]
            read = model if config.sweep == 1 else partial(swept, model)  # pyright: ignore[reportArgumentType]
            rows, (labels, mask, weights) = predict(read, batch, num_latents=targets, project=False)
            weights = None if weights is None else weights[mask]
            return output_loss(model.logits, rows[mask], labels[mask], config, weights)  # pyright: ignore
        case CrossEntropy(), MaskedBatch():
            return label_loss(masked_logits(model, batch), batch.labels[batch.masked], config)
        case CrossEntropy(), PictureBatch(labels=Tensor() as labels):
            return label_loss(class_logits(model, batch.pixels, hidden=batch.hidden), labels, config)
        case EndPointError(), FlowBatch():
            return _sum_of("end_point_error", (model(batch.frames) - batch.flow).norm(dim=-1))
        case Reconstruction(), PictureBatch(hidden=Tensor() as hidden):
            return _sum_of("squared_error", reconstruction_errors(model, batch.pixels, hidden).square())
    raise ValueError(f"objective {config.kind!r} can't be computed from a {type(batch).__name__} such as this")


def count_targets(batch: Batch, model: ModelConfig, objective: ObjectiveConfig) -> int:
    """What the loss of a batch is divided by: tokens, pictures, pixels, or hidden numbers."""
    match batch, objective:
        case TokenBatch(), _:
            assert isinstance(model, SequenceConfig)
            return int(targets_of(batch, num_latents=num_targets(model, objective)).mask.sum())
        case PictureBatch(hidden=Tensor() as hidden), Reconstruction():
            return int(hidden.sum()) * batch.pixels.shape[-1]
        case _:
            return batch.targets


def output_loss(
    output: nn.Linear,
    rows: Float[Tensor, "targets dim"],
    labels: Int[Tensor, " targets"],
    config: CrossEntropy,
    weights: Float[Tensor, " targets"] | None = None,
) -> Loss:
    """The loss of what an output layer makes of `rows`; of many logits few exist at once, computed twice each."""
    at_once = max(1, MOST_LOGITS // output.out_features)
    if len(rows) <= at_once:
        return label_loss(output(rows), labels, config, weights)

    def part(rows: Tensor, labels: Tensor, weights: Tensor | None) -> Loss:
        return label_loss(output(rows), labels, config, weights)

    of_each = itertools.repeat(None) if weights is None else weights.split(at_once)
    pieces = zip(rows.split(at_once), labels.split(at_once), of_each)  # noqa: B905
    losses: list[Loss] = [checkpoint(part, *piece, use_reentrant=False) for piece in pieces]  # pyright: ignore
    return sum(losses[1:], losses[0])


def label_loss(
    logits: Float[Tensor, "targets classes"],
    labels: Int[Tensor, " targets"],
    config: CrossEntropy,
    weights: Float[Tensor, " targets"] | None = None,
) -> Loss:
    """Cross-entropy of one label a target; what is shown is not weighted."""
    loss, z = cross_entropy(logits, labels, z_loss=config.z_loss, label_smoothing=config.label_smoothing)
    with torch.no_grad():
        nats = cross_entropy(logits, labels)[0] if config.label_smoothing else loss - z
        correct = is_right(logits, labels)
    total = loss.sum() if weights is None else (loss * weights).sum()
    return Loss(total, {"nats": nats.sum(), "z_loss": z.sum().detach(), "accuracy": correct.sum()})


def _sum_of(name: str, errors: Float[Tensor, "..."]) -> Loss:
    total = errors.sum()
    return Loss(total, {name: total.detach()})
