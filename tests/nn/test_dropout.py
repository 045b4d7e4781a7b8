import pytest
import torch

from perceivers.nn.dropout import Dropout, DropPath


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


def test_a_path_is_left_out_for_all_rows_of_a_sample() -> None:
    torch.manual_seed(5)
    x = torch.randn(3 * 1009, 2, 7)
    samples = DropPath(0.3, rows=3)(x).unflatten(0, (-1, 3))
    gone = (samples == 0).all(-1).all(-1)
    assert (gone.all(1) == gone.any(1)).all()
    assert abs(gone.float().mean() - 0.3) < 5 * (0.3 * 0.7 / 1009) ** 0.5
    assert torch.equal(samples[~gone], x.unflatten(0, (-1, 3))[~gone])  # not scaled up


def test_no_path_is_left_out_in_evaluation_or_with_no_share() -> None:
    x = torch.randn(7, 5, 3)
    assert DropPath(0.5).eval()(x) is x
    assert DropPath(0.0)(x) is x
    assert repr(DropPath(0.25, rows=2)) == "DropPath(0.25, rows=2)"
