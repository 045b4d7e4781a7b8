import subprocess
import sys

import pytest

from perceivers.data.picture_config import PictureConfig, WarpConfig
from perceivers.records import from_dict, to_dict


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1 picture"),
        ({"shift": -1}, "shift=-1 must be 0 or more pixels"),
        ({"rotate": 181.0}, r"rotate=181\.0 must lie in 0\.\.180 degrees"),
        ({"scale": 1.0}, r"scale=1\.0 must be a share from 0 to below 1"),
        ({"permutation": -1}, "permutation=-1 must be a seed, 0 or more; None is off"),
        ({"hidden": 1.0}, r"hidden=1\.0 must be a share from 0 to below 1"),
    ],
)
def test_bad_picture_configs(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PictureConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1 pair"),
        ({"shape": (64, 1)}, r"shape=\(64, 1\) must be rows and columns of a frame, each at least 2"),
        ({"spacing": 1}, "spacing=1 must be at least 2 pixels"),
        ({"mean": 0.0}, r"mean=0\.0 must lie above 0 and within a sixth of spacing=24"),
        ({"mean": 7.0}, "or the flow would fold over itself; take a larger spacing"),
    ],
)
def test_bad_warp_configs(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WarpConfig(**fields)


def test_moves() -> None:
    assert not PictureConfig(permutation=0, hidden=0.5).moves
    for name, value in (("shift", 1), ("rotate", 1.0), ("scale", 0.1), ("flip", True)):
        assert PictureConfig(**{name: value}).moves


def test_they_survive_being_written() -> None:
    for config in (PictureConfig(permutation=3, hidden=0.5), WarpConfig(shape=(5, 7))):
        assert from_dict(PictureConfig | WarpConfig, to_dict(config)) == config


def test_no_torch() -> None:
    code = "import sys, perceivers.data.picture_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
