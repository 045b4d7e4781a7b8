"""What a step minimises: a sum and a count, divided once over everything that a step sees."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from perceivers.data.batch import TokenBatch
from perceivers.models.perceiver_ar import latent_steps
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


class Targets(NamedTuple):
    """What the latents of a batch should predict."""

    labels: Int[Tensor, "batch latents"]
    mask: Bool[Tensor, "batch latents"]


def predict(
    model: nn.Module, batch: TokenBatch, *, num_latents: int
) -> tuple[Float[Tensor, "batch latents vocab"], Targets]:
    """Logits at the last `num_latents` inputs of every row, and what comes after each.

    The one place where inputs and targets are shifted: a row of L tokens has L - 1 inputs, and each is followed by its
    target (`events_to_shifted_inputs_and_targets`, official experiment.py).
    """
    tokens, lengths = batch.tokens, batch.lengths - 1
    num_latents = min(num_latents, tokens.shape[1] - 1)
    full = bool((lengths == tokens.shape[1] - 1).all())
    logits = model(
        tokens[:, :-1],
        positions=batch.positions[:, :-1],
        lengths=None if full else lengths,
        num_latents=num_latents,
    )
    steps = latent_steps(lengths, num_latents)
    labels = tokens.gather(1, (steps + 1).clamp(min=0))
    return logits, Targets(labels, steps >= 0)


def next_token(model: nn.Module, batch: TokenBatch, config: ObjectiveConfig, *, num_latents: int) -> Loss:
    """Cross-entropy of the token after each latent, summed over the batch."""
    logits, (labels, mask) = predict(model, batch, num_latents=num_latents)
    logits, labels = logits[mask].float() if logits.dtype == torch.bfloat16 else logits[mask], labels[mask]
    loss, z = cross_entropy(logits, labels, z_loss=config.z_loss, label_smoothing=config.label_smoothing)
    with torch.no_grad():
        if config.label_smoothing:
            nats = cross_entropy(logits, labels)[0].sum()
        else:
            nats = (loss - z).sum()
        correct = (logits.argmax(-1) == labels).sum()
    return Loss(sum=loss.sum(), nats=nats, z=z.sum().detach(), correct=correct, count=mask.sum())


def cross_entropy(
    logits: Float[Tensor, "*tokens vocab"],
    labels: Int[Tensor, "*tokens"],
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[Float[Tensor, "*tokens"], Float[Tensor, "*tokens"]]:
    """Cross-entropy a token, z-loss included, and the z-loss alone; nats.

    With smoothing s the target has 1 - s on the label and s / (V - 1) on each other token, and its entropy is
    subtracted, so that a perfect prediction costs nothing.

    Source: `compute_weighted_cross_entropy` of the official losses.py.
    """
    log_z = logits.logsumexp(-1)
    right = logits.gather(-1, labels[..., None].long())[..., 0]
    loss = log_z - right
    if label_smoothing:
        on, off = 1 - label_smoothing, label_smoothing / (logits.shape[-1] - 1)
        entropy = -(on * math.log(on) + label_smoothing * math.log(off))
        loss = log_z - (on - off) * right - off * logits.sum(-1) - entropy
    z = z_loss * log_z.square()
    return loss + z, z
