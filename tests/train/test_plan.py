"""How runs are shared, on paper and measured."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perceivers.cli.main import LARGE_PAGES
from perceivers.data.config import CopyConfig
from perceivers.models.cost import count_parameters, forward_flops, training_memory
from perceivers.models.ecp_config import ECPConfig
from perceivers.models.perceiver_ar_config import PerceiverARConfig
from perceivers.presets import preset
from perceivers.records import to_dict
from perceivers.train.config import CrossEntropy, ParallelConfig, TrainConfig
from perceivers.train.plan import Machine, best_plan, plan, plan_flags, plans, process_memory

TOLERANCE = 0.15
MODEL = PerceiverARConfig(
    vocab_size=31, max_seq_len=160, num_latents=16, dim=24, depth=3, heads=2, cross_heads=3, dropout=0.0
)


def config(model: PerceiverARConfig | ECPConfig = MODEL, **changes: Any) -> TrainConfig:
    data = CopyConfig(length=160, batch_size=changes.pop("rows", 8), min_mirrored=10)
    return TrainConfig(model=model, data=data, **changes)


def shared(**changes: int) -> ParallelConfig:
    return ParallelConfig(**changes)


def test_a_lone_process_takes_what_training_takes() -> None:
    alone = plan(config(), Machine())
    assert alone.memory == training_memory(MODEL, rows=8, bfloat16=True, cpu=False)
    assert alone.flops == 3 * 8 * forward_flops(MODEL)
    assert alone.wire == {}
    assert alone.share_of_peak == pytest.approx(0.5)  # what products are assumed to reach


def test_every_way_has_the_rows_of_the_update() -> None:
    found = list(plans(config(rows=4, accumulate=3), 6, Machine()))
    assert len({plan_flags(one.config) for one in found}) == len(found)
    for one in found:
        assert one.config.parallel.processes == 6
        assert one.config.data.batch_size * one.config.accumulate == 12
        assert one.config.data.batch_size % (one.config.parallel.dp * one.config.parallel.fsdp) == 0
    assert {one.config.recompute for one in found} == {False, True}
    assert {one.config.parallel.cp for one in found} == {1, 2, 3, 6}


def test_contexts_are_only_cut_where_they_can_be() -> None:
    ecp = ECPConfig(max_seq_len=160, segment_len=16, dim=8, depth=2, heads=2)
    for other in (config(ecp), config(objective=CrossEntropy(sweep=2))):
        assert {one.config.parallel.cp for one in plans(other, 4, Machine())} == {1}


def test_what_is_cut_takes_less() -> None:
    size = count_parameters(MODEL)
    copies = plan(config(parallel=shared(dp=8)), Machine()).memory
    parts = plan(config(parallel=shared(fsdp=8)), Machine()).memory
    context = plan(config(parallel=shared(cp=8), rows=1), Machine()).memory
    assert copies.moments == 8 * size
    assert parts.moments == size
    assert parts.weights < copies.weights
    assert parts.activations == copies.activations
    whole = training_memory(MODEL, rows=1, bfloat16=True, cpu=False)
    tail = training_memory(replace(MODEL, max_seq_len=20), rows=1, bfloat16=True, cpu=False)
    assert tail.activations < context.activations  # and what reading it in pieces takes
    assert plan(config(parallel=shared(cp=8), rows=1), Machine()).flops < 3 * forward_flops(MODEL)
    assert whole.moments == context.moments


def test_bytes_on_the_wire() -> None:
    size = count_parameters(MODEL)
    copies = plan(config(parallel=shared(dp=2)), Machine(near=1.0, far=0.5)).wire
    assert copies == {"gradients of copies": (4 * size, 4 * size)}  # an all-reduce between two sends the whole once
    far = plan(config(parallel=shared(dp=16), rows=16), Machine(near=1.0, far=0.5)).wire["gradients of copies"]
    assert far[1] == 2 * far[0]
    parts = plan(config(parallel=shared(fsdp=4)), Machine()).wire
    assert parts["gradients"][0] == pytest.approx(0.75 * 4 * size)
    assert parts["weights"][0] == pytest.approx(0.75 * 4 * size)  # layers twice in bfloat16, the rest once in float32
    twice = plan(config(parallel=shared(fsdp=4), accumulate=2), Machine()).wire
    assert twice["weights"][0] == 2 * parts["weights"][0]
    assert twice["gradients"][0] == parts["gradients"][0]
    context = plan(config(parallel=shared(cp=2), rows=3), Machine()).wire["what latents read"]
    assert context[0] == 3 * 16 * 4 * (2 * 24 + 2 * 3)


def test_the_fastest_plan_that_fits() -> None:
    found = list(plans(config(), 4, Machine()))
    fastest = best_plan(config(), gpus=4, memory=10**9)
    assert fastest.seconds == min(one.seconds for one in found)
    tightest = min(one.memory.total for one in found)
    assert best_plan(config(), gpus=4, memory=tightest).memory.total == tightest
    with pytest.raises(ValueError, match=r"no way to share this run among 4 GPUs fits: the smallest takes .* GB"):
        best_plan(config(), gpus=4, memory=tightest - 1)
    with pytest.raises(ValueError, match=r"7 rows an update can't be shared by 5 GPUs"):
        best_plan(config(ECPConfig(max_seq_len=160, segment_len=16, dim=8, depth=2, heads=2), rows=7), gpus=5, memory=1)


def test_a_billion_parameters() -> None:
    large = preset("bytes_1b")
    assert 0.95e9 < count_parameters(large.model) < 1.1e9
    for gpus in (8, 512):
        found = best_plan(large, gpus=gpus, memory=80 * 10**9)
        assert found.memory.total < 80 * 10**9
        assert found.config.data.batch_size * found.config.accumulate == 512


PEAK = """
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from perceivers.data.config import CopyConfig
from perceivers.records import from_dict
from perceivers.train.config import ParallelConfig, TrainConfig
from perceivers.train.loop import train

