from typing import Any

import pytest
import torch

from perceivers import device
from perceivers.device import autocast, has_bfloat16, pick_device, seeded


@pytest.mark.parametrize(("cuda", "mps", "expected"), [(1, 1, "cuda"), (0, 1, "mps"), (0, 0, "cpu")])
def test_auto_prefers_a_gpu(cuda: int, mps: int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(mps))
    assert pick_device() == torch.device(expected)


def test_a_named_device() -> None:
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:999", "hpu", "cpu:x"])
def test_a_device_that_is_not_here(name: str) -> None:
    with pytest.raises(ValueError, match=f"device '{name}' can't be used here; try --device auto, or cpu") as error:
        pick_device(name)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("precision", "hardware", "dtype"),
    [
        ("float32", True, torch.float32),
        ("bfloat16", False, torch.bfloat16),
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
    ],
)
def test_precision_of_matrix_products(
    precision: Any, hardware: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "has_bfloat16", lambda _: hardware)
    weights = torch.ones(3, 3)
    with autocast(torch.device("cpu"), precision):
        assert (weights @ weights).dtype == dtype


def test_an_unknown_precision() -> None:
    with pytest.raises(ValueError, match="precision='fp16' must be 'auto', 'float32' or 'bfloat16'"):
        autocast(torch.device("cpu"), "fp16")


def test_hardware_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert has_bfloat16(torch.device("cuda"))
    assert not has_bfloat16(torch.device("mps"))
    for found in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: found)  # noqa: B023
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert has_bfloat16(torch.device("cpu")) == found


def test_seeded_numbers_leave_those_of_the_program_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(7)
    inside = torch.rand(2)
    torch.manual_seed(3)
    first = torch.rand(2)
    with seeded(7, torch.device("cpu")):
        assert torch.equal(torch.rand(2), inside)
        with seeded(11):
            torch.rand(13)
    with pytest.raises(RuntimeError), seeded(7):
        torch.rand(1) @ torch.rand(2)
    assert torch.equal(torch.cat([first, torch.rand(3)]), expected)
