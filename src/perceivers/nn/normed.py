"""A norm and the linear layer after it, which together keep their input alone for the backward pass."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from perceivers.nn.linear import Linear


def normed_linear(
    norm: nn.LayerNorm, linear: nn.Module, x: Float[Tensor, "*batch inputs"]
) -> Float[Tensor, "*batch outputs"]:
    """`linear(norm(x))`; what the norm makes of a long context is not kept, but computed again.

    Autograd would keep it beside the norm's input. A compiler decides such things itself. Of an input without gradient,
    such as pixels, only the weights are differentiated: with the norm's scale and shift moved into them, no gradient
    has the context's size.
    """
    if type(linear) is not Linear or not torch.is_grad_enabled():
        return linear(norm(x))
    if not x.requires_grad:
        bias = (linear.weight * norm.bias).sum(-1)  # a product would be rounded under autocast
        bias = bias if linear.bias is None else linear.bias + bias
        return F.linear(F.layer_norm(x, norm.normalized_shape, eps=norm.eps), linear.weight * norm.weight, bias)
    if torch.compiler.is_compiling():
        return linear(norm(x))
    made: Tensor = _NormedLinear.apply(  # pyright: ignore[reportAssignmentType]
        x, norm.weight, norm.bias, linear.weight, linear.bias, norm.eps
    )
    return made


class _NormedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, shift, weight, bias, eps):
        ctx.save_for_backward(x, scale, shift, weight, bias)
        out = F.linear(F.layer_norm(x, x.shape[-1:], scale, shift, eps), weight, bias)
        kind = x.device.type
        lower = {"enabled": True, "dtype": torch.get_autocast_dtype(kind)}
        ctx.eps, ctx.precision = eps, lower if torch.is_autocast_enabled(kind) else {"enabled": False}
        return out

    @staticmethod
    def backward(ctx, grad):
        *inputs, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # the gradient is to be differentiated, too
            return *_plain_gradients(ctx, inputs, weight, bias, grad), None
        with torch.enable_grad(), torch.autocast(grad.device.type, **ctx.precision):
            x, scale, shift = inputs = [tensor.detach().requires_grad_() for tensor in inputs]
            normed = F.layer_norm(x, x.shape[-1:], scale, shift, ctx.eps)
        rows = grad.flatten(0, -2)
        weight_grad = (rows.T @ normed.detach().flatten(0, -2).to(grad.dtype)).to(weight.dtype)
        normed_grad = (grad @ weight.to(grad.dtype)).to(normed.dtype)
        return (
            *torch.autograd.grad(normed, inputs, normed_grad),
            weight_grad,
            rows.sum(0).to(weight.dtype) if ctx.needs_input_grad[4] else None,
            None,
        )


def _plain_gradients(ctx, inputs: list[Tensor], weight: Tensor, bias: Tensor | None, grad: Tensor) -> Iterator[Any]:
    """The gradients as autograd computes them, with a graph of their own."""
    x, scale, shift = inputs
    with torch.autocast(grad.device.type, **ctx.precision):
        out = F.linear(F.layer_norm(x, x.shape[-1:], scale, shift, ctx.eps), weight, bias)
    needed = ctx.needs_input_grad[:5]
    tensors = (*inputs, weight, bias)
    wanted = [x for x, needs in zip(tensors, needed, strict=True) if x is not None and needs]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return (next(found) if needs else None for needs in needed)
