"""The numbers of the official Perceiver and Perceiver IO, every one that is stored."""

import numpy as np
import pytest
import torch

from perceivers.data.text import (
    BYTES_VOCAB_SIZE,
    PERCEIVER_MASK,
    PERCEIVER_OFFSET,
    PERCEIVER_PAD,
    decode_perceiver_bytes,
    encode_perceiver_bytes,
)

from .io_cases import cases, check, check_shapes
from .official import Case

CASES = cases()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.info["family"] != "fullsize_shapes" and case.kind != "bytes_tokenizer"],
    ids=lambda case: case.path.stem,
)
def test_numbers(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.info["family"] == "fullsize_shapes"], ids=lambda case: case.path.stem
)
def test_published_shapes(case: Case) -> None:
    check_shapes(case)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.kind == "bytes_tokenizer"], ids=lambda case: case.path.stem
)
def test_bytes(case: Case) -> None:
    for call in case.info["encode"]:
        assert encode_perceiver_bytes(call["text"]).tolist() == call["ids"]
    for call in case.info["encode_bytes"]:
        assert encode_perceiver_bytes(bytes.fromhex(call["hex"])).tolist() == call["ids"]
    for call in case.info["decode"]:
        assert decode_perceiver_bytes(np.array(call["ids"], dtype=np.int32)) == call["text"]
    assert case.info["special"]["pad"] == PERCEIVER_PAD
    assert case.info["special"]["mask"] == PERCEIVER_MASK
    assert case.info["vocab_size"] == PERCEIVER_OFFSET + BYTES_VOCAB_SIZE
