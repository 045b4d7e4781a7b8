import math
from typing import Any, get_args

import pytest
import torch

from perceivers.nn.activations import ACTIVATIONS, activate
from perceivers.nn.options import ActivationName, check_activation


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


EXPECTED: dict[str, Any] = {
    "sq_relu": lambda x: max(x, 0) ** 2,
    "relu": lambda x: max(x, 0),
    "relu6": lambda x: min(max(x, 0), 6),
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "elu": lambda x: x if x > 0 else math.expm1(x),
    "celu": lambda x: x if x > 0 else math.expm1(x),
    "selu": lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * math.expm1(x)),
    "gelu": lambda x: x * (1 + math.erf(x / 2**0.5)) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x * sigmoid(x),
    "swish": lambda x: x * sigmoid(x),
    "mish": lambda x: x * math.tanh(softplus(x)),
    "softplus": softplus,
    "squareplus": lambda x: (x + math.sqrt(x * x + 4)) / 2,
    "soft_sign": lambda x: x / (abs(x) + 1),
    "sigmoid": sigmoid,
    "log_sigmoid": lambda x: math.log(sigmoid(x)),
    "tanh": math.tanh,
    "hard_sigmoid": lambda x: min(max(x + 3, 0), 6) / 6,
    "hard_swish": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "hard_silu": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "hard_tanh": lambda x: min(max(x, -1), 1),
    "sparse_plus": lambda x: 0 if x <= -1 else x if x >= 1 else (x + 1) ** 2 / 4,
    "sparse_sigmoid": lambda x: min(max(x + 1, 0), 2) / 2,
    "identity": lambda x: x,
}
"""As `jax.nn` defines them."""


@pytest.mark.parametrize("name", EXPECTED)
def test_activations(name: Any) -> None:
    x = torch.tensor([-31, -7, -3.5, -1, -0.3, 0, 0.7, 1, 2.5, 3, 7, 23, 41], dtype=torch.float64)
    expected = torch.tensor([EXPECTED[name](value) for value in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(activate(x, name), expected, rtol=1e-13, atol=1e-15)


def test_every_name_is_computed_and_expected() -> None:
    assert set(ACTIVATIONS) == set(get_args(ActivationName)) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_gradients_are_finite_everywhere(name: Any) -> None:
    x = torch.tensor([-100, -1, 0, 1, 100.0], requires_grad=True)
    activate(x, name).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(
        ValueError, match=r"activation='geluu' is not built \(did you mean 'gelu'\?\): choose one of sq_relu,"
    ):
        check_activation("geluu")


def test_squared_relu_has_the_gradient_that_autograd_finds() -> None:
    x = torch.linspace(-3, 3, 7, dtype=torch.float64).requires_grad_()
    weights = torch.arange(1, 8, dtype=torch.float64)
    expected = torch.autograd.grad((weights * x.relu().square()).sum(), x)
    torch.testing.assert_close(torch.autograd.grad((weights * activate(x, "sq_relu")).sum(), x), expected)
