import pytest
import torch
from torch import nn

from perceivers.nn.linear import Int8Linear, Linear


@pytest.mark.parametrize("shape", [(1, 1, 7), (7,), (3, 7), (2, 3, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_rows_of_any_number(shape: tuple[int, ...], dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = Linear(7, 5, bias=bias).to(dtype), torch.randn(shape).to(dtype)
    expected = nn.functional.linear(x.float(), layer.weight.float(), layer.bias.float() if bias else None)
    tolerance = 1e-6 if dtype == torch.float32 else 0.03
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            result = layer(x)
            assert result.dtype == dtype
            torch.testing.assert_close(result.float(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("shape", [(1, 1, 64), (3, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_rounded_weights(shape: tuple[int, ...], bias: bool) -> None:
    """Steps of 1/127 of the largest weight: errors of random signs over 64 inputs."""
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 32, bias=bias), torch.randn(shape)
    layer.weight.data[5] = 0  # no scale to divide by
    rounded = Int8Linear(layer)
    assert rounded.weight.dtype == torch.int8
    with torch.no_grad():
        result = rounded(x)
    assert result.shape == (*shape[:-1], 32)
    assert torch.isfinite(result).all()
    error = (result - layer(x)).detach().abs()
    assert 0 < error.max() < 0.02


def test_rounded_weights_of_zeros_in_float16() -> None:
    layer = nn.Linear(7, 5).half()
    layer.weight.data[3] = 0
    with torch.no_grad():
        result = Int8Linear(layer)(torch.ones(2, 7).half())
    assert result[:, 3].tolist() == [layer.bias[3].item()] * 2


def test_rounding_is_to_the_nearest() -> None:
    layer = nn.Linear(3, 1)
    layer.weight.data = torch.tensor([[1.27, 0.0149, -0.0151]])
    rounded = Int8Linear(layer)
    assert rounded.weight.tolist() == [[127, 1, -2]]
    assert rounded.scale.item() == pytest.approx(0.01)


@pytest.mark.parametrize("inputs", [7, 8, 14, 40])
def test_rows_of_rounded_weights_of_any_length(inputs: int) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(inputs, 5), torch.randn(1, inputs)
    with torch.no_grad():
        assert (Int8Linear(layer)(x) - layer(x)).abs().max() < 0.05
