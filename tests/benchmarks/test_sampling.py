"""The benchmark of sampling runs, at sizes where its numbers mean nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "sampling.py"
PARTS = ("speed", "bound", "weights", "growth", "refill", "first", "samples", "memory")


def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *args], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_part_prints_its_numbers(tmp_path: Path) -> None:
    """All but the peers, which need an environment of their own."""
    parts = PARTS if Path("/proc/self/clear_refs").exists() else PARTS[:-1]
    done = run(*parts, "--quick", "--json", tmp_path / "table.json")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    printed = [line for line in done.stdout.splitlines() if line.startswith(tuple(f"| {part} |" for part in parts))]
    assert len(printed) == len(rows)
    assert {row["part"] for row in rows} == set(parts)
    for row, line in zip(rows, printed, strict=True):
        assert 0 < row["lowest"] <= row["median"] <= row["highest"], line
        assert f"| {row['setting']} | {row['what']} |" in line


@pytest.mark.slow
def test_an_unknown_part_is_named() -> None:
    done = run("sped", "--quick")
    assert done.returncode == 2
    assert "no part 'sped': choose from speed, bound, weights" in done.stderr
