"""Masked auto-encoding with a Hierarchical Perceiver: predict what stands at positions that the model does not see.

The paper (arXiv:2202.10890) learns its positions this way. Its code has neither the masking nor the loss, and ours may
differ from them. Chosen here: positions are drawn at random for each sample and modality; a masked position stays in
its group with its position embedding and with zeros for its value; the loss is the squared error of all numbers at
masked positions.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from perceivers.models.hip import HiP

Values = dict[str, Tensor]
Masks = dict[str, Tensor]


def masked_reconstruction(
    model: HiP,
    inputs: Mapping[str, Float[Tensor, "_ _ _"]],
    *,
    share: float | Mapping[str, float],
    data_set: str | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Values, Values, Masks]:
    """Reconstructions of inputs of which the model sees a part.

    Args:
        model: Sees only what is not masked.
        inputs: Every modality of the data set by name, each of batch x positions x channels.
        share: Of positions that are masked, in [0, 1]; for all modalities, or by name (none of those left out).
        data_set: Which one; None where the model knows one only.
        generator: Of what is masked, and of the processor's latents in training.

    Returns:
        Predictions, targets (the inputs) and masks (True where masked), each by modality: what `squared_error` takes.

    Raises:
        ValueError: A share outside [0, 1], or for an unknown modality; inputs that the model refuses.
    """
    shares = dict(share) if isinstance(share, Mapping) else dict.fromkeys(inputs, share)
    if unknown := [name for name in shares if name not in inputs]:
        raise ValueError(f"share names modality {unknown[0]!r}; the inputs are {', '.join(inputs)}")
    masks = {name: random_mask(x, shares.get(name, 0.0), generator=generator) for name, x in inputs.items()}
    batch = len(next(iter(inputs.values()), ()))
    chosen = model.choose_latents(batch, generator=generator) if model.training else None
    return model(inputs, data_set=data_set, masked=masks, chosen=chosen), dict(inputs), masks


def random_mask(
    x: Float[Tensor, "batch positions channels"], share: float, *, generator: torch.Generator | None = None
) -> Bool[Tensor, "batch positions"]:
    """True at randomly drawn positions of each sample.

    A sample has `share` x positions of them, rounded down or up at random so that their mean is exact: with one
    position and a share of 0.5, half of all samples have it masked.

    Raises:
        ValueError: A share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} must lie in [0, 1]")
    batch, positions, _ = x.shape
    count = (share * positions + torch.rand(batch, 1, generator=generator, device=x.device)).floor()
    rank = torch.rand(batch, positions, generator=generator, device=x.device).argsort(-1).argsort(-1)
    return rank < count


def squared_error(predictions: Values, targets: Values, masks: Masks) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Sum of the squared errors of all numbers at masked positions, and how many numbers these are.

    A modality counts as much as it has masked numbers. Their quotient is the mean squared error.
    """
    total, count = 0.0, 0
    for name, mask in masks.items():
        errors = (predictions[name] - targets[name])[mask]
        total, count = total + errors.square().sum(), count + errors.numel()
    total = torch.as_tensor(total)
    return total, torch.tensor(float(count), device=total.device)
