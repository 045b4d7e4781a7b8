import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from perceivers.data.config import CopyConfig
from perceivers.data.synthetic import MirroredLoader
from perceivers.models import cost
from perceivers.models.build import build
from perceivers.models.cost import count_parameters, forward_flops, parts, training_memory
from perceivers.models.perceiver_ar_config import (
    InputQueries,
    LearnedQueries,
    MLPQueries,
    PerceiverARConfig,
    RotaryPositions,
    TablePositions,
)
from perceivers.nn import attention, partial
from perceivers.train.config import CrossEntropy
from perceivers.train.objectives import objective_loss

KEPT_TOLERANCE = 0.03
PEAK_TOLERANCE = 0.25


def tiny(**changes: Any) -> PerceiverARConfig:
    settings = {
        "vocab_size": 31,
        "max_seq_len": 17,
        "num_latents": 5,
        "dim": 24,
        "depth": 3,
        "heads": 2,
        "cross_heads": 3,
    }
    return PerceiverARConfig(**{**settings, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"input_dim": 39},
        {"input_dim": 39, "cross_channels": "latent"},
        {"queries": InputQueries()},
        {"queries": MLPQueries(layers=3)},
        {"queries": LearnedQueries()},
        {"queries": LearnedQueries(shared=True)},
        {"positions": RotaryPositions(channel_share=0.25)},
        {"positions": TablePositions()},
        {"positions": TablePositions(table="random", learned=True, sizes=(5, 7, 11))},
        {"latents_per_position": 2},
        {"initial_cross_attend": False},
        {"extra_cross_attends": (0, 2)},
        {"widening": 2, "cross_widening": 3},
        {"depth": 0},
    ],
)
def test_parameters_are_those_of_the_model(changes: dict[str, Any]) -> None:
    config = tiny(**changes)
    assert count_parameters(config) == sum(parameter.numel() for parameter in build(config).parameters())


def test_parts_say_what_they_are() -> None:
    shown = {part.name: part.shape for part in parts(tiny(extra_cross_attends=(1,), latents_per_position=2))}
    assert shown["token embedding"] == "31 x 24"
    assert shown["positions"] == "rotary, 6 of 12 channels"
    assert shown["latent stack"] == "3 layers of 2 heads x 12, feed-forward 96"
    assert shown["more cross-attends"] == "after layers 1, each 3 heads x 8, feed-forward 96"


@pytest.mark.parametrize("changes", [{}, {"input_dim": 39}, {"extra_cross_attends": (0, 2)}, {"queries": MLPQueries()}])
def test_flops_are_counted_as_torch_counts_them(changes: dict[str, Any]) -> None:
    """Apart from the pairs that causality hides, which the readable attention computes as well."""
    config = tiny(backend="reference", **changes)
    model, n, m = build(config).eval(), config.num_latents, config.max_seq_len
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, m, dtype=torch.long), positions=torch.arange(1, m + 1)[None, :, None])
    hidden = n * (n - 1) // 2
    reads = 1 + len(config.extra_cross_attends)
    in_vain = 4 * hidden * (reads * config.cross_dim + config.depth * config.dim)
    assert counter.get_total_flops() == forward_flops(config) + in_vain


