"""The benchmark of a GPU runs on a CPU too, at sizes where its numbers mean nothing; nothing in it fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_part_finds_its_numbers(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--quick", "--out", tmp_path / "rows.json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row for row in rows if "left out" not in row.get("error", "left out")] == []
    assert {row["part"] for row in rows} == {"machine", "parity", "attention", "training", "tokens", "run"}
    for row in rows:
        assert f"| {row['part']} | {row['setting']} | {row['what']} |" in done.stdout
        if row["part"] == "parity" and row["what"] == "float32":
            assert row["failed"] == {}
            assert row["value"] <= 1


@pytest.mark.slow
def test_an_unknown_part_is_named() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "machina"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no part 'machina': choose from machine, parity" in done.stderr
