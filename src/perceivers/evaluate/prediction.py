"""What a model predicts for a batch, and the cost of it."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from perceivers.data.batch import TokenBatch
from perceivers.models.perceiver_ar import latent_steps


class Targets(NamedTuple):
    """What the latents of a batch should predict."""

    labels: Int[Tensor, "batch latents"]
    mask: Bool[Tensor, "batch latents"]
    weights: Float[Tensor, "batch latents"] | None
    """How much each counts; None: all alike."""


def predict(
    model: Callable[..., Tensor], batch: TokenBatch, *, num_latents: int, project: bool = True
) -> tuple[Float[Tensor, "batch latents _"], Targets]:
    """Logits at the last `num_latents` inputs of every row (or what they are made of), and what comes after each.

    Of a model without latents, whose every input predicts, `num_latents` are the last ones that are asked.

    The one place where inputs and targets are shifted: a row of L tokens has L - 1 inputs, and each is followed by its
    target (`events_to_shifted_inputs_and_targets`, official experiment.py).
    """
    tokens, lengths = batch.tokens, batch.lengths - 1
    full = bool((lengths == tokens.shape[1] - 1).all())
    logits = model(
        tokens[:, :-1],
        positions=batch.positions[:, :-1],
        lengths=None if full else lengths,
        num_latents=min(num_latents, tokens.shape[1] - 1),
        **({} if project else {"project": False}),
    )
    return logits, targets_of(batch, num_latents=num_latents)


def targets_of(batch: TokenBatch, *, num_latents: int) -> Targets:
    """What the last `num_latents` inputs of every row should predict; masked where a row has fewer."""
    steps = latent_steps(batch.lengths - 1, min(num_latents, batch.tokens.shape[1] - 1))
    columns = (steps + 1).clamp(min=0)
    labels = (batch.tokens if batch.targets is None else batch.targets).gather(1, columns)
    return Targets(labels, steps >= 0, None if batch.weights is None else batch.weights.gather(1, columns))


def is_right(logits: Float[Tensor, "*tokens vocab"], labels: Int[Tensor, "*tokens"]) -> Bool[Tensor, "*tokens"]:
    """Whether the most likely prediction is the label; what is not a number predicts nothing."""
    best, index = logits.max(-1)  # of logits with a NaN, this and its place
    return (index == labels) & ~best.isnan()


def cross_entropy(
    logits: Float[Tensor, "*tokens vocab"],
    labels: Int[Tensor, "*tokens"],
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[Float[Tensor, "*tokens"], Float[Tensor, "*tokens"]]:
    """Cross-entropy a token, z-loss included, and the z-loss alone; nats, in float32 or wider.

    With smoothing s the target has 1 - s on the label and s / (V - 1) on each other token, and its entropy is
    subtracted, so that a perfect prediction costs nothing.

    Source: `compute_weighted_cross_entropy` of the official losses.py.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_z = logits.logsumexp(-1)
    right = logits.gather(-1, labels[..., None].long())[..., 0]
    loss = log_z - right
    if label_smoothing:
        on, off = 1 - label_smoothing, label_smoothing / (logits.shape[-1] - 1)
        entropy = -(on * math.log(on) + label_smoothing * math.log(off))
        loss = log_z - (on - off) * right - off * logits.sum(-1) - entropy
    z = z_loss * log_z.square()
    return loss + z, z
