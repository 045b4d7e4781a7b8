"""Ours against the official Hierarchical Perceiver: every case, both precisions, both back ends."""

import pytest
import torch

from perceivers.nn.attention import Backend

from .hip_cases import Case, cases, check


def combinations() -> list:
    found = []
    for case in cases():
        name = case.path.stem
        if case.info["family"] == "fullsize_shapes":
            found.append(pytest.param(case, torch.float32, "auto", id=name))
            continue
        for dtype in (torch.float32, torch.float64):
            for backend in ("reference", "sdpa"):
                label = f"{name}-{str(dtype).removeprefix('torch.')}-{backend}"
                found.append(pytest.param(case, dtype, backend, id=label))
    return found


@pytest.mark.parametrize(("case", "dtype", "backend"), combinations())
def test_case(case: Case, dtype: torch.dtype, backend: Backend) -> None:
    check(case, dtype, backend)
