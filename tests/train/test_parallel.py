"""Several processes on the CPU train as one does. Each case starts real processes, which takes seconds."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from perceivers.data.config import DataConfig
from perceivers.data.tokens import StoreWriter
from perceivers.models.perceiver_ar_config import PerceiverARConfig, TablePositions
from perceivers.records import to_dict
from perceivers.train.config import CrossEntropy, OptimConfig, ParallelConfig, TrainConfig
from perceivers.train.metrics import read_metrics
from perceivers.train.parallel import Place, join

STEPS = 5


def config(model: dict[str, Any] | None = None, **changes: Any) -> TrainConfig:
    settings = {"vocab_size": 259, "max_seq_len": 37, "num_latents": 7, "dim": 12, "depth": 2, "heads": 2}
    return TrainConfig(
        **{
            "model": PerceiverARConfig(**{**settings, "cross_heads": 2, "dropout": 0.0, **(model or {})}),
            "data": DataConfig(batch_size=4),
            "objective": CrossEntropy(),
            "optim": OptimConfig(lr=1e-2, warmup_steps=0, eps=1e-6),
            "max_steps": STEPS,
            "save_every": STEPS,
            "precision": "float32",
            "device": "cpu",
            **changes,
        }
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of very different lengths: rows of a batch are padded."""
    path = tmp_path_factory.mktemp("data") / "store"
    rng = np.random.default_rng(0)
    with StoreWriter(path, tokenizer="bytes", vocab_size=256) as writer:
        for i, length in enumerate((90, 11, 53, 71, 30)):
            writer.append("train", rng.integers(97, 123, length).astype(np.uint16), name=str(i))
        writer.append("validation", rng.integers(97, 123, 41).astype(np.uint16), name="v")
    return path


START = """
import sys
import torch
torch.set_default_dtype(torch.float64)  # in float32 Adam makes large steps of small gradients' rounding
torch.set_num_threads(1)
from perceivers.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def run(settings: TrainConfig, out: Path, store: Path) -> None:
    """Train, or go on training, by the command, in processes of their own."""
    out.mkdir(exist_ok=True)
    (out / "settings.yaml").write_text(yaml.safe_dump(to_dict(settings)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = settings.parallel.processes
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    args = ["train", str(out / "settings.yaml"), "--data", str(store), "--out", str(out), "--resume"]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", START, *args],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(processes)
    ]
    for rank, process in enumerate(started):
        said, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors.decode()
        assert bool(said) == (rank == 0)  # the first one alone reports


def assert_same(one: Path, other: Path, *, dim: int = 12) -> None:
    """Numbers of every step, and weights. What moves keys' biases is rounding: a softmax ignores them."""
    steps = ([row for row in read_metrics(path) if "train/nats" in row] for path in (one, other))
    for a, b in zip(*steps, strict=True):
        assert a.keys() == b.keys()
        assert all(a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-5) for name in a if name != "minutes")
    weights = (load_file(path / "model.safetensors") for path in (one, other))
    first, second = ({n: x[dim:] if n.endswith("to_kv.bias") else x for n, x in w.items()} for w in weights)
    for name, x in first.items():
        torch.testing.assert_close(x, second[name], rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.fixture(scope="module")
def alone(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    run(config(log_every=1), out, store)
    return out


@pytest.mark.parametrize("shared", [{"dp": 2}, {"fsdp": 2}, {"cp": 2}], ids=str)
def test_two_processes_train_as_one(shared: dict[str, int], alone: Path, store: Path, tmp_path: Path) -> None:
    run(config(log_every=1, parallel=ParallelConfig(**shared)), tmp_path, store)
    assert_same(alone, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shared", [{"dp": 2, "fsdp": 2}, {"dp": 2, "cp": 2}, {"fsdp": 2, "cp": 2}, {"cp": 4}, {"fsdp": 4}], ids=str
)
def test_four_processes_train_as_one(shared: dict[str, int], alone: Path, store: Path, tmp_path: Path) -> None:
    run(config(log_every=1, parallel=ParallelConfig(**shared)), tmp_path, store)
    assert_same(alone, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        {"positions": TablePositions(learned=True, sizes=(92,))},
        {"latents_per_position": 2},
        {"extra_cross_attends": (0,), "vocab_size": 400},
    ],
    ids=str,
)
def test_a_context_in_two_parts(model: dict[str, Any], store: Path, tmp_path: Path) -> None:
    run(config(model, log_every=1), tmp_path / "one", store)
    run(config(model, log_every=1, parallel=ParallelConfig(cp=2)), tmp_path / "two", store)
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_saved_by_two_and_resumed_by_one_and_by_four(store: Path, tmp_path: Path) -> None:
    import shutil

    run(config(log_every=1, max_steps=9), tmp_path / "whole", store)
    first = config(log_every=1, parallel=ParallelConfig(dp=1, fsdp=2))
    run(first, tmp_path / "one", store)
    shutil.copytree(tmp_path / "one", tmp_path / "four")
    run(config(log_every=1, max_steps=9), tmp_path / "one", store)
    run(config(log_every=1, max_steps=9, parallel=ParallelConfig(fsdp=4)), tmp_path / "four", store)
    for name in ("one", "four"):
        assert_same(tmp_path / "whole", tmp_path / name)


@pytest.mark.slow
def test_accumulated_and_recomputed(store: Path, tmp_path: Path) -> None:
    settings = {"log_every": 1, "accumulate": 3, "recompute": True}
    run(config(**settings), tmp_path / "one", store)
    run(config(**settings, parallel=ParallelConfig(fsdp=2)), tmp_path / "two", store)
    assert_same(tmp_path / "one", tmp_path / "two")


def test_a_place_reads_its_rows() -> None:
    config = ParallelConfig(dp=2, fsdp=2, cp=3)
    assert config.processes == 12
    assert [Place(config, rank).reader for rank in range(12)] == [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3]


def test_another_number_of_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="fsdp=2 x cp=3 = 6 processes, but 1 started: torchrun --nproc-per-node 6"):
        join(ParallelConfig(fsdp=2, cp=3), torch.device("cpu"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="= 1 processes, but 2 started"):
        join(ParallelConfig(), torch.device("cpu"))
