from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from perceivers.nn import attention, partial
from perceivers.nn.attention import attend, attend_rows
from perceivers.nn.masks import AttentionMask, causal_mask, length_mask
from perceivers.nn.partial import lower_right
from perceivers.nn.positions import Rotation
from perceivers.nn.rows import TakenRows


def test_merging_two_kernels_costs_no_precision_in_bfloat16() -> None:
    """Where values share an offset, gradients of queries and keys are small differences of large numbers."""
    torch.manual_seed(1)
    queries, keys = 67, 211
    inputs = [torch.randn(2, 3, n, 32).bfloat16() for n in (queries, keys, keys)]
    inputs[2] += 2
    visible = causal_mask(queries, keys, device=torch.device("cpu"))

    def derive(attention: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        return list(torch.autograd.grad(attention(*leaves).square().sum(), leaves))

    def one_kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bias = torch.zeros(queries, keys, dtype=q.dtype).masked_fill(~visible, -1e30)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    exact = derive(one_kernel, torch.float64)
    one = derive(one_kernel, torch.bfloat16)
    merged = derive(lambda q, k, v: lower_right(q, k, v, None), torch.bfloat16)
    for a, b, expected in zip(merged, one, exact, strict=True):
        assert (a.double() - expected).norm() < 1.5 * (b.double() - expected).norm()


@pytest.mark.parametrize("ragged", [False, True])
def test_gradients_of_a_long_prefix_are_computed_in_parts(ragged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = AttentionMask(causal=True, keys=length_mask(torch.tensor([31, 13]), 31) if ragged else None)
    monkeypatch.setattr(partial, "LEAST_COLUMNS", 7)  # a prefix of 26: three parts, and one of 5
    monkeypatch.setattr(partial, "KEYS_AT_ONCE", 9)  # of two rows
    torch.manual_seed(7)
    inputs = [torch.randn(2, 3, n, 5, dtype=torch.float64, requires_grad=True) for n in (5, 31, 31)]
    weights = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    results = []
    for backend in ("sdpa", "reference"):
        out = attend(*inputs, mask=mask, backend=backend)
        results.append([out, *torch.autograd.grad((out * weights).sum(), inputs)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("padded", [False, True])
def test_no_matrix_of_queries_and_keys_on_the_fast_path(padded: bool, largest_tensor: Any) -> None:
    queries, keys = 67, 331
    inputs = [torch.randn(1, 1, n, 5, requires_grad=True) for n in (queries, keys, keys)]
    real = length_mask(torch.tensor([301]), keys) if padded else None
    sizes = {}
    for backend in ("reference", "sdpa"):
        with largest_tensor() as seen:
            attend(*inputs, mask=AttentionMask(causal=True, keys=real), backend=backend).sum().backward()
        sizes[backend] = seen.elements
    assert sizes["reference"] >= queries * keys  # the recorder sees such a matrix where there is one
    assert sizes["sdpa"] < queries * keys


ROWS, HEADS, WIDTHS = 11, 3, (24, 24)
"""Ids, heads, and channels of keys and of values, all heads together."""


def taken(dtype: torch.dtype, *, n: int, turned: bool = True) -> TakenRows:
    """Two rows of tokens."""
    torch.manual_seed(0)
    table = torch.randn(ROWS, sum(WIDTHS), dtype=torch.float64).to(dtype).requires_grad_()
    rotate = Rotation.at(torch.arange(n)[None], channels=4, max_wavelength=50, dtype=dtype) if turned else None
    return TakenRows(table, torch.randint(ROWS, (2, n)), HEADS, WIDTHS, rotate)


def derived(read: Callable[[Tensor], Tensor], rows: TakenRows, queries: int) -> list[Tensor]:
    """What queries read, and gradients of theirs and of the table's."""
    torch.manual_seed(1)
    q = torch.randn(2, HEADS, queries, 8, dtype=torch.float64).to(rows.table.dtype).requires_grad_()
    weights = torch.randn(2, HEADS, queries, 8, dtype=torch.float64).to(q.dtype)
    out = read(q)
    return [out, *torch.autograd.grad((out * weights).sum(), [q, rows.table])]


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_keys_and_values_taken_part_by_part(
    dtype: torch.dtype, ragged: bool, turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal to those taken as a whole, with gradients; a prefix of 26 is read in three parts, and one of 5."""
    monkeypatch.setattr(partial, "LEAST_COLUMNS", 5)
    monkeypatch.setattr(partial, "KEYS_AT_ONCE", 14)  # of two rows
    monkeypatch.setattr(attention, "KEPT_SCORES", 0)
    mask = AttentionMask(causal=True, keys=length_mask(torch.tensor([31, 13]), 31) if ragged else None)
    rows, exact = taken(dtype, n=31, turned=turned), taken(torch.float64, n=31, turned=turned)
    judge = derived(lambda q: attend(q, *exact.whole(), mask=mask, backend="reference"), exact, 5)
    read = derived(lambda q: attend_rows(q, rows, mask=mask), rows, 5)
    tolerance = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 0.02}[dtype]
    for actual, expected in zip(read, judge, strict=True):
        assert actual.dtype == dtype
        assert (actual.double() - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize(
    ("mask", "queries", "backend"),
    [
        (AttentionMask(causal=True), 5, "reference"),
        (AttentionMask(causal=True), 1, "auto"),
        (AttentionMask(causal=True), 31, "auto"),
        (AttentionMask(), 5, "auto"),
        (AttentionMask(pairs=causal_mask(5, 31, device=torch.device("cpu"))[None]), 5, "auto"),
    ],
    ids=["another back end", "one query", "as many queries", "not causal", "pairs"],
)
def test_rows_that_are_taken_as_a_whole(mask: AttentionMask, queries: int, backend: Any) -> None:
    rows = taken(torch.float64, n=31)
    judge = derived(lambda q: attend(q, *rows.whole(), mask=mask, backend="reference"), rows, queries)
    read = derived(lambda q: attend_rows(q, rows, mask=mask, backend=backend), rows, queries)
    for actual, expected in zip(read, judge, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_nothing_as_large_as_the_keys_is_made(monkeypatch: pytest.MonkeyPatch, largest_tensor: Any) -> None:
    """Forward and backward: the largest arrays are the parts."""
    monkeypatch.setattr(partial, "LEAST_COLUMNS", 64)
    monkeypatch.setattr(partial, "KEYS_AT_ONCE", 64)
    rows, sizes = taken(torch.float32, n=701), {}
    for name, read in {
        "whole": lambda q: attend(q, *rows.whole(), mask=AttentionMask(causal=True)),
        "parts": lambda q: attend_rows(q, rows, mask=AttentionMask(causal=True)),
    }.items():
        with largest_tensor() as seen:
            derived(read, rows, 5)
        sizes[name] = seen.elements
    assert sizes["whole"] >= 2 * 701 * WIDTHS[1]
    assert sizes["parts"] == 2 * 64 * sum(WIDTHS)
