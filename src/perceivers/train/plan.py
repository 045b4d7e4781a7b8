"""How a run is shared among GPUs: memory, operations and bytes on the wire of each, from the config alone.

Sizes are estimates, see `perceivers.models.cost`; what GPUs and wires can do is assumed (`Machine`), not measured.

`parallel.fsdp` is the number of parts in which weights are cut, dp x cp that of copies of each part.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from perceivers.models.config import ModelConfig
from perceivers.models.cost import (
    ALLOCATOR_SHARE,
    TrainingMemory,
    count_parameters,
    forward_flops,
    parts,
    training_memory,
)
from perceivers.models.perceiver_ar_config import PerceiverARConfig
from perceivers.train.config import CrossEntropy, ParallelConfig, TrainConfig

CHUNK_WORK = 2 * 4 * 4096
"""Bytes a latent, head and row while a spread context is read (`perceivers.nn.spread`): as much as two arrays of 4,096
scores in float32, by measurement; not all of its arrays exist when the rest is at its peak."""


@dataclass(frozen=True)
class Machine:
    """What a GPU is assumed to do; by default an H100 SXM in a machine of eight (its data sheet)."""

    peak: float = 989e12
    """Operations a second of bfloat16 products."""
    reached: float = 0.5
    """Share of the peak that products reach while nothing is waited for."""
    near: float = 450e9
    """Bytes a second, one way, between GPUs of one machine."""
    far: float = 50e9
    """Bytes a second, one way, from each GPU to another machine."""
    gpus: int = 8
    """In one machine."""


@dataclass(frozen=True)
class Plan:
    """One way to share a run."""

    config: TrainConfig
    """The run, with the rows, accumulated batches, recomputation and shares of this plan; the update is the same."""
    memory: TrainingMemory
    """Of each GPU."""
    flops: int
    """Operations of each GPU, a step."""
    wire: dict[str, tuple[int, float]]
    """Bytes that each GPU sends a step, and seconds that takes, by what for."""
    seconds: float
    """A step, if nothing is sent while something is computed."""
    share_of_peak: float
    """Operations that one GPU alone would need for the step, over what all could do in that time."""


def best_plan(config: TrainConfig, *, gpus: int, memory: int, machine: Machine | None = None) -> Plan:
    """The fastest of the plans that fit.

    Args:
        config: The run; its `parallel`, and how its rows divide into accumulated batches, don't count.
        gpus: Processes, each with a GPU of its own.
        memory: Bytes of a GPU.
        machine: What the GPUs do.

    Raises:
        ValueError: No plan fits, or the rows don't divide among so many GPUs.
    """
    found = list(plans(config, gpus, machine or Machine()))
    if not found:
        rows = config.data.batch_size * config.accumulate
        raise ValueError(f"{rows:,} rows an update can't be shared by {gpus:,} GPUs: choose numbers that divide")
    fitting = [plan for plan in found if plan.memory.total <= memory]
    if not fitting:
        least = min(found, key=lambda plan: plan.memory.total)
        raise ValueError(
            f"no way to share this run among {gpus:,} GPUs fits: the smallest takes {least.memory.total / 1e9:.1f} GB "
            f"of each ({plan_flags(least.config)}), and there are {memory / 1e9:.1f}; take more GPUs or a smaller model"
        )
    return min(fitting, key=lambda plan: (plan.seconds, plan.memory.total))


def plans(config: TrainConfig, gpus: int, machine: Machine) -> Iterator[Plan]:
    """Every way to share a run."""
    rows = config.data.batch_size * config.accumulate
    model, objective = config.model, config.objective
    swept = isinstance(objective, CrossEntropy) and objective.sweep > 1
    spreads = isinstance(model, PerceiverARConfig) and not swept
    for fsdp in _divisors(gpus):
        for cp in _divisors(gpus // fsdp) if spreads else [1]:
            parallel = ParallelConfig(dp=gpus // fsdp // cp, fsdp=fsdp, cp=cp)
            readers = parallel.dp * parallel.fsdp
            for batches in _divisors(rows // readers) if rows % readers == 0 else []:
                for recompute in (False, True):
                    shared = replace(
                        config,
                        parallel=parallel,
                        data=replace(config.data, batch_size=rows // batches),
                        accumulate=batches,
                        recompute=recompute,
                    )
                    yield plan(shared, machine)


def plan(config: TrainConfig, machine: Machine) -> Plan:
    """What each process of `config.parallel` needs, on GPUs with products in bfloat16."""
    parallel, batches = config.parallel, config.accumulate
    rows = config.data.batch_size // (parallel.dp * parallel.fsdp)
    model = _own_model(config.model, parallel.cp)
    forward = _forward(model) * rows * batches
    flops = (4 if config.recompute else 3) * forward
    wire = {
        what: (size, size / (machine.near if reach <= machine.gpus else machine.far))
        for what, (size, reach) in _wire(config, rows).items()
        if size
    }
    seconds = flops / (machine.peak * machine.reached) + sum(time for _, time in wire.values())
    useful = 3 * _forward(config.model) * config.data.batch_size * batches
    return Plan(
        config=config,
        memory=_memory(config, model, rows, bfloat16=True, cpu=False),
        flops=flops,
        wire=wire,
        seconds=seconds,
        share_of_peak=useful / (parallel.processes * machine.peak * seconds),
    )


def process_memory(config: TrainConfig, *, rows: int, bfloat16: bool, cpu: bool) -> TrainingMemory:
    """What one process of a run takes, with `rows` rows a batch of its own."""
    model = _own_model(config.model, config.parallel.cp)
    return _memory(config, model, rows, bfloat16=bfloat16, cpu=cpu)


def _own_model(model: ModelConfig, cp: int) -> ModelConfig:
    """The model as if its context were what one process has of it, at least all latents (`nn.spread.columns_of`)."""
    if cp == 1 or not isinstance(model, PerceiverARConfig):
        return model
    return replace(model, max_seq_len=max(model.num_latents, -(-model.max_seq_len // cp)))


def _memory(config: TrainConfig, model: ModelConfig, rows: int, *, bfloat16: bool, cpu: bool) -> TrainingMemory:
    """Layers are put together while they are needed, the rest stays: `train.parallel.share`."""
    parallel = config.parallel
    alone = _alone(model, rows, bfloat16, cpu, config.recompute)
    if parallel.processes == 1:
        return alone
    every, layers = _parameters(config.model)
    rest, kept = every - layers * _depth(config.model), every / parallel.fsdp
    two = 2 * ALLOCATOR_SHARE * layers  # at a time
    if parallel.fsdp > 1:  # and what is no layer, of which products need copies in bfloat16
        gathered = two * (2 if bfloat16 else 4) + rest * (6 if bfloat16 else 4)
    else:
        gathered = every * (2 if bfloat16 else 0)
    gradients = every if config.accumulate > 1 else kept + rest + two
    chunks = 0
    if parallel.cp > 1 and isinstance(model, PerceiverARConfig):
        chunks = rows * model.num_latents * model.cross_heads * CHUNK_WORK
    return TrainingMemory(
        weights=round(4 * kept + gathered),
        gradients=round(4 * gradients),
        moments=round(8 * kept),
        activations=alone.activations + chunks,
        logits=alone.logits,
    )


def _wire(config: TrainConfig, rows: int) -> dict[str, tuple[int, int]]:
    """Bytes that each process sends a step, and how many neighbouring processes they stay among, by what for.

    A gather or scatter among f sends (f - 1) / f of the whole, an all-reduce twice that.
    """
    parallel, model, batches = config.parallel, config.model, config.accumulate
    every, layers = _parameters(model)
    stack = layers * _depth(model)
    f, copies = parallel.fsdp, parallel.dp * parallel.cp
    gathers = batches * (2 * 2 * stack + 4 * (every - stack))  # layers in bfloat16, forward and backward
    wire = {
        "weights": (round((f - 1) / f * gathers), f),
        "gradients": (round((f - 1) / f * 4 * every), f),
        "gradients of copies": (round(2 * (copies - 1) / copies * 4 * every / f), parallel.processes),
    }
    if parallel.cp > 1 and isinstance(model, PerceiverARConfig):
        reads = model.initial_cross_attend + len(model.extra_cross_attends)
        latents = rows * batches * model.num_latents * model.latents_per_position
        # Forward what was read and its weight, backward the latents' gradient, both in float32.
        a_latent = 4 * (2 * model.cross_dim + 2 * model.cross_heads)
        share = 2 * (parallel.cp - 1) / parallel.cp
        wire["what latents read"] = (round(share * reads * latents * a_latent), parallel.cp * f)
    return wire


@cache
def _parameters(model: ModelConfig) -> tuple[int, float]:
    """All, and those of one layer of the stack."""
    stacks = ("latent stack", "layers", "blocks")
    stack = sum(part.parameters for part in parts(model) if part.name in stacks)
    return count_parameters(model), stack / max(1, _depth(model))


def _depth(model: ModelConfig) -> int:
    """Layers of the stack."""
    match model.kind:
        case "perceiver_io":
            return model.encoder.depth
        case "hip":
            return sum(model.depths)
        case _:
            return model.depth


@cache
def _forward(model: ModelConfig) -> int:
    return forward_flops(model, training=True)


@cache
def _alone(model: ModelConfig, rows: int, bfloat16: bool, cpu: bool, recompute: bool) -> TrainingMemory:
    return training_memory(model, rows=rows, bfloat16=bfloat16, cpu=cpu, recompute=recompute)


def plan_flags(config: TrainConfig) -> str:
    """The flags that make a run the same."""
    p = config.parallel
    flags = f"--parallel.dp {p.dp} --parallel.fsdp {p.fsdp} --parallel.cp {p.cp}"
    flags += f" --data.batch-size {config.data.batch_size} --accumulate {config.accumulate}"
    return flags + (" --recompute True" if config.recompute else "")


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
