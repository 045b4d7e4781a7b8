"""Compiled models, in processes of their own: annotations that are checked at run time can't be compiled."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ONE_GRAPH = """
import torch
from perceivers.models.build import build
from perceivers.models.perceiver_ar_config import PerceiverARConfig

size = {"dim": 16, "depth": 2, "heads": 2, "cross_heads": 2, "dropout": 0.1}
model = build(PerceiverARConfig(vocab_size=13, max_seq_len=43, num_latents=11, **size)).train()
tokens, positions = torch.randint(13, (2, 43)), torch.arange(1, 44).expand(2, -1)[..., None]
for bfloat16 in (False, True):
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        torch.compile(model, fullgraph=True)(tokens, positions=positions).float().square().sum().backward()
assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
"""

AS_WITHOUT = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from perceivers.hub import read_model
from perceivers.presets import preset
from perceivers.train.loop import train
from perceivers.train.metrics import read_metrics

config = preset("copy_tiny")
config = replace(config, max_steps=3, log_every=1, precision="float32", device="cpu")
graphs, numbers, names = torch._dynamo.utils.counters["stats"], [], []


def look(model, step):
    before = graphs["unique_graphs"]
    model(torch.zeros(1, 5, dtype=torch.long), positions=torch.arange(5)[None, :, None], num_latents=2)
    assert graphs["unique_graphs"] == before  # evaluation, of another shape, is not compiled
    return {}


for compiled in (False, True):
    out = Path(sys.argv[1]) / str(compiled)
    train(replace(config, compile=compiled), out, evaluate=look, progress=False)
    numbers.append([row["train/nats"] for row in read_metrics(out)])
    names.append(list(read_model(out)[0].state_dict()))
assert graphs["unique_graphs"] > 0
assert names[0] == names[1]
assert all(abs(a - b) < 1e-4 * a for a, b in zip(*numbers, strict=True)), numbers
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("script", [ONE_GRAPH, AS_WITHOUT], ids=["one graph", "as without"])
def test_compiled(script: str, tmp_path: Path) -> None:
    """Of full rows in training: one graph in both precisions; steps, files and evaluation as without."""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
