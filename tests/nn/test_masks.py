import itertools

import pytest
import torch

from perceivers.nn.masks import (
    AttentionMask,
    additive,
    align_right,
    causal_mask,
    latent_mask,
    length_mask,
    masked_score,
)

CPU = torch.device("cpu")


def table(*rows: str) -> list[list[int]]:
    return [[int(cell) for cell in row.split()] for row in rows]


def test_causal_mask_is_aligned_at_the_bottom_right() -> None:
    assert causal_mask(2, 5, device=CPU).long().tolist() == table("1 1 1 1 0", "1 1 1 1 1")
    assert causal_mask(1, 3, device=CPU).long().tolist() == table("1 1 1")


def test_rows_of_one_position_see_each_other() -> None:
    assert causal_mask(4, 6, block=2, device=CPU).long().tolist() == table(
        "1 1 1 1 0 0", "1 1 1 1 0 0", "1 1 1 1 1 1", "1 1 1 1 1 1"
    )


def test_no_condition_is_no_matrix() -> None:
    assert AttentionMask().dense(3, 5, CPU) is None


def test_conditions_hold_together() -> None:
    keys = torch.tensor([[False, True, True, True], [True, True, True, True]])
    pairs = torch.tensor([[[True, True, True, False], [False, True, True, True]]])
    every = AttentionMask(causal=True, keys=keys, pairs=pairs).dense(2, 4, CPU)
    assert every is not None
    assert every.long().tolist() == [table("0 1 1 0", "0 1 1 1"), table("1 1 1 0", "0 1 1 1")]
    only_keys = AttentionMask(keys=keys).dense(3, 4, CPU)
    assert only_keys is not None
    assert only_keys.long().tolist() == [table(*["0 1 1 1"] * 3), table(*["1 1 1 1"] * 3)]


def test_length_mask_counts_from_the_right() -> None:
    assert length_mask(torch.tensor([0, 2, 5]), 5).long().tolist() == table("0 0 0 0 0", "0 0 0 1 1", "1 1 1 1 1")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32])
def test_align_right(dtype: torch.dtype) -> None:
    rows = torch.tensor(table("5 6 7 9 9", "1 2 3 4 5", "9 9 9 9 9", "8 9 9 9 9"), dtype=dtype)
    lengths = torch.tensor([3, 5, 0, 1])
    aligned = align_right(rows, lengths)
    assert aligned.dtype == dtype
    assert aligned.long().tolist() == table("0 0 5 6 7", "1 2 3 4 5", "0 0 0 0 0", "0 0 0 0 8")
    torch.testing.assert_close(align_right(torch.stack([rows, -rows], -1), lengths)[..., 1], -aligned)


def test_full_latents_need_no_matrix() -> None:
    assert latent_mask(5, None, device=CPU) == AttentionMask(causal=True)


def test_latents_read_real_ones_and_themselves() -> None:
    real = torch.tensor([[False, True, False, True]])
    pairs = latent_mask(4, real, device=CPU).pairs
    assert pairs is not None
    assert pairs[0].long().tolist() == table("1 0 0 0", "0 1 0 0", "0 1 1 0", "0 1 0 1")


def test_latents_of_one_position_read_each_other() -> None:
    pairs = latent_mask(4, torch.tensor([[False, False, True, True]]), block=2, device=CPU).pairs
    assert pairs is not None
    assert pairs[0].long().tolist() == table("1 0 0 0", "0 1 0 0", "0 0 1 1", "0 0 1 1")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("spelled_out", [False, True])
def test_parts_of_a_mask_make_the_whole(causal: bool, spelled_out: bool) -> None:
    torch.manual_seed(0)
    device = torch.device("cpu")
    pairs = torch.rand(2, 5, 13) > 0.3 if spelled_out else None
    mask = AttentionMask(causal=causal, keys=torch.rand(2, 13) > 0.3, pairs=pairs)
    for bounds in ([0, 13], [0, 4, 13], [0, 8, 13], [0, 9, 13], [0, 6, 10, 13], [0, 0, 13, 13]):
        parts = [
            mask.part(start, stop, queries=5, keys=13, device=device).dense(5, stop - start, device)
            for start, stop in itertools.pairwise(bounds)
        ]
        assert torch.equal(torch.cat(parts, -1), mask.dense(5, 13, device))


def test_keys_that_all_queries_come_after_need_no_mask() -> None:
    mask = AttentionMask(causal=True)
    device = torch.device("cpu")
    assert mask.part(0, 9, queries=5, keys=13, device=device) == AttentionMask()
    assert mask.part(3, 13, queries=5, keys=13, device=device) == AttentionMask(causal=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_masked_score_is_finite_with_any_score_added_and_counts_nothing(dtype: torch.dtype) -> None:
    masked = additive(torch.tensor([[[True, False]]]), torch.zeros(1, dtype=dtype))
    assert masked is not None
    assert masked.dtype == dtype
    for score in (-30_000.0, 0.0, 30_000.0):
        assert (masked + score).isfinite().all()
    assert masked.float().softmax(-1).flatten().tolist() == [1, 0]


def test_under_autocast_a_masked_score_fits_the_narrower_type() -> None:
    with torch.autocast("cpu", torch.float16):
        assert torch.tensor(masked_score(torch.zeros(1))).half().isfinite()
    assert masked_score(torch.zeros(1)) == masked_score(torch.zeros(1, dtype=torch.float64)) == -1e30
