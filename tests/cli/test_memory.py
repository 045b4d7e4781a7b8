from dataclasses import replace
from pathlib import Path

import pytest
import torch

from perceivers.cli import memory
from perceivers.cli.memory import check_memory, free_memory, memory_needed
from perceivers.data.config import DataConfig
from perceivers.presets import preset
from perceivers.train.config import ParallelConfig

CPU = torch.device("cpu")
GIB = 2**30


def test_what_is_free_here() -> None:
    free = free_memory(CPU)
    assert free is None or 2**20 < free < 2**50
    assert free_memory(torch.device("meta")) is None


def test_machine(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    assert memory._machine(path) is None
    path.write_text("MemTotal:       16000 kB\nMemFree:  10 kB\nMemAvailable:    7000 kB\n")
    assert memory._machine(path) == 7000 * 1024


def write(root: Path, files: dict[str, object]) -> Path:
    for name, value in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{value}\n")
    return root


def test_control_groups_of_version_2(tmp_path: Path) -> None:
    """The tightest limit on the way up counts, and pages of files can be dropped."""
    files = {
        "proc/self/cgroup": "0::/jobs/mine",
        "sys/fs/cgroup/jobs/mine/memory.max": "max",
        "sys/fs/cgroup/jobs/mine/memory.current": GIB,
        "sys/fs/cgroup/jobs/memory.max": 4 * GIB,
        "sys/fs/cgroup/jobs/memory.current": 3 * GIB,
        "sys/fs/cgroup/jobs/memory.stat": f"anon 5\ninactive_file {GIB}",
        "sys/fs/cgroup/memory.max": 9 * GIB,
        "sys/fs/cgroup/memory.current": 3 * GIB,
    }
    assert memory._group(write(tmp_path, files)) == 2 * GIB


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "9:cpu,cpuacct:/a\n3:memory:/a",
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": 5 * GIB,
        "sys/fs/cgroup/memory/a/memory.usage_in_bytes": 2 * GIB,
        "sys/fs/cgroup/memory/memory.limit_in_bytes": 2**63 - 4096,  # none
        "sys/fs/cgroup/memory/memory.usage_in_bytes": 2 * GIB,
    }
    assert memory._group(write(tmp_path, files)) == 3 * GIB


def test_no_control_groups(tmp_path: Path) -> None:
    assert memory._group(tmp_path) is None


def test_refusal_says_what_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(
        preset("text_small"), data=DataConfig(batch_size=12), accumulate=2, device="cpu", precision="float32"
    )
    whole, third = (memory_needed(config, CPU, rows) for rows in (12, 4))
    monkeypatch.setattr(memory, "free_memory", lambda device: whole)
    check_memory(config)
    monkeypatch.setattr(memory, "free_memory", lambda device: third)
    said = (
        r"would take about [\d.]+ GB of memory, and [\d.]+ [GM]B are free: --data.batch-size 4 --accumulate 6 does the"
    )
    with pytest.raises(ValueError, match=said):
        check_memory(config)
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    with pytest.raises(ValueError, match=r"1 kB are free: lower --model\.num-latents"):
        check_memory(config)
    monkeypatch.setattr(memory, "free_memory", lambda device: None)
    check_memory(config)


def test_bfloat16_takes_less_where_scores_are_not_kept() -> None:
    config = replace(preset("maestro_symbolic"), device="cpu")
    assert memory_needed(replace(config, precision="bfloat16"), CPU) < memory_needed(config, CPU)


def test_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = replace(preset("text_small"), device="cpu", precision="float32", sample_every=0)
    copies = replace(alone, parallel=ParallelConfig(dp=2))
    parts = replace(alone, parallel=ParallelConfig(fsdp=2))
    one = memory_needed(copies, CPU)
    assert memory_needed(parts, CPU) < one < memory_needed(alone, CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory_needed(copies, CPU) == 2 * one
