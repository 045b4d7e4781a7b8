"""One process here; `tests/train/test_parallel.py` has several."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from perceivers.nn import spread
from perceivers.nn.attention import attend
from perceivers.nn.masks import AttentionMask
from perceivers.nn.spread import Spread, columns_of


@pytest.fixture
def group() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("seq_len", "num_latents", "size", "expected"),
    [
        (40, 3, 4, [(0, 10), (10, 20), (20, 30), (30, 40)]),
        (41, 3, 4, [(0, 10), (10, 20), (20, 31), (31, 41)]),
        (40, 22, 4, [(0, 6), (6, 12), (12, 18), (18, 40)]),  # the latents' own columns stay together
        (7, 7, 3, [(0, 0), (0, 0), (0, 7)]),
        (5, 1, 1, [(0, 5)]),
    ],
)
def test_columns_are_shared(seq_len: int, num_latents: int, size: int, expected: list[tuple[int, int]]) -> None:
    shares = [columns_of(rank, size, seq_len=seq_len, num_latents=num_latents) for rank in range(size)]
    assert [(share.start, share.stop) for share in shares] == expected


@pytest.mark.parametrize("chunk", [4, 100])
@pytest.mark.parametrize(
    "mask",
    [
        AttentionMask(),
        AttentionMask(causal=True),
        AttentionMask(causal=True, keys=torch.arange(13) >= torch.tensor([[0], [6]])),
        AttentionMask(pairs=torch.arange(13) <= torch.tensor([[[2], [5], [5], [9], [12]]]).expand(2, -1, -1)),
    ],
    ids=["all", "causal", "padded", "pairs"],
)
def test_of_one_process_it_is_attention(
    mask: AttentionMask, chunk: int, group: dist.ProcessGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "CHUNK", chunk)
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, n, d, dtype=torch.float64, requires_grad=True) for n, d in ((5, 4), (13, 4), (13, 4))]
    weight = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    found = Spread(group).attend(*inputs, mask=mask)
    expected = attend(*inputs, mask=mask, backend="reference")
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad((found * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_no_keys_count_nothing(group: dist.ProcessGroup) -> None:
    q, nothing = torch.randn(1, 2, 3, 4, requires_grad=True), torch.randn(1, 2, 0, 4, requires_grad=True)
    out, lse = spread._in_chunks(q, nothing, nothing, AttentionMask(causal=True))
    assert not out.any()
    assert (lse < -1e29).all()
    Spread(group).attend(q, nothing, nothing, mask=AttentionMask()).sum().backward()
    assert q.grad is not None
    assert not q.grad.any()
