"""The benchmarks of the other families run, at sizes where their numbers mean nothing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from perceivers.data.tokens import StoreWriter
from perceivers.hub import write_model
from perceivers.models.build import build
from perceivers.models.feature_config import TokenFeatures
from perceivers.models.input_config import InputConfig, LearnedPositions
from perceivers.models.output_config import GridQueries, QueryOutputConfig, TiedHead
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name",
    [
        "attention",
        "ecp_speed",
        "hip_speed",
        "io_speed",
        "training P4",
        "limits P4",
        "sweep",
        "growth --plot plot.png",
    ],
)
def test_every_row_has_its_numbers(name: str, tmp_path: Path) -> None:
    """Of the steps of training, those without other packages."""
    name, *chosen = name.split()
    if name == "io_speed":
        pytest.importorskip("transformers", reason="the peer of this benchmark: pip install 'perceivers[hf]'")
        if not Path("/proc/self/clear_refs").exists():
            pytest.skip("memory is measured through Linux's /proc")
    command = [sys.executable, BENCHMARKS / f"{name}.py", *chosen, "--quick", "--json", tmp_path / "table.json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert len([line for line in done.stdout.splitlines() if line.startswith("| ")]) == len(rows) + 2
    assert len(rows) >= 8
    for row in rows:
        assert 0 < row["lowest"] <= row["median"] <= row["highest"]


@pytest.mark.slow
def test_a_model_beside_ngrams(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    with StoreWriter(tmp_path / "store", tokenizer="bytes", vocab_size=256) as writer:
        for split in ("train", "validation", "test"):
            for name in ("a", "b"):
                writer.append(split, generator.integers(97, 101, size=101), name=name)
    positions = LearnedPositions(channels=8)
    config = PerceiverIOConfig(
        input=InputConfig(features=TokenFeatures(seq_len=11, dim=8), positions=positions, combine="add"),
        encoder=EncoderConfig(num_latents=3, dim=8, blocks=1, depth=1, heads=2),
        output=QueryOutputConfig(
            queries=GridQueries(shape=(11,), positions=positions), channels=None, head=TiedHead(), value_dim=8
        ),
    )
    torch.manual_seed(0)
    write_model(build(config).state_dict(), config, "masked_bytes", tmp_path / "run")
    command = [sys.executable, BENCHMARKS / "masked_ngrams.py", tmp_path / "run", tmp_path / "store"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    bits = {line[:4]: float(line.split(" [")[0].split()[-1]) for line in done.stdout.splitlines() if " [" in line}
    by_left = next(value for name, value in bits.items() if name[1:] == "-gr")
    assert by_left == pytest.approx(2.0, abs=0.4)  # four bytes, drawn evenly
    assert bits["two "] == pytest.approx(2.0, abs=0.6)
    assert bits["mode"] > by_left
