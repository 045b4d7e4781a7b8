"""Functions with a backward pass of their own: what they say when that is to be differentiated, too."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


def first_order_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """The `backward` of a function that has no second derivatives, so that asking for them raises.

    PyTorch's `once_differentiable` raises only where the incoming gradient depends on something: of a function whose
    result is only summed, it returns gradients without a graph, and what is missing is missing in silence.
    """

    @wraps(backward)
    def checked(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # that is, create_graph=True
            raise NotImplementedError(
                "this attention has first derivatives only: for second ones (create_graph=True) build the model with "
                "backend='reference', and spread its context over no other process"
            )
        return backward(ctx, *grads)

    return checked
