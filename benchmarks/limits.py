"""How far a step of training is from what the machine can do, part by part.

    python benchmarks/limits.py [P1 P2 P3] [--quick] [--json FILE]

First the machine: products of large matrices, attention by the fastest way known here, and copying memory. Then each
part of a step (forward and backward, on one row; see `training.py` for the sizes) beside the time that its work must
take: products at the speed of large matrices, attention at its best, bytes at the speed of copying. All take turns, and
ratios are taken inside a round. 1 is the machine's own limit. Nothing else should run beside it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from perceivers.data.batch import TokenBatch
from perceivers.models.perceiver_ar import PerceiverAR
from perceivers.models.perceiver_ar_config import PerceiverARConfig
from perceivers.nn.attention import attend, attend_rows
from perceivers.nn.masks import AttentionMask
from perceivers.train.config import CrossEntropy
from perceivers.train.objectives import objective_loss, output_loss
from sampling_timing import Row, Task, in_turns, timed
from speed_table import print_table
from training import FULL, Scale, Setting, asked
from training_worker import VOCAB_SIZE

COPIED = 2**28
"""Bytes of the array whose copy says how fast memory is."""


@dataclass(frozen=True)
class Work:
    """What a part must do at least: operations of products and of attention, forward and backward, and bytes."""

    products: float = 0.0
    attention: float = 0.0
    bytes: float = 0.0


Part = tuple[str, Callable[[], object], Work]
"""Its name, what runs it forward and backward, and its work."""


def parts(model: PerceiverAR, dtype: torch.dtype) -> Iterator[Part]:
    """The parts of a step on one row."""
    yield from context_parts(model, dtype)
    yield from latent_parts(model, dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def update() -> None:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        optimizer.step()

    weights = sum(parameter.numel() for parameter in model.parameters())
    yield "optimiser", update, Work(bytes=7 * 4 * weights)  # reads weight, gradient, moments; writes all but one


def context_parts(model: PerceiverAR, dtype: torch.dtype) -> Iterator[Part]:
    """What grows with the context."""
    config, cross = model.config, model.cross_attend
    assert cross is not None
    m, n, c, heads = config.max_seq_len, config.num_latents, config.cross_dim, config.cross_heads
    tokens, places = torch.randint(3, VOCAB_SIZE, (1, m)), torch.arange(m)[None, :, None]
    turn = model.rotate_context(places)
    q = torch.randn(1, heads, n, c // heads, dtype=dtype, requires_grad=True)

    def read() -> Tensor:
        rows = cross.rows(model.token_embedding.weight, tokens, turn)
        return attend_rows(q, rows, mask=AttentionMask(causal=True))

    # Keys and values of each token are taken from those of each id: they need not exist, so no bytes are counted.
    pairs = n * (m - n) + n * (n + 1) // 2
    work = Work(products=3 * 2 * VOCAB_SIZE * config.dim * 2 * c, attention=3 * 4 * pairs * c)
    yield "cross-attention to the context", both(read, dtype), work


def latent_parts(model: PerceiverAR, dtype: torch.dtype) -> Iterator[Part]:
    """What does not."""
    config, cross = model.config, model.cross_attend
    assert cross is not None
    n, c, d, heads = config.num_latents, config.cross_dim, config.dim, config.cross_heads
    turn_queries, turn = model.rotate_latents(torch.arange(n)[None, :, None])
    latents = torch.randn(1, n, d, requires_grad=True)
    keys, values = (torch.randn(1, heads, 1, c // heads, dtype=dtype) for _ in range(2))

    def around() -> Tensor:
        return cross.read(latents, keys, values, mask=AttentionMask(), rotate_q=turn_queries)

    work = Work(products=3 * 2 * n * (2 * d * c + 2 * config.cross_widening * d * d))
    yield "latents around it", both(around, dtype), work

    def stack() -> Tensor:
        x = latents
        for layer in model.layers:
            x = layer(x, mask=AttentionMask(causal=True), rotate=turn)
        return x

    products = config.depth * 3 * 2 * n * (4 * d * d + 2 * config.widening * d * d)
    work = Work(products=products, attention=config.depth * 3 * 2 * n * (n + 1) * d)
    yield "layers of latents", both(stack, dtype), work

    labels = torch.randint(3, VOCAB_SIZE, (n,))

    def loss() -> Tensor:
        return output_loss(model.logits, model.outputs(latents)[0], labels, CrossEntropy()).sum

    yield "logits and loss", both(loss, dtype), Work(products=3 * 2 * n * d * VOCAB_SIZE)


def both(forward: Callable[[], Tensor], dtype: torch.dtype) -> Callable[[], None]:
    """Forward, with products in `dtype`, then backward from a gradient that is there already."""
    made: list[Tensor] = []

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = forward()
        if not made:
            made.append(torch.randn_like(out))
        out.backward(made[0])

    return run


def machine_tasks(model: PerceiverAR, dtype: torch.dtype, matrix: int) -> dict[str, tuple[Task, float]]:
    """What the machine can do: tasks, and the operations or bytes of each."""
    config = model.config
    a, b = (torch.randn(matrix, matrix).to(dtype) for _ in range(2))
    source = torch.ones(COPIED // 4)
    target = torch.empty_like(source)
    heads, n = config.cross_heads, config.num_latents
    keys = min(config.max_seq_len, 8 * n)
    q, k, v = (torch.randn(1, heads, x, config.cross_dim // heads, dtype=dtype) for x in (n, keys, keys))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    grad = torch.randn(1, heads, n, config.cross_dim // heads, dtype=dtype)
    operations = 3 * 4 * n * keys * config.cross_dim

    def attention(run: Callable[[], Tensor]) -> tuple[Task, float]:
        return timed(lambda: run().backward(grad)), operations

    return {
        "products": (timed(lambda: a @ b), 2.0 * matrix**3),
        "attention, ours": attention(lambda: attend(q, k, v, mask=AttentionMask())),
        "attention, PyTorch's": attention(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)),
        "copying": (timed(lambda: target.copy_(source)), 2.0 * COPIED),
    }


def limits(name: str, setting: Setting, scale: Scale, dtype: torch.dtype) -> Iterator[Row]:
    """The rows of one setting in one precision."""
    torch.manual_seed(0)
    about = ("limits", f"{name}: M {setting.context:,}, N {setting.latents:,}, {str(dtype).removeprefix('torch.')}")
    size = {"dim": scale.dim, "depth": scale.depth, "heads": scale.heads, "cross_heads": scale.heads, "dropout": 0.0}
    model = PerceiverAR(
        PerceiverARConfig(vocab_size=VOCAB_SIZE, max_seq_len=setting.context, num_latents=setting.latents, **size)
    ).train()
    known = machine_tasks(model, dtype, 2048 if scale is FULL else 64)
    found = {part: (timed(run), work) for part, run, work in parts(model, dtype)}
    step = whole_step(model, setting.context, dtype == torch.bfloat16)
    tasks = {what: task for what, (task, _) in known.items()} | {part: task for part, (task, _) in found.items()}
    seconds = in_turns(tasks | {"a step": timed(step)}, setting.rounds)
    speed = {what: amount / seconds[what] for what, (_, amount) in known.items()}
    for what, each in speed.items():
        unit, per = ("GB/s", 1e9) if what == "copying" else ("GFLOP/s", 1e9)
        yield Row.of(*about, what, each / per, unit)
    best = np.maximum(speed["attention, ours"], speed["attention, PyTorch's"])
    least = {
        part: work.products / speed["products"] + work.attention / best + work.bytes / speed["copying"]
        for part, (_, work) in found.items()
    }
    for part, possible in least.items():
        yield Row.of(*about, f"{part}: taken", 1000 * seconds[part], "ms")
        yield Row.of(*about, f"{part}: possible / taken", possible / seconds[part], "x")
    possible = np.sum(list(least.values()), 0)
    yield Row.of(*about, "a step: taken", 1000 * seconds["a step"], "ms")
    yield Row.of(*about, "a step: possible / taken", possible / seconds["a step"], "x")


def whole_step(model: PerceiverAR, context: int, bfloat16: bool) -> Callable[[], None]:
    """Forward, backward and update, as `perceivers train` does them."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    positions = torch.arange(1, context + 2)[None, :, None]
    tokens = torch.randint(3, VOCAB_SIZE, (1, context + 1))
    batch = TokenBatch(tokens, positions, torch.tensor([context + 1]))

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = objective_loss(model, batch, CrossEntropy())
        (loss.sum / model.config.num_latents).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def table(names: list[str], scale: Scale) -> Iterator[Row]:
    """The rows of all settings asked for."""
    for name, setting in scale.settings.items():
        if name in names or not names:
            for dtype in (torch.float32, torch.bfloat16):
                yield from limits(name, setting, scale, dtype)


def main() -> None:
    args, scale = asked(__doc__)
    print_table(table(args.settings, scale), scale=scale, json_file=args.json)


if __name__ == "__main__":
    main()
