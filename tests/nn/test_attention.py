import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from perceivers.nn.attention import Attention, SharedContext, attend, attend_shared
from perceivers.nn.masks import AttentionMask, length_mask
from perceivers.nn.positions import Rotation

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 0.03, torch.float16: 4e-3}
"""Of values and gradients of size 1 to 5; bfloat16 keeps 8 bits, float16 11."""


FLEX = ("causal-10-before", "all-conditions")
"""Masks for which the compiled kernel is tried: each is compiled anew."""


def qkv(queries: int, keys: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Two rows, three heads of five channels."""
    generator = torch.Generator().manual_seed(7)
    return [
        torch.randn(2, 3, n, 5, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for n in (queries, keys, keys)
    ]


def gradients(inputs: list[Tensor], mask: AttentionMask, backend: Any) -> list[Tensor]:
    """Result, and gradients of a weighted sum of its rows that may read something."""
    out = attend(*inputs, mask=mask, backend=backend)
    visible = mask.dense(out.shape[2], inputs[1].shape[2], out.device)
    rows = torch.ones(2, out.shape[2], dtype=torch.bool) if visible is None else visible.any(-1).expand(2, -1)
    kept = out * rows[:, None, :, None]
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    return [kept, *torch.autograd.grad((kept * weights.to(out.dtype)).sum(), inputs)]


def masks() -> list[Any]:
    ragged = torch.tensor([11, 4])
    pairs = torch.rand(2, 7, 11, generator=torch.Generator().manual_seed(9)) < 0.5
    pairs[:, :, 0] = True  # every query reads something
    cases = [("causal", 7, AttentionMask(causal=True))]
    cases += [(f"causal-{prefix}-before", 11 - prefix, AttentionMask(causal=True)) for prefix in (0, 1, 10)]
    for queries in (1, 7, 10, 11):  # from ten columns before the queries to none
        cases.append((f"ragged-{queries}", queries, AttentionMask(causal=True, keys=length_mask(ragged, 11))))
    cases.append(("keys", 7, AttentionMask(keys=length_mask(ragged, 11))))
    cases.append(("everything", 7, AttentionMask()))
    cases.append(("pairs", 7, AttentionMask(pairs=pairs)))
    cases.append(("all-conditions", 7, AttentionMask(causal=True, keys=length_mask(ragged, 11), pairs=pairs)))
    return [pytest.param(queries, mask, id=name) for name, queries, mask in cases]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("queries", "mask"), masks())
def test_back_ends_agree_in_values_and_gradients(queries: int, mask: AttentionMask, dtype: torch.dtype) -> None:
    judge = gradients(qkv(queries, 11), mask, "reference")
    for backend in ("reference", "sdpa", "auto"):
        for actual, expected in zip(gradients(qkv(queries, 11, dtype), mask, backend), judge, strict=True):
            assert actual.dtype == dtype
            scale = expected.abs().max().clamp(min=1)
            torch.testing.assert_close(actual.double() / scale, expected / scale, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize(("queries", "mask"), masks())
def test_odd_channels_and_single_matrices_in_bfloat16(queries: int, mask: AttentionMask) -> None:
    """With gradients and without, which take different ways."""
    conditions = {name: getattr(mask, name) for name in ("keys", "pairs")}
    small = replace(mask, **{name: None if kept is None else kept[:1] for name, kept in conditions.items()})
    exact = [tensor[:1, :1] for tensor in qkv(queries, 11)]
    rounded = [tensor[:1, :1] for tensor in qkv(queries, 11, torch.bfloat16)]
    expected = attend(*exact, mask=small, backend="reference")
    for inputs in (rounded, [tensor.detach() for tensor in rounded]):
        out = attend(*inputs, mask=small, backend="auto")
        assert out.shape == expected.shape
        torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[torch.bfloat16], rtol=0)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    wanted = torch.autograd.grad((expected * weights).sum(), exact)
    out = attend(*rounded, mask=small, backend="auto")
    for got, exactly in zip(torch.autograd.grad((out * weights.bfloat16()).sum(), rounded), wanted, strict=True):
        scale = exactly.abs().max().clamp(min=1)
        torch.testing.assert_close(got.double() / scale, exactly / scale, atol=TOLERANCE[torch.bfloat16], rtol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler, when it is first imported
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(("queries", "mask"), [case for case in masks() if case.id in FLEX])
def test_a_compiled_kernel_agrees(queries: int, mask: AttentionMask, dtype: torch.dtype) -> None:
    q, k, v = (x.detach() for x in qkv(queries, 11, dtype))
    visible = mask.dense(queries, 11, q.device)
    rows = torch.ones(2, queries, dtype=torch.bool) if visible is None else visible.any(-1).expand(2, -1)
    judge = attend(*(x.double() for x in (q, k, v)), mask=mask, backend="reference") * rows[:, None, :, None]
    actual = attend(q, k, v, mask=mask, backend="flex") * rows[:, None, :, None]
    torch.testing.assert_close(actual.double(), judge, atol=TOLERANCE[dtype], rtol=0)


def test_a_compiled_kernel_has_no_gradients_on_a_cpu() -> None:
    with pytest.raises(ValueError, match="'flex' has no backward pass on a CPU: train with 'auto' or 'sdpa'"):
        attend(*qkv(2, 3), mask=AttentionMask(), backend="flex")


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_attention_is_a_softmax_over_visible_keys(backend: Any) -> None:
    q, k, v = qkv(2, 3)
    out = attend(q, k, v, mask=AttentionMask(causal=True), backend=backend)
    scores = (q[1, 2, 0] * k[1, 2, :2]).sum(-1) / 5**0.5  # the first of two queries reads two of three keys
    torch.testing.assert_close(out[1, 2, 0], scores.softmax(0) @ v[1, 2, :2])


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_a_query_that_may_read_nothing_stays_finite(backend: Any) -> None:
    """Latents before the start of a short row: no number of theirs is used, but NaN would spread."""
    q, k, v = qkv(5, 7, torch.float32)
    keys = length_mask(torch.tensor([2, 0]), 7)
    out = attend(q, k, v, mask=AttentionMask(causal=True, keys=keys), backend=backend)
    assert out.isfinite().all()
    out[0, :, -1].sum().backward()
    for tensor in (q, k, v):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Types are not checked, as outside of tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_scores_that_float16_holds_only_once_they_are_scaled(backend: Any) -> None:
    q = k = torch.full((1, 1, 5, 64), 40.0).half()
    v = torch.randn(1, 1, 5, 64, generator=torch.Generator().manual_seed(0)).half()
    read = attend(q, k, v, mask=AttentionMask(keys=torch.tensor([[False, True, True, True, True]])), backend=backend)
    torch.testing.assert_close(read, v[:, :, 1:].mean(2, keepdim=True).expand_as(v), atol=2e-3, rtol=2e-3)


@pytest.mark.usefixtures("unchecked")
def test_unknown_back_end() -> None:
    unknown: Any = "xformers"
    with pytest.raises(ValueError, match="attention back end 'xformers': choose one of auto, reference, sdpa"):
        attend(*qkv(2, 3), mask=AttentionMask(), backend=unknown)


def test_heads_must_divide_channels() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide 10 attention channels evenly"):
        Attention(7, 5, heads=3, inner_dim=10)


@pytest.mark.parametrize("turned", [True, False])
def test_layer_gives_the_same_with_both_back_ends(turned: bool) -> None:
    torch.manual_seed(1)
    layer = Attention(7, 11, heads=3, inner_dim=15).double()
    x, context = torch.randn(2, 3, 7).double(), torch.randn(2, 5, 11).double()
    turns = {}
    if turned:
        steps = torch.arange(5)[None]
        settings = {"channels": 4, "max_wavelength": 13, "dtype": torch.float64}
        turns = {"rotate_q": Rotation.at(steps[:, 2:], **settings), "rotate_k": Rotation.at(steps, **settings)}
    results = []
    for backend in ("reference", "sdpa"):
        layer.backend = backend
        results.append(layer(x, context, mask=AttentionMask(causal=True), **turns))
    assert results[0].shape == (2, 3, 7)
    torch.testing.assert_close(results[1], results[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("spelled_out", [False, True])
@pytest.mark.parametrize("queries", [1, 5])
def test_a_shared_context_counts_as_each_rows_own(queries: int, spelled_out: bool, padded: bool) -> None:
    """Two contexts of 11 keys, three rows each with 7 keys of their own; the masks of pairs have no fused kernel."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(6, 2, n, 3, dtype=torch.float64) for n in (queries, 7, 7))
    shared_k, shared_v = (torch.randn(2, 2, 11, 3, dtype=torch.float64) for _ in range(2))
    real = torch.arange(11) >= torch.tensor([[0], [4]]) if padded else None
    mask = AttentionMask(causal=True)
    if spelled_out:
        mask = AttentionMask(pairs=mask.dense(queries, 7, q.device))
    together = attend_shared(q, k, v, mask=mask, shared=SharedContext(shared_k, shared_v, real))
    whole_k, whole_v = (torch.cat([one.repeat_interleave(3, 0), own], 2) for one, own in ((shared_k, k), (shared_v, v)))
    own = torch.ones(6, 7, dtype=torch.bool)
    keys = None if real is None else torch.cat([real.repeat_interleave(3, 0), own], 1)
    expected = attend(q, whole_k, whole_v, mask=AttentionMask(causal=True, keys=keys), backend="reference")
    torch.testing.assert_close(together, expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize(("queries", "mask"), masks())
def test_values_may_have_their_own_width(queries: int, mask: AttentionMask) -> None:
    torch.manual_seed(0)
    layer = Attention(7, 11, heads=3, inner_dim=6, value_dim=15)
    assert layer.to_kv.out_features == 21
    inputs = {"x": torch.randn(2, queries, 7), "context": torch.randn(2, 11, 11), "mask": mask}
    read = {}
    for layer.backend in ("sdpa", "reference"):
        read[layer.backend] = layer(**inputs)
    visible = mask.dense(queries, 11, torch.device("cpu"))
    real = torch.ones(2, queries, dtype=torch.bool) if visible is None else visible.any(-1).expand(2, -1)
    torch.testing.assert_close(read["sdpa"][real], read["reference"][real])


def test_heads_must_divide_the_channels_of_values() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide 14 attention channels evenly"):
        Attention(7, 11, heads=3, inner_dim=6, value_dim=14)


def test_queries_that_may_read_nothing_read_zeros_on_request() -> None:
    layer = Attention(7, 11, heads=3, inner_dim=6, zero_empty=True)
    x, context = torch.randn(2, 4, 7), torch.randn(2, 5, 11)
    keys = torch.tensor([[True, False, True, True, False], [False] * 5])
    read = layer(x, context, mask=AttentionMask(keys=keys))
    torch.testing.assert_close(read[1], layer.to_out.bias.expand(4, -1))
    layer.zero_empty = False
    assert torch.equal(read[0], layer(x, context, mask=AttentionMask(keys=keys))[0])
