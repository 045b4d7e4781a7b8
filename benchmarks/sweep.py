"""Many blocks of latents over one context, beside as many crops: `python benchmarks/sweep.py [--quick] [--json FILE]`.

Targets a second of training steps (forward, backward, AdamW) on one row: a crop, whose last latents predict, and a
sweep, where several blocks of them do (`perceivers train --objective.sweep`). With rotary positions keys and values are
projected once an id of the vocabulary anyway; where a table is added to embeddings a sweep saves their projection.
Both run in turns, and each ratio is taken inside a round. Nothing else should run beside it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from perceivers.data.batch import TokenBatch
from perceivers.models.perceiver_ar import PerceiverAR
from perceivers.models.perceiver_ar_config import PerceiverARConfig, RotaryPositions, TablePositions
from perceivers.train.config import CrossEntropy
from perceivers.train.objectives import objective_loss
from sampling_timing import Row, Task, in_turns, timed
from speed_table import parser_of, print_table
from training_worker import VOCAB_SIZE


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is."""

    contexts: tuple[int, ...]
    latents: int
    blocks: int
    dim: int
    depth: int
    heads: int
    rounds: int


FULL = Scale(contexts=(16_384, 65_536), latents=512, blocks=8, dim=512, depth=8, heads=8, rounds=3)
QUICK = Scale(contexts=(64,), latents=8, blocks=3, dim=16, depth=1, heads=2, rounds=2)


def step(config: PerceiverARConfig, sweep: int, *, bfloat16: bool) -> Task:
    """An update on one row."""
    torch.manual_seed(0)
    model = PerceiverAR(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    length = config.max_seq_len + 1
    tokens, positions = torch.randint(3, VOCAB_SIZE, (1, length)), torch.arange(length)[None, :, None]
    batch, objective = TokenBatch(tokens, positions, torch.tensor([length])), CrossEntropy(sweep=sweep)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = objective_loss(model, batch, objective)
        (loss.sum / (sweep * config.num_latents)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return timed(run)


def compare(context: int, scale: Scale, *, rotary: bool, bfloat16: bool) -> Iterator[Row]:
    """Rows of one context, kind of positions and precision."""
    config = PerceiverARConfig(
        vocab_size=VOCAB_SIZE,
        max_seq_len=context,
        num_latents=scale.latents,
        dim=scale.dim,
        depth=scale.depth,
        heads=scale.heads,
        cross_heads=scale.heads,
        dropout=0.0,
        positions=RotaryPositions() if rotary else TablePositions(),
    )
    tasks = {f"{sweep} blocks": step(config, sweep, bfloat16=bfloat16) for sweep in (1, scale.blocks)}
    seconds = in_turns(tasks, scale.rounds)
    speeds = {sweep: sweep * scale.latents / seconds[f"{sweep} blocks"] for sweep in (1, scale.blocks)}
    what = f"{'rotary' if rotary else 'sinusoidal'} positions, {'bfloat16' if bfloat16 else 'float32'}"
    setting = f"M {context:,}, N {scale.latents}"
    for sweep, speed in speeds.items():
        yield Row.of(what, setting, f"sweep {sweep}", speed, "targets/s")
    yield Row.of(what, setting, f"sweep {scale.blocks} / crops", speeds[scale.blocks] / speeds[1], "times")


def table(scale: Scale) -> Iterator[Row]:
    """All rows."""
    for context in scale.contexts:
        for bfloat16 in (False, True):
            for rotary in (False, True):
                yield from compare(context, scale, rotary=rotary, bfloat16=bfloat16)


def main() -> None:
    args = parser_of(__doc__).parse_args()
    scale = QUICK if args.quick else FULL
    print_table(table(scale), scale=scale, json_file=args.json)


if __name__ == "__main__":
    main()
