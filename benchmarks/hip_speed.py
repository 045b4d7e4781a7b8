"""What groups save: `python benchmarks/hip_speed.py [--quick] [--json FILE]`.

HiP-Mini beside the smallest Perceiver IO of the same authors, which reads the same inputs as one group, at more and
more inputs: milliseconds and bytes of one training pass (forward and backward), batch 1, float32, on the CPU. Both run
in turns, and each ratio is taken inside a round; the table has the median of the rounds, the lowest and the highest.
Bytes are what autograd keeps, counted without running anything (`perceivers.models.trace`). Nothing else should run
beside it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch

from perceivers.models.build import build
from perceivers.models.hip_config import DataSet, HiPConfig, Modality, hip_mini, io_mini
from perceivers.models.trace import kept
from sampling_timing import Row, Task, in_turns, timed
from speed_table import parser_of, print_table


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is."""

    inputs: tuple[int, ...]
    rounds: int


FULL = Scale(inputs=tuple(2**n for n in range(14, 19)), rounds=3)
QUICK = Scale(inputs=(64, 128), rounds=2)


def training_pass(config: HiPConfig, inputs: int) -> Task:
    """Reconstruct random inputs, and the gradients of that."""
    torch.manual_seed(0)
    model, x = build(config).train(), torch.randn(1, inputs, 3)

    def run() -> None:
        model.zero_grad()
        (model({"x": x})["x"] - x).square().sum().backward()

    return timed(run)


def compare(scale: Scale, inputs: int) -> Iterator[Row]:
    """Rows of the table for one length."""
    data_sets = (DataSet(name="all", modalities=(Modality(name="x", positions=inputs, channels=3),)),)
    configs = {"HiP-Mini": hip_mini(data_sets), "Perceiver IO": io_mini(data_sets)}
    seconds = in_turns({name: training_pass(config, inputs) for name, config in configs.items()}, scale.rounds)
    setting = f"{inputs:,} inputs"
    for name, config in configs.items():
        yield Row.of("time", setting, name, 1000 * seconds[name], "ms")
        yield Row.of("memory", setting, name, kept(config, rows=1, bfloat16=False).activations / 2**20, "MiB")
    yield Row.of("time", setting, "Perceiver IO / HiP-Mini", seconds["Perceiver IO"] / seconds["HiP-Mini"], "times")


def main() -> None:
    args = parser_of(__doc__).parse_args()
    scale = QUICK if args.quick else FULL
    print_table(chain.from_iterable(compare(scale, n) for n in scale.inputs), scale=scale, json_file=args.json)


if __name__ == "__main__":
    main()
