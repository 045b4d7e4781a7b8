"""What makes no sense is refused with one line."""

import math
import re
import subprocess
import sys
from typing import Any

import pytest

from perceivers.generate.config import DecodingConfig, SamplingConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1 must be 0 (greedy) or more, and finite; 1 draws as the model says"),
        ({"temperature": math.inf}, "temperature=inf must be 0 (greedy) or more, and finite"),
        ({"temperature": math.nan}, "temperature=nan must be 0 (greedy) or more, and finite"),
        ({"top_k": 0}, "top_k=0 must be at least 1 token; None draws from all"),
        ({"top_p": 0.0}, "top_p=0.0 must lie in (0, 1]; 1 draws from all, temperature 0 is greedy"),
        ({"top_p": 1.1}, "top_p=1.1 must lie in (0, 1]"),
        ({"top_p": math.nan}, "top_p=nan must lie in (0, 1]"),
        ({"min_p": -0.1}, "min_p=-0.1 must lie in [0, 1); 0 draws from all, temperature 0 is greedy"),
        ({"min_p": 1.0}, "min_p=1.0 must lie in [0, 1)"),
        ({"min_p": math.nan}, "min_p=nan must lie in [0, 1)"),
        (
            {"repetition_penalty": 0.0},
            "repetition_penalty=0.0 must be above 0, and finite; 1 is off, more than 1 repeats less",
        ),
        ({"repetition_penalty": -1.5}, "repetition_penalty=-1.5 must be above 0, and finite"),
        ({"repetition_penalty": math.inf}, "repetition_penalty=inf must be above 0, and finite"),
        ({"repetition_penalty": math.nan}, "repetition_penalty=nan must be above 0, and finite"),
    ],
)
def test_sampling_that_makes_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as caught:
        SamplingConfig(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_latents": 0}, "num_latents=0 must be at least 1; None takes as many as in training"),
        ({"refill": 0}, "refill=0 must be at least 1; None takes half of num_latents"),
        ({"refill": 0, "num_latents": 7}, "refill=0 must be at least 1"),
        (
            {"refill": 7, "num_latents": 7},
            "refill=7 must be less than num_latents=7: the others are room for new tokens until the next rebuild; "
            "None takes half",
        ),
        ({"refill": 11, "num_latents": 7}, "refill=11 must be less than num_latents=7"),
        ({"prompt_latents": 0}, "prompt_latents=0 must be at least 1; None takes as many as refill"),
        ({"prompt_latents": 8, "num_latents": 7}, "prompt_latents=8 must be at most num_latents=7"),
        ({"cached": False, "refill": 3}, "refill=3 is for kept keys and values, and cached=False keeps none"),
        ({"cached": False, "prompt_latents": 3}, "prompt_latents=3 is for kept keys"),
        ({"cached": False, "cache_dtype": "float32"}, "cache_dtype=float32 is for kept keys"),
        ({"cached": False, "compiled": True}, "compiled=True is for kept keys"),
    ],
)
def test_decoding_that_makes_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as caught:
        DecodingConfig(**values)
    assert "\n" not in str(caught.value)


def test_an_unknown_cache_dtype() -> None:
    config = DecodingConfig()
    object.__setattr__(config, "cache_dtype", "float16")  # as untyped callers may; tests check types at the door
    with pytest.raises(ValueError, match=r"^cache_dtype='float16' must be 'auto', 'float32' or 'bfloat16'$"):
        config.__post_init__()


def test_the_ends_of_what_is_allowed() -> None:
    SamplingConfig(temperature=0.0, top_k=1, top_p=1.0, min_p=0.0, repetition_penalty=1e-9)
    SamplingConfig(temperature=1e9, top_p=1e-9, min_p=0.999, repetition_penalty=1e9)
    DecodingConfig(num_latents=1, prompt_latents=1)
    DecodingConfig(num_latents=2, refill=1, prompt_latents=2, cache_dtype="bfloat16")
    DecodingConfig(num_latents=2, cached=False)
    DecodingConfig(refill=7, cache_dtype="float32")  # how many latents there are only the model knows


def test_importing_it_leaves_torch_alone() -> None:
    code = "import sys, perceivers.generate.config; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
