"""How `perceivers show RUN --gpus 8` tells how a run is shared among GPUs."""

from perceivers.cli.console import big, table
from perceivers.commands import command, free_run
from perceivers.data.config import CopyConfig
from perceivers.train.config import TrainConfig
from perceivers.train.plan import Machine, Plan, best_plan, plan_flags


def describe_plan(config: TrainConfig, what: str, *, gpus: int, memory: int) -> str:
    """The fastest way to share a run that fits, what it takes, and how it is started.

    Args:
        config: The run.
        what: Its name on the command line.
        gpus: How many there are.
        memory: Of each, in bytes.
    """
    machine = Machine()
    plan = best_plan(config, gpus=gpus, memory=memory, machine=machine)
    shared, parallel = plan.config, plan.config.parallel
    rows = shared.data.batch_size // (parallel.dp * parallel.fsdp)
    facts = [
        ("shared", f"dp {parallel.dp} x fsdp {parallel.fsdp} x cp {parallel.cp} = {gpus} GPUs, {_rows(rows, shared)}"),
        ("memory", f"about {big(plan.memory.total, 'B')} of {big(memory, 'B')} a GPU: {_sizes(plan)}"),
        ("work", f"{big(plan.flops, 'FLOP')} a GPU and step"),
        *(
            (f"sent: {name}", f"{big(size, 'B')} a GPU and step, {time:.3g} s")
            for name, (size, time) in plan.wire.items()
        ),
        ("time", f"{plan.seconds:.3g} s a step, {plan.share_of_peak:.0%} of peak, if nothing is sent meanwhile"),
        ("assumed", _assumed(machine)),
    ]
    return f"{table(facts)}\n\n{_command(plan, what, machine)}"


def _rows(rows: int, config: TrainConfig) -> str:
    batches = f" in each of {config.accumulate:,} batches" if config.accumulate > 1 else ""
    return f"{rows:,} rows each{batches}" + (", layers computed again" if config.recompute else "")


def _sizes(plan: Plan) -> str:
    return ", ".join(f"{part} {big(size, 'B')}" for part, size in vars(plan.memory).items())


def _assumed(machine: Machine) -> str:
    return (
        f"{big(machine.peak, 'FLOP/s')} in bfloat16 of which products reach {machine.reached:.0%}, "
        f"{big(machine.near, 'B/s')} in a machine of {machine.gpus}, {big(machine.far, 'B/s')} a GPU between machines"
    )


def _command(plan: Plan, what: str, machine: Machine) -> str:
    """What starts it with torchrun, on each machine."""
    gpus = plan.config.parallel.processes
    machines, each = max(1, gpus // machine.gpus), min(gpus, machine.gpus)
    where = f"--nnodes {machines} --rdzv-backend c10d --rdzv-endpoint HOST:29500 " if machines > 1 else ""
    data = [] if isinstance(plan.config.data, CopyConfig) else ["--data", "STORE"]
    start = command("train", what, *data, "--out", free_run())
    flags = plan_flags(plan.config)
    return f"start it with:\n\n    torchrun {where}--nproc-per-node {each} -m {start} \\\n        {flags}"
