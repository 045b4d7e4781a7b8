"""The wheel, in an environment that has nothing else: what a user gets."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_demo_starts_from_the_wheel(tmp_path: Path) -> None:
    """Builds from a copy, so that no file beside the package can help; installs with the extras that the demo needs."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", source, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.stat().st_size < 1_000_000

    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}[music,plots]", cwd=tmp_path)
    where = run(python, "-c", "import perceivers; print(perceivers.__file__)", cwd=tmp_path)
    assert str(tmp_path / "env") in where

    printed = run(tmp_path / "env" / "bin" / "perceivers", "demo", "--minutes", "0.1", cwd=tmp_path)
    assert "Perceiver AR" in printed
    for name in ("continuation.mid", "continuation.wav", "continuation.png", "training.png"):
        assert (tmp_path / "demo" / name).stat().st_size > 500
