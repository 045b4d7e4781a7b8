"""A long run takes no more memory than a short one."""

import subprocess
import sys
from pathlib import Path

import pytest

MOST_GROWTH = 4e6
"""Bytes in 1,500 steps: a tensor of this model kept at each step would be more."""

RUN = """
import sys
from dataclasses import replace
from pathlib import Path
from perceivers.data.config import CopyConfig
from perceivers.models.perceiver_ar_config import PerceiverARConfig
from perceivers.train.config import TrainConfig
from perceivers.train.loop import train

def resident():
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows["VmRSS"].split()[0]) * 1024

out = Path(sys.argv[1])
model = PerceiverARConfig(vocab_size=259, max_seq_len=68, num_latents=17, dim=32, depth=1, heads=2, cross_heads=2)
data = CopyConfig(length=68, batch_size=2, min_mirrored=11)
often = {"save_every": 500, "eval_every": 500, "eval_tokens": 200}
config = TrainConfig(model=model, data=data, max_steps=2000, device="cpu", **often)
train(replace(config, max_steps=500), out, progress=False)
before = resident()
train(config, out, resume=True, progress=False)
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says how much memory is used")
def test_memory_does_not_grow_over_2000_steps(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", RUN, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < MOST_GROWTH
