import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest

from perceivers.models.ecp_config import ECPConfig

TINY: dict[str, Any] = {"max_seq_len": 13, "segment_len": 3, "compressed_len": 5}


def test_the_default_is_clean() -> None:
    config = ECPConfig()
    assert (config.pattern, config.rotary) == ("ecp", "all")
    assert not any([config.tied_kv, config.key_norm, config.first_output])


def test_which_positions_predict() -> None:
    assert ECPConfig(**TINY).num_targets == 13
    assert ECPConfig(**TINY).context_len == 0
    double = ECPConfig(**TINY, pattern="double", num_latents=5)
    assert (double.num_targets, double.context_len) == (5, 8)
    assert ECPConfig(dim=15 * 2, heads=3).head_dim == 10


def test_one_segment_may_be_all_there_is() -> None:
    assert ECPConfig(max_seq_len=13, segment_len=13).segment_len == 13
    assert ECPConfig(max_seq_len=13, segment_len=17, pattern="perceiver_ar", num_latents=5).segment_len == 17


def test_nothing_ends_the_positions() -> None:
    config = ECPConfig(**TINY)
    assert (config.position_axes, config.max_position) == (1, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segment_len": 0}, "segment_len=0 must be at least 1"),
        ({"segment_len": 17}, "segment_len=17 is 4 tokens longer than max_seq_len=13, .*: lower it to at most 13, or"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"dim": 14, "heads": 2}, r"heads=2 must divide dim=14 .* an even number .*: 14 / 2 = 7"),
        ({"dim": 14, "heads": 3}, r"heads=3 must divide dim=14 .* 14 / 3 = 4\.66667"),
        ({"dropout": 1.0}, r"dropout=1\.0 must lie in \[0, 1\)"),
        ({"pattern": "double", "num_latents": 5, "first_output": True}, "belongs to pattern 'ecp'; 'double' has one"),
        ({"num_latents": 5}, "num_latents=5 with pattern 'ecp': it has no latents.*leave num_latents out"),
        ({"pattern": "double"}, r"num_latents=None must lie in 1\.\.max_seq_len=13 for pattern 'double'"),
        ({"pattern": "ssplit", "num_latents": 14}, r"num_latents=14 must lie in 1\.\.max_seq_len=13"),
        ({"pattern": "perceiver_ar", "num_latents": 0}, r"num_latents=0 must lie in 1\.\.max_seq_len=13"),
        ({"pattern": "compressed", "num_latents": 9}, r"compressed_len=5 must lie in 1\.\.4, .* less num_latents=9"),
    ],
)
def test_numbers_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ECPConfig(**{**TINY, **changes})


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Types are not checked, as outside of tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
def test_unknown_pattern() -> None:
    unknown: Any = "triple"
    with pytest.raises(ValueError, match="'triple' must be one of ecp, double, compressed, ssplit, perceiver_ar"):
        ECPConfig(pattern=unknown)


def test_a_config_needs_no_torch() -> None:
    code = "import sys, perceivers.models.ecp_config; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
