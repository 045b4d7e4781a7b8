"""What a step minimises: a sum and a count, divided once over everything that a step sees."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from perceivers.data.batch import TokenBatch
from perceivers.evaluate.prediction import cross_entropy, predict
from perceivers.train.config import ObjectiveConfig


@dataclass(frozen=True)
class Loss:
    """Sums over the tokens of a batch."""

    sum: Float[Tensor, ""]
    """What is differentiated: nats, smoothed, plus z-loss."""
    nats: Float[Tensor, ""]
    """Plain cross-entropy."""
    z: Float[Tensor, ""]
    """The z-loss in `sum`."""
    correct: Int[Tensor, ""]
    """Tokens whose most likely prediction is right."""
    count: Int[Tensor, ""]
    """Tokens."""

    def __add__(self, other: "Loss") -> "Loss":
        return Loss(
            sum=self.sum + other.sum,
            nats=self.nats + other.nats,
            z=self.z + other.z,
            correct=self.correct + other.correct,
            count=self.count + other.count,
        )

    def detach(self) -> "Loss":
        """The numbers alone."""
        return Loss(self.sum.detach(), self.nats.detach(), self.z, self.correct, self.count)


def next_token(model: nn.Module, batch: TokenBatch, config: ObjectiveConfig, *, num_latents: int) -> Loss:
    """Cross-entropy of the token after each latent, summed over the batch."""
    logits, (labels, mask) = predict(model, batch, num_latents=num_latents)
    logits, labels = logits[mask], labels[mask]
    loss, z = cross_entropy(logits, labels, z_loss=config.z_loss, label_smoothing=config.label_smoothing)
    with torch.no_grad():
        nats = cross_entropy(logits, labels)[0] if config.label_smoothing else loss - z
        correct = logits.argmax(-1) == labels
    return Loss(sum=loss.sum(), nats=nats.sum(), z=z.sum().detach(), correct=correct.sum(), count=mask.sum())
