"""Whether training fits into memory, before it starts."""

import os
from pathlib import Path

import torch

from perceivers.cli.console import big
from perceivers.device import in_bfloat16, pick_device
from perceivers.train.config import TrainConfig
from perceivers.train.plan import process_memory

SMALLER = {
    "perceiver_ar": ("--model.num-latents", "--model.max-seq-len", "--model.dim", "--model.depth"),
    "ecp": ("--model.max-seq-len", "--model.dim", "--model.depth"),
    "perceiver_io": ("--model.encoder.num-latents", "--model.encoder.dim", "--model.encoder.depth"),
    "hip": ("--model.latents", "--model.dims", "--model.depths"),
}
"""What makes a model take less, by its family: what costs least first."""


def check_memory(config: TrainConfig) -> None:
    """Refuse a run that would need more memory than is free.

    Raises:
        ValueError: Says what it needs, what there is, and what to lower.
    """
    device = pick_device(config.device)
    free = free_memory(device)
    if free is None or (needed := memory_needed(config, device)) <= free:
        return
    rows = config.data.batch_size
    fits = next((r for r in range(rows - 1, 0, -1) if rows % r == 0 and memory_needed(config, device, r) <= free), None)
    smaller = SMALLER[config.model.kind]
    advice = f"lower {', '.join(smaller[:-1])} or {smaller[-1]}"
    if fits is not None:
        advice = (
            f"--data.batch-size {fits} --accumulate {config.accumulate * rows // fits} does the same in less; "
            f"or lower {smaller[0]} or {smaller[1]}"
        )
    raise ValueError(f"training would take about {big(needed, 'B')} of memory, and {big(free, 'B')} are free: {advice}")


def memory_needed(config: TrainConfig, device: torch.device, rows: int | None = None) -> int:
    """Bytes at the peak of training with `rows` rows a batch, by default those of the config.

    Of a run that is shared: what this process needs on a GPU, and all processes of this machine in its memory.
    """
    rows = config.data.batch_size if rows is None else rows
    readers = config.parallel.dp * config.parallel.fsdp
    bfloat16, cpu = in_bfloat16(device, config.precision), device.type == "cpu"
    one = process_memory(config, rows=-(-rows // readers), bfloat16=bfloat16, cpu=cpu).total
    return one * int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if cpu else one


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on `device`; None where that can't be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    known = [size for size in (_machine(Path("/proc/meminfo")), _group(Path("/"))) if size is not None]
    return min(known, default=None)


def _machine(meminfo: Path) -> int | None:
    """What Linux says is available."""
    if not meminfo.exists():
        return None
    rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    return int(rows["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in rows else None


def _group(root: Path) -> int | None:
    """What the limits of this process's control groups leave, as containers and schedulers set them.

    Version 2 has files memory.max and memory.current, version 1 memory.limit_in_bytes and memory.usage_in_bytes.
    """
    lines = _read(root / "proc/self/cgroup").splitlines()
    left = []
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers in ("", "memory"):
            base = root / "sys/fs/cgroup" / controllers
            folder = base / place.lstrip("/")
            for group in (folder, *folder.parents):
                if group.is_relative_to(base):
                    left += [room for room in [_room(group)] if room is not None]
    return min(left, default=None)


def _room(group: Path) -> int | None:
    """Limit less use; pages of files that the kernel can drop don't count."""
    limit = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes")
    used = _read(group / "memory.current") or _read(group / "memory.usage_in_bytes")
    if not (limit.isdigit() and used.isdigit()) or int(limit) >= 2**60:  # "max", or version 1's way to say so
        return None
    counts = dict(line.split(" ", 1) for line in _read(group / "memory.stat").splitlines())
    return max(0, int(limit) - int(used) + int(counts.get("inactive_file", 0)))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
