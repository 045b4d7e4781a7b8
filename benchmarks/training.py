"""Steps of training: ours, another Perceiver AR and a decoder, as wide and as deep, on one row of bytes.

    python benchmarks/training.py [P1 P2 P3 P4] [--quick] [--json FILE]

Each model trains in a process of its own: forward, backward, AdamW. They take turns, two steps each, of which the
second counts, and each ratio is taken inside a round. The table has the median of the rounds, the lowest and the
highest, and the most memory that each process used above its libraries. Ours runs in float32 and with bfloat16
products, each also compiled (`perceivers train --compile`). perceiver-ar-pytorch fails with bfloat16; its cross-attend
takes two heads at a time, as it does by default, and one, which should take least memory. Other packages are installed
in an environment of their own. Nothing else should run beside it.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from perceivers.cli.main import LARGE_PAGES
from sampling_peers import ENVIRONMENT, VERSIONS, Worker, installed_peers
from sampling_timing import Row, Task, in_turns
from speed_table import parser_of, print_table

SCRIPT = Path(__file__).with_name("training_worker.py")

OURS = {
    "ours, float32": {},
    "ours, bfloat16": {"bfloat16": True},
    "ours, float32, compiled": {"compiled": True},
    "ours, bfloat16, compiled": {"bfloat16": True, "compiled": True},
}

PEERS = {
    "perceiver-ar-pytorch, float32": {"who": "perceiver-ar-pytorch"},
    "perceiver-ar-pytorch, float32, a head at a time": {"who": "perceiver-ar-pytorch", "heads_at_once": 1},
    "x-transformers, float32": {"who": "x-transformers"},
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How long rows are, and who trains on them."""

    context: int
    latents: int
    peers: tuple[str, ...] = tuple(VERSIONS)
    rounds: int = 5


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is."""

    dim: int
    depth: int
    heads: int
    settings: dict[str, Setting]


FULL = Scale(
    dim=512,
    depth=8,
    heads=8,
    settings={
        "P1": Setting(context=4096, latents=512),
        "P2": Setting(context=16_384, latents=512, rounds=3),  # a step of the decoder takes more than a minute
        # What a decoder keeps for its gradients does not fit into memory here.
        "P3": Setting(context=65_536, latents=1024, peers=("perceiver-ar-pytorch",), rounds=3),
        "P4": Setting(context=131_072, latents=1024, peers=(), rounds=3),
    },
)
QUICK = Scale(
    dim=32,
    depth=2,
    heads=2,
    settings={
        "P1": Setting(context=64, latents=16, rounds=2),
        "P4": Setting(context=128, latents=16, rounds=2, peers=()),
    },
)


def compare(name: str, setting: Setting, scale: Scale, peers: list[str]) -> Iterator[Row]:
    """The rows of one setting."""
    about = ("training", f"{name}: M {setting.context:,}, N {setting.latents:,}")
    contenders = {what: {"who": "perceivers", **how} for what, how in OURS.items()}
    contenders |= {what: how for what, how in PEERS.items() if how["who"] in setting.peers and how["who"] in peers}
    size = {"dim": scale.dim, "depth": scale.depth, "heads": scale.heads, "latents": setting.latents}
    with ExitStack() as stack:
        tasks: dict[str, Task] = {}
        workers: dict[str, Worker] = {}
        for what, contender in contenders.items():
            python = Path(sys.executable) if what in OURS else ENVIRONMENT / "bin" / "python"
            settings = LARGE_PAGES if what in OURS else None  # as the command line sets them
            workers[what] = worker = stack.enter_context(Worker(python, SCRIPT, settings))
            built = worker.ask(do="build", context=setting.context, **contender, **size)
            yield Row.of(*about, f"{what}: parameters", built["parameters"] / 1e6, "million")
            tasks[what] = lambda worker=worker: second_step(worker)
        seconds = in_turns(tasks, setting.rounds)
        peaks = {what: worker.ask(do="peak")["bytes"] for what, worker in workers.items()}
    for what, each in seconds.items():
        targets = setting.context if what.startswith("x-") else setting.latents
        yield Row.of(*about, f"{what}: a step", each, "s")
        yield Row.of(*about, f"{what}: targets", targets / each, "targets/s")
        yield Row.of(*about, f"{what}: most memory", peaks[what] / 1e9, "GB")
    for peer in [what for what in seconds if what.startswith("perceiver-ar-pytorch")]:
        for ours in OURS:
            yield Row.of(*about, f"{peer} / {ours}: a step", seconds[peer] / seconds[ours], "x")
            yield Row.of(*about, f"{ours} / {peer}: most memory", peaks[ours] / peaks[peer], "x")


def second_step(worker: Worker) -> float:
    """Seconds of a step after another one.

    While others have their turn, the system takes back memory that is free: the next step took up to twice as long.
    """
    worker.ask(do="step")
    return worker.ask(do="step")["seconds"]


def table(names: list[str], scale: Scale) -> Iterator[Row]:
    """The rows of all settings asked for."""
    chosen = {name: setting for name, setting in scale.settings.items() if name in names or not names}
    peers = installed_peers(ENVIRONMENT) if any(setting.peers for setting in chosen.values()) else []
    for name, setting in chosen.items():
        yield from compare(name, setting, scale, peers)


def asked(description: str | None) -> tuple[argparse.Namespace, Scale]:
    """The command line, and the sizes that it asks for."""
    parser = parser_of(description)
    parser.add_argument("settings", nargs="*", help=f"which of {', '.join(FULL.settings)}; all without any")
    args = parser.parse_args()
    scale = QUICK if args.quick else FULL
    if unknown := set(args.settings) - set(scale.settings):
        parser.error(f"{min(unknown)}: choose from {', '.join(scale.settings)}")
    return args, scale


def main() -> None:
    args, scale = asked(__doc__)
    print_table(table(args.settings, scale), scale=scale, json_file=args.json)


if __name__ == "__main__":
    main()