def test_prefix_dropout_saves_work() -> None:
    config = tiny(prefix_dropout=0.5)
    shorter = tiny(max_seq_len=5 + 6)
    assert forward_flops(config, training=True) == forward_flops(shorter)
    assert forward_flops(config) == forward_flops(tiny())


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"max_seq_len": 63, "num_latents": 20, "dim": 96, "heads": 4},
        {"max_seq_len": 255, "num_latents": 8, "dim": 96, "heads": 4, "dropout": 0.0},
        {
            "max_seq_len": 31,
            "num_latents": 31,
            "dim": 96,
            "heads": 4,
            "activation": "gelu",
            "extra_cross_attends": (1,),
        },
        {"max_seq_len": 63, "num_latents": 20, "dim": 96, "heads": 4, "activation": "relu"},
    ],
)
def test_memory_counts_what_autograd_keeps(
    changes: dict[str, Any], bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without what is estimated on top: gaps, masks, and gradients on the way."""
    monkeypatch.setattr(cost, "ALLOCATOR_SHARE", 1.0)
    monkeypatch.setattr(cost, "CONTEXT_WORK", 0)
    monkeypatch.setattr(cost, "TAKEN_WORK", 0)
    monkeypatch.setattr(cost, "LOGITS_WORK", 1)
    monkeypatch.setattr(cost, "MASK_BYTES", 0)
    monkeypatch.setattr(cost, "SCORES_WORK", 0)
    config = tiny(vocab_size=259, **changes)
    memory = training_memory(config, rows=3, bfloat16=bfloat16, cpu=True)
    copies = memory.weights - 4 * count_parameters(config)  # of weights in bfloat16: autograd keeps them
    assert memory.activations + memory.logits + copies == pytest.approx(kept(config, bfloat16), rel=KEPT_TOLERANCE)


def kept(config: PerceiverARConfig, bfloat16: bool) -> int:
    """Bytes that autograd saves in a forward pass with full rows, weights left out."""
    model = build(config).train()
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            saved[place] = tensor
        return tensor

    length = config.max_seq_len + 1
    batch = MirroredLoader(CopyConfig(length=length, batch_size=3, min_mirrored=length // 2), seed=0).batch(0)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
    ):
        loss = objective_loss(model, batch, CrossEntropy()).sum
        for rows in taken_rows(loss):
            for tensor in (rows.table, rows.ids, rows.rotate.cos, rows.rotate.sin):
                pack(tensor)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def test_memory_grows_with_what_it_should() -> None:
    def needed(rows: int = 2, cpu: bool = True, **changes: Any) -> int:
        return training_memory(tiny(**changes), rows=rows, bfloat16=False, cpu=cpu).total

    assert needed(rows=4) > needed()
    assert needed(max_seq_len=34) > needed()
    assert needed(depth=6) > needed()
    assert needed(max_seq_len=1000, num_latents=100, cpu=False) > needed(max_seq_len=1000, num_latents=100)
    assert needed(prefix_dropout=0.9, max_seq_len=1000) < needed(max_seq_len=1000)


def taken_rows(result: torch.Tensor) -> Iterator[Any]:
    """Keys and values that are taken by id again when gradients are computed."""
    seen, steps = set(), [result.grad_fn]
    while steps:
        if (step := steps.pop()) is not None and step not in seen:
            seen.add(step)
            steps.extend(before for before, _ in step.next_functions)
            if hasattr(step, "rows"):
                yield step.rows


PEAK = """
import sys
from dataclasses import replace
from collections.abc import Iterator
from pathlib import Path
from perceivers.data.config import CopyConfig
from perceivers.models.perceiver_ar_config import PerceiverARConfig
from perceivers.train.config import TrainConfig
from perceivers.train.loop import train

def status(key):
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows[key].split()[0]) * 1024

out, precision, length, rows = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
model = PerceiverARConfig(max_seq_len=length, **eval(sys.argv[5]))
data = CopyConfig(length=length, batch_size=rows, min_mirrored=length // 2)
config = TrainConfig(model=model, data=data, max_steps=3, precision=precision, device="cpu")
small = replace(model, max_seq_len=64, num_latents=16, dim=32, depth=1)
train(replace(config, model=small, data=CopyConfig(length=64, batch_size=2)), out / "small")  # PyTorch's own needs
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back
train(config, out / "large")
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux says how much memory was used")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("length", "rows", "settings"),
    [
        (1024, 8, {"num_latents": 512, "dim": 256, "depth": 6, "heads": 4, "cross_heads": 4}),
        (8192, 2, {"num_latents": 256, "dim": 256, "depth": 2, "heads": 4, "cross_heads": 4}),
        (512, 2, {"num_latents": 128, "dim": 512, "depth": 8, "heads": 8, "cross_heads": 8}),
        (512, 1, {"num_latents": 32, "dim": 768, "depth": 6, "heads": 8, "cross_heads": 8}),
        (1024, 4, {"num_latents": 512, "dim": 128, "depth": 2, "heads": 4, "cross_heads": 4, "vocab_size": 8003}),
    ],
)
def test_memory_that_training_takes(
    tmp_path: Path, precision: str, length: int, rows: int, settings: dict[str, Any]
) -> None:
    args = [tmp_path, precision, length, rows, settings]
    done = subprocess.run([sys.executable, "-c", PEAK, *map(str, args)], capture_output=True, text=True, check=True)
    config = PerceiverARConfig(max_seq_len=length, **settings)
    estimate = training_memory(config, rows=rows, bfloat16=precision == "bfloat16", cpu=True).total
    assert estimate == pytest.approx(int(done.stdout), rel=PEAK_TOLERANCE)


def test_the_estimate_knows_what_attention_keeps_and_does_at_once() -> None:
    assert cost.KEPT_SCORES == attention.KEPT_SCORES
    assert (cost.KEYS_AT_ONCE, cost.LEAST_COLUMNS) == (partial.KEYS_AT_ONCE, partial.LEAST_COLUMNS)