def status(key):
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows[key].split()[0]) * 1024

out, config = Path(sys.argv[1]), from_dict(TrainConfig, json.loads(sys.argv[2]))
small = replace(config.model, max_seq_len=64, num_latents=16, dim=32, depth=1)
processes = os.environ.pop("WORLD_SIZE")
alone = replace(config, model=small, data=CopyConfig(length=64, batch_size=2), parallel=ParallelConfig())
train(alone, out / os.environ["RANK"])  # PyTorch's own needs
os.environ["WORLD_SIZE"] = processes
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back
train(config, out / "large")
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux says how much memory was used")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("parallel", [{}, {"dp": 2}, {"fsdp": 2}, {"cp": 2}], ids=str)
def test_memory_of_a_process(tmp_path: Path, parallel: dict[str, int], precision: str) -> None:
    """Of the last one: the first has all weights at the start and when it saves."""
    model = PerceiverARConfig(max_seq_len=8192, num_latents=256, dim=512, depth=5, heads=8, cross_heads=8, dropout=0.0)
    wanted = TrainConfig(
        model=model,
        data=CopyConfig(length=8192, batch_size=2, min_mirrored=4000),
        parallel=ParallelConfig(**parallel),
        max_steps=2,
        precision=precision,
        device="cpu",
    )
    rows = 2 // (wanted.parallel.dp * wanted.parallel.fsdp)
    estimate = process_memory(wanted, rows=rows, bfloat16=precision == "bfloat16", cpu=True).total
    took = measured(tmp_path, wanted)
    assert took == pytest.approx(estimate, rel=TOLERANCE)


def measured(out: Path, wanted: TrainConfig) -> int:
    """Bytes at the peak of the last process of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    count = wanted.parallel.processes
    env = os.environ | LARGE_PAGES | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if wanted.parallel.cp > 1:
        # glibc keeps pieces of some megabytes that are freed, of which chunks of scores leave many; GPUs do not.
        env["MALLOC_MMAP_THRESHOLD_"] = "1000000"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PEAK, str(out), json.dumps(to_dict(wanted))],
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    ended = [process.communicate(timeout=120) for process in started]
    for process, (_, errors) in zip(started, ended, strict=True):
        assert process.returncode == 0, errors
    return int(ended[-1][0])
