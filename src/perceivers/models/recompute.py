"""Activation checkpointing (Chen et al. 2016, https://arxiv.org/abs/1604.06174).

What a layer computes is not kept for the backward pass, but computed again.
"""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from perceivers.models.ecp import ECPLayer
from perceivers.nn.blocks import CrossAttentionBlock, SelfAttentionBlock


def recomputed_layers(model: nn.Module) -> list[SelfAttentionBlock | ECPLayer]:
    """The layers of the model's stacks, whose inputs are all that `recompute_layers` keeps of them."""
    return [module for module in model.modules() if isinstance(module, SelfAttentionBlock | ECPLayer)]


def recompute_layers(model: nn.Module) -> None:
    """Make all layers keep their inputs alone while they train; gradients stay the same to the bit.

    A cross-attend keeps the keys and values of its context as well, unless they are taken by id.
    """
    for layer in recomputed_layers(model):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    for module in model.modules():
        if isinstance(module, CrossAttentionBlock):
            module.read = partial(checkpoint, module.read, use_reentrant=False)
            module.read_rows = partial(checkpoint, module.read_rows, use_reentrant=False)
