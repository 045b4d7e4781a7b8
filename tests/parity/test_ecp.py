"""The numbers of the authors' ECP models: every layer, logits, gradients, who depends on whom, generated tokens."""

import pytest
import torch

from .ecp_cases import Case, cases, check

CASES = cases()


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=[case.path.stem for case in CASES])
def test_case(case: Case, dtype: torch.dtype, backend: str) -> None:
    check(case, dtype, backend)
