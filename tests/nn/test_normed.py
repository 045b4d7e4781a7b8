from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from perceivers.nn.linear import Int8Linear, Linear
from perceivers.nn.normed import normed_linear


def layers(bias: bool = True) -> tuple[nn.LayerNorm, Linear]:
    torch.manual_seed(0)
    norm = nn.LayerNorm(13, eps=1e-3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm, Linear(13, 7, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leaf", [True, False])
def test_same_numbers_and_gradients_as_one_after_the_other(bias: bool, leaf: bool) -> None:
    norm, linear = (module.double() for module in layers(bias))
    x = torch.randn(3, 5, 13, dtype=torch.float64, requires_grad=leaf)
    weights = torch.randn(3, 5, 7, dtype=torch.float64)
    inputs = [*([x] if leaf else []), *norm.parameters(), *linear.parameters()]
    ours, plain = normed_linear(norm, linear, x), linear(norm(x))
    torch.testing.assert_close(ours, plain, rtol=0, atol=0 if leaf else 1e-13)
    expected = torch.autograd.grad((plain * weights).sum(), inputs)
    for got, wanted in zip(torch.autograd.grad((ours * weights).sum(), inputs), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-13)


class Shapes(TorchDispatchMode):
    """Remembers the shapes of what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= {tuple(tensor.shape) for tensor in tree_leaves(out) if isinstance(tensor, torch.Tensor)}
        return out


def test_an_input_without_gradient_has_none_of_its_size() -> None:
    norm, linear = layers()
    x = torch.randn(101, 13)
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = normed_linear(norm, linear, x), linear(norm(x))
    torch.testing.assert_close(ours, plain, rtol=0.02, atol=0.02)
    inputs = [*norm.parameters(), *linear.parameters()]
    with Shapes() as shapes:
        expected = torch.autograd.grad(plain.float().square().sum(), inputs)
    assert (101, 13) in shapes.seen
    with Shapes() as shapes:
        gradients = torch.autograd.grad(ours.float().square().sum(), inputs)
    assert (101, 7) in shapes.seen
    assert (101, 13) not in shapes.seen
    for got, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0.02, atol=0.02 * wanted.abs().max().item())


@pytest.mark.parametrize("half", [True, False])
def test_under_autocast(half: bool) -> None:
    """As one after the other: of an input in bfloat16 the norm is, too."""
    norm, linear = layers()
    x = torch.randn(3, 5, 13).to(torch.bfloat16 if half else torch.float32).requires_grad_()
    inputs = [x, *norm.parameters(), *linear.parameters()]
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = normed_linear(norm, linear, x), linear(norm(x))
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, plain)
    expected = torch.autograd.grad(plain.float().square().sum(), inputs)
    for got, wanted in zip(torch.autograd.grad(ours.float().square().sum(), inputs), expected, strict=True):
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got.float(), wanted.float(), rtol=0.02, atol=0.02 * wanted.abs().max().item())


def test_doubles_stay_doubles_under_autocast() -> None:
    norm, linear = (module.double() for module in layers())
    x = torch.randn(3, 13, dtype=torch.float64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours = normed_linear(norm, linear, x)
    assert ours.dtype == torch.float64
    (grad,) = torch.autograd.grad(ours.sum(), x)
    torch.testing.assert_close(grad, torch.autograd.grad(linear(norm(x)).sum(), x)[0], rtol=1e-12, atol=1e-13)


def test_only_the_input_is_kept() -> None:
    norm, linear = layers()
    x, kept = torch.randn(101, 13, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        normed_linear(norm, linear, x)
    assert [tensor.shape for tensor in kept if len(tensor) == 101] == [x.shape]
    assert kept[0].data_ptr() == x.data_ptr()


def test_smaller_weights_and_inference() -> None:
    norm, linear = layers()
    x = torch.randn(2, 13)
    with torch.inference_mode():
        assert torch.equal(normed_linear(norm, linear, x), linear(norm(x)))
        small = Int8Linear(linear)
        assert torch.equal(normed_linear(norm, small, x), small(norm(x)))
