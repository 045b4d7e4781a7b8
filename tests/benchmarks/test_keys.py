"""The benchmark of keys runs."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_runs_at_tiny_size() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "keys.py", "--quick", "--late-offs", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=True)
    assert "test: " in done.stdout
    assert "with --any-keys" in done.stdout
