"""Smaller weights for inference: less memory to read for each token."""

from typing import Literal, get_args

import torch
from torch import nn

from perceivers.nn.linear import Int8Linear

Weights = Literal["float32", "bfloat16", "int8"]
"""`int8` rounds the weights of linear layers; embeddings, norms and everything that is computed stay float32."""


@torch.no_grad()
def lighten(model: nn.Module, weights: str) -> nn.Module:
    """The same model with weights of this kind, changed in place; it can't be trained after.

    Raises:
        ValueError: An unknown kind.
    """
    match weights:
        case "float32":
            return model.float()
        case "bfloat16":
            return model.bfloat16()
        case "int8":
            model.float()
            for module in list(model.modules()):
                for name, child in list(module.named_children()):
                    if isinstance(child, nn.Linear):
                        setattr(module, name, Int8Linear(child))
            return model
        case _:
            raise ValueError(f"weights={weights!r} must be one of {', '.join(get_args(Weights))}")
