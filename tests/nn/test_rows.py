import torch

from perceivers.nn.rows import take_rows


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
