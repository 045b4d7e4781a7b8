import pytest
import torch

from perceivers.nn import rows
from perceivers.nn.positions import Rotation
from perceivers.nn.rows import TakenRows, take_rows


def test_rows_and_their_gradient() -> None:
    torch.manual_seed(0)
    table = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[3, 3, 0], [6, 3, 1]])
    assert torch.equal(take_rows(table, ids), table[ids])
    weight = torch.randn(2, 3, 5, dtype=torch.float64)
    (take_rows(table, ids) * weight).sum().backward()
    taken = table.grad.clone()
    table.grad = None
    (table[ids] * weight).sum().backward()
    torch.testing.assert_close(taken, table.grad)
    assert not taken[[2, 4, 5]].any()


def test_many_bfloat16_gradients_add_up() -> None:
    torch.manual_seed(0)
    table = torch.zeros(3, 4, dtype=torch.bfloat16, requires_grad=True)
    ids = torch.randint(3, (30_001,))
    grad = torch.rand(30_001, 4).bfloat16()
    take_rows(table, ids).backward(grad)
    exact = torch.zeros(3, 4, dtype=torch.float64).index_add_(0, ids, grad.double())
    torch.testing.assert_close(table.grad.double(), exact, rtol=2**-8, atol=0)  # one rounding; PyTorch's stops at 256


@pytest.mark.parametrize("turned", [None, (1, 2)], ids=["all heads", "two heads"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared positions", "own positions"])
def test_keys_and_values_in_pieces(
    turned: tuple[int, ...] | None, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal to rows taken as a whole, then turned, with gradients; the last piece is shorter than the others."""
    torch.manual_seed(0)
    heads, widths, n = 3, (12, 15), 11
    table = torch.randn(7, sum(widths), dtype=torch.float64, requires_grad=True)
    ids, places = torch.randint(7, (2, n)), torch.randint(-5, 90, (1 if shared else 2, n))
    rotate = Rotation.at(places, channels=2, max_wavelength=100, heads=turned, dtype=torch.float64)
    expected = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in table[ids].split(widths, -1)]
    expected[0] = rotate(expected[0])
    weights = [torch.randn_like(x) for x in expected]
    gradient = torch.autograd.grad(expected, table, weights)
    monkeypatch.setattr(rows, "PIECE", 4 * 2 * sum(widths))
    taken = TakenRows(table, ids, heads, widths, rotate).whole()
    assert all(torch.equal(one, other) for one, other in zip(taken, expected, strict=True))
    torch.testing.assert_close(torch.autograd.grad(taken, table, weights), gradient)


def test_keys_and_values_that_do_not_turn() -> None:
    table = torch.arange(30.0).view(5, 6)
    keys, values = TakenRows(table, torch.tensor([[4, 0]]), 2, (2, 4)).whole()
    assert keys.tolist() == [[[[24.0], [0.0]], [[25.0], [1.0]]]]
    assert values.tolist() == [[[[26.0, 27.0], [2.0, 3.0]], [[28.0, 29.0], [4.0, 5.0]]]]


def test_many_bfloat16_gradients_of_keys_add_up() -> None:
    """Sums over pieces are float32 too."""
    torch.manual_seed(0)
    table = torch.zeros(3, 512, dtype=torch.bfloat16, requires_grad=True)
    ids = torch.randint(3, (1, 30_001))
    grads = [torch.rand(1, 1, 30_001, 256).bfloat16() for _ in range(2)]
    torch.autograd.backward(TakenRows(table, ids, 1, (256, 256)).whole(), grads)
    exact = torch.zeros(3, 512, dtype=torch.float64).index_add_(0, ids[0], torch.cat(grads, -1)[0, 0].double())
    assert table.grad is not None
    torch.testing.assert_close(table.grad.double(), exact, rtol=2**-8, atol=0)
