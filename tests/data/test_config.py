import subprocess
import sys

import pytest

from perceivers.data.config import CopyConfig, DataConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1 row"),
        ({"min_crop": 0}, "min_crop=0 must be at least 1 input"),
        ({"min_crop": 3, "crop": "cover"}, "min_crop has no meaning with crop='cover', whose crops are fixed"),
        (
            {"min_crop": 3, "crop": "uniform"},
            "min_crop has no meaning with crop='uniform', which weights all tokens alike",
        ),
        ({"late_offs": 1.5}, "late_offs=1.5 must lie in 0..1"),
        ({"late_offs": float("nan")}, "late_offs=nan must lie in 0..1"),
        ({"transpose": -1}, r"transpose=-1 must lie in 0\.\.12 semitones"),
        ({"transpose": 13}, r"transpose=13 must lie in 0\.\.12 semitones"),
        ({"stretch": ()}, r"stretch=\(\) must be one or more factors in 0\.5\.\.2"),
        ({"stretch": (1.0, 3.0)}, r"stretch=\(1\.0, 3\.0\) must be one or more factors"),
        ({"stretch": (0.95, 1.0), "crop": "cover"}, "crop='cover' could not see each once"),
    ],
)
def test_bad_data_configs(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**fields)


def test_unknown_crops() -> None:
    config = DataConfig()
    object.__setattr__(config, "crop", "best")  # the constructor's types are checked in tests, not in use
    with pytest.raises(ValueError, match="crop='best' must be 'random', 'uniform' or 'cover'"):
        config.__post_init__()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": 7}, "length=7 must be even and at least 4"),
        ({"length": 2}, "length=2 must be even and at least 4"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1 row"),
        ({"length": 8, "min_mirrored": 5}, r"min_mirrored=5 must lie in 1\.\.4, half of length=8"),
        ({"min_mirrored": 0}, r"min_mirrored=0 must lie in 1\.\.16"),
        ({"start_length": 64, "growth_steps": 3}, r"start_length=64 must be even and lie in 4\.\.length=32"),
        ({"start_length": 5, "growth_steps": 3}, "start_length=5 must be even"),
        ({"start_length": 8}, "start_length=8 and growth_steps=0 go together: give both, or neither"),
        ({"growth_steps": 3}, "start_length=None and growth_steps=3 go together"),
        ({"start_length": 8, "growth_steps": -3}, "start_length=8 and growth_steps=-3 go together"),
    ],
)
def test_bad_copy_configs(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CopyConfig(**fields)


def test_copy_lengths_double_in_equally_many_steps() -> None:
    config = CopyConfig(length=64, start_length=8, growth_steps=30)
    assert [config.length_at(step) for step in (0, 10, 20, 30, 31, 10**9)] == [8, 16, 32, 64, 64, 64]
    lengths = [config.length_at(step) for step in range(31)]
    assert lengths == sorted(lengths)
    assert all(length % 2 == 0 for length in lengths)


def test_copy_lengths_are_constant_without_growth() -> None:
    assert CopyConfig(length=64).length_at(0) == 64


def test_stretches_says_whether_tempo_changes() -> None:
    assert not DataConfig().stretches
    assert DataConfig(stretch=(1.0, 1.05)).stretches


def test_configs_need_no_torch() -> None:
    code = "import sys, perceivers.data.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
