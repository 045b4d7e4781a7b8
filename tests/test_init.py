"""`import perceivers` is light, and what it promises is there."""

import subprocess
import sys

import pytest

import perceivers


def test_import_is_light() -> None:
    code = "import sys, perceivers; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", perceivers.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(perceivers, name).__module__.startswith("perceivers.")


def test_public_names_are_listed() -> None:
    assert {*perceivers.__all__, "__version__"} <= set(dir(perceivers))


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'PerceiverXY'"):
        perceivers.PerceiverXY  # noqa: B018
