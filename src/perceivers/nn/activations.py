"""Activations of feed-forward layers and query MLPs, by the names in `nn.options`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from perceivers.nn.options import ActivationName, check_activation


def activate(x: Float[Tensor, "*shape"], name: ActivationName) -> Float[Tensor, "*shape"]:
    """Apply the activation called `name`.

    Raises:
        ValueError: No such activation; lists those that there are.
    """
    check_activation(name)
    return ACTIVATIONS[name](x)


class _SquaredReLU(torch.autograd.Function):
    """relu(x) squared, with two passes backward in place of autograd's five.

    It keeps x: what is made of x on the way would have no second derivative.
    """

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        positive = F.relu(x)
        return positive.mul_(positive)  # autocast on a GPU makes a power of a square, in float32

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return torch.addcmul(grad.new_zeros(()), grad, F.relu(x), value=2)


def _squared_relu(x: Tensor) -> Tensor:
    squared: Tensor = _SquaredReLU.apply(x)  # pyright: ignore[reportAssignmentType]
    return squared


ACTIVATIONS: dict[ActivationName, Callable[[Tensor], Tensor]] = {
    "sq_relu": _squared_relu,  # Primer, arXiv:2109.08668
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    # PyTorch's own stops at 20, where it is off by 2e-9.
    "softplus": lambda x: F.softplus(x, threshold=40),
    "squareplus": lambda x: (x + (x.square() + 4).sqrt()) / 2,
    "soft_sign": F.softsign,
    "sigmoid": torch.sigmoid,
    "log_sigmoid": F.logsigmoid,
    "tanh": torch.tanh,
    "hard_sigmoid": F.hardsigmoid,
    "hard_swish": F.hardswish,
    "hard_silu": F.hardswish,
    "hard_tanh": F.hardtanh,
    "sparse_plus": lambda x: torch.where(x < 1, (x.clamp(min=-1) + 1).square() / 4, x),
    "sparse_sigmoid": lambda x: (x.clamp(-1, 1) + 1) / 2,
    "identity": lambda x: x,
}
"""What each name computes, with the constants of `jax.nn`."""
