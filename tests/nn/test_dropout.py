import pytest
import torch

from perceivers.nn.dropout import Dropout


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_share_and_mean(share: float) -> None:
    torch.manual_seed(1)
    x = torch.ones(101, 1009)
    dropped = Dropout(share)(x)
    deviation = (share * (1 - share) / x.numel()) ** 0.5
    assert abs((dropped == 0).float().mean() - share) < 1 / 512 + 5 * deviation  # shares are multiples of 1/256
    assert len(dropped.unique()) == 2
    assert abs(dropped.mean() - 1) < 5 * deviation / (1 - share)


def test_nothing_is_dropped_in_evaluation_or_with_no_share() -> None:
    x = torch.randn(7, 5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_gradients_go_where_values_went(dtype: torch.dtype) -> None:
    x = torch.ones(13, 11, dtype=dtype, requires_grad=True)
    out = Dropout(0.5)(x)
    out.sum().backward()
    assert out.dtype == dtype
    assert torch.equal(x.grad, out.detach())


def test_the_seed_decides() -> None:
    layer, x = Dropout(0.5), torch.ones(97)
    torch.manual_seed(3)
    first = layer(x)
    assert not torch.equal(layer(x), first)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)


def test_it_says_its_share() -> None:
    assert repr(Dropout(0.25)) == "Dropout(0.25)"
