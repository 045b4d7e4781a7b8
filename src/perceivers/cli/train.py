"""`perceivers train`: a preset or a file of settings, flags that change it, and data -> a run directory."""

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from perceivers.cli.console import note, warn
from perceivers.cli.flags import CONFIG, HELP, parse, read_config, read_settings
from perceivers.cli.next_commands import use
from perceivers.commands import command, free_run
from perceivers.presets import PRESETS, preset
from perceivers.train.config import CrossEntropy, TrainConfig

if TYPE_CHECKING:
    from perceivers.train.run import Run

DESCRIPTION = """Train a model.

SETTINGS is a preset (`perceivers presets` lists them), a YAML file with a line `preset: NAME` and values that differ
from it, or a run directory, for the settings of that run. Flags change them; the defaults shown are those of SETTINGS.

    perceivers train music_small --data store --out runs/a --model.num-latents 512

    perceivers train runs/a --resume --max-steps 50000
"""

MAIN = (
    *("--data", "--out", "--resume", "--init", "--max-minutes", "--max-steps", "--data.batch-size", "--optim.lr"),
    *("--model.max-seq-len", "--model.num-latents", "--model.dim", "--model.depth"),
    *("--model.encoder.num-latents", "--model.encoder.dim", "--model.encoder.depth"),
    *("--model.latents", "--model.dims", "--model.depths"),
    *("--eval-every", "--compile", "--precision", "--device"),
)
"""Flags that most runs need, of each family."""

LONGER = 10
"""Times as many steps as its warm-up, as a line of its log and as it made are proposed for a run that was too short."""

FREE_ON_RESUME = ("dropout", "prefix_dropout", "latent_dropout", "backend", "zero_logits", "latent_init_std")
"""Fields of the model that may change between the parts of a run: no weight depends on them."""


@dataclass(frozen=True, kw_only=True)
class TrainFlags:
    """What a run needs besides its settings."""

    data: Path | None = None
    """What `perceivers prepare` made; when a run is resumed, what it has."""
    out: Path | None = None
    """Run directory to make; when a run directory is resumed, that one."""
    init: Path | None = None
    """Run or saved model whose weights to start from."""
    resume: bool = False
    """Go on from the newest checkpoint in the run directory."""
    tensorboard: bool = False
    """Write TensorBoard events, too."""


@dataclass(frozen=True, kw_only=True)
class _Parsed:
    flags: Annotated[TrainFlags, tyro.conf.arg(name="")]
    config: Annotated[tyro.conf.FlagConversionOff[tyro.conf.AvoidSubcommands[TrainConfig]], tyro.conf.arg(name="")]


def run(args: Sequence[str]) -> int:
    """Parse, train, say what was made."""
    source, args = _settings(args)
    config, changes = read_settings(source)
    flags, config = parse_train(config, [*changes, *args], prog=f"perceivers train {source}")
    out = flags.out or (Path(source) if flags.resume and Path(source).is_dir() else None)
    if out is None:
        raise ValueError(f"where should the run go? Add --out, for example --out runs/{Path(source).stem}")
    if flags.resume and (out / CONFIG).exists():  # without it, nothing was begun
        check_resumed(read_config(out / CONFIG), config, out)
    return train_and_report(config, out, flags)


def _settings(args: Sequence[str]) -> tuple[str, list[str]]:
    """The first argument, and the others; ends the process with the general help if that is asked for."""
    if args and not args[0].startswith("-"):
        return args[0], list(args[1:])
    if asked := HELP & set(args):
        parse_train(preset("music_small"), [*asked], prog="perceivers train SETTINGS")
    example = command("train", next(iter(PRESETS)), "--data", "STORE", "--out", free_run())
    raise ValueError(f"name a preset, a YAML file or a run first: {example}")


def parse_train(config: TrainConfig, args: Sequence[str], *, prog: str) -> tuple[TrainFlags, TrainConfig]:
    """Flags of the command, and `config` as changed by the other flags."""
    default = _Parsed(flags=TrainFlags(), config=config)
    parsed = parse(_Parsed, args, prog=prog, description=DESCRIPTION, default=default, main=MAIN)
    return parsed.flags, parsed.config


def check_resumed(before: TrainConfig, now: TrainConfig, out: Path) -> None:
    """Refuse to resume a run with another model; say what else is not as it was.

    Raises:
        ValueError: A weight would not fit.
    """
    changed = differences(before, now)
    if fixed := [c for c in changed if c[0].startswith("model.") and c[0].rsplit(".", 1)[-1] not in FREE_ON_RESUME]:
        shown = ", ".join(f"--{name.replace('_', '-')} {was}" for name, was, _ in fixed)
        raise ValueError(
            f"{out} was begun with another model, {shown}: go on with its own settings "
            f"({command('train', out, '--resume')}), or start a new run with another --out"
        )
    for name, was, is_now in changed:
        note(f"{name} is {is_now} from here on; it was {was}")


def differences(before: Any, now: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Names of the fields in which two records differ, and their values."""
    if type(before) is not type(now) or not is_dataclass(before):
        return [] if before == now else [(path.removesuffix("."), before, now)]
    pairs = [(f.name, getattr(before, f.name), getattr(now, f.name)) for f in fields(before)]
    return [found for name, a, b in pairs for found in differences(a, b, f"{path}{name}.")]


def train_and_report(config: TrainConfig, out: Path, flags: TrainFlags) -> int:
    """Train as the command line says and print what was made."""
    from perceivers.cli.hooks import evaluation, sampler
    from perceivers.cli.memory import check_memory
    from perceivers.train.checkpoint import checkpoints
    from perceivers.train.data import open_store
    from perceivers.train.data_record import data_record, recorded_store
    from perceivers.train.loop import train
    from perceivers.train.pictures import numbered_as_before

    store = open_store(flags.data) if flags.data else None
    if store is None and flags.resume and data_record(out) is not None:
        store = recorded_store(out)
    resumed = out if flags.resume and (out / "data.json").is_file() else None
    store = numbered_as_before(config, store, init=flags.init, resumed=resumed)
    check_memory(config)
    if config.parallel.processes > 1 and config.sample_every and os.environ.get("RANK", "0") == "0":
        note(f"no samples are written on the way, as {config.parallel.processes} processes share the model")
    try:
        finished = train(
            config,
            out,
            store=store,
            init=flags.init,
            resume=flags.resume,
            evaluate=evaluation(config, store),
            sample=sampler(config, out, store),
            tensorboard=flags.tensorboard,
        )
    except KeyboardInterrupt:
        saved = checkpoints(out)
        if saved:
            go_on = command("train", out, "--resume")
            print(f"\nstopped and saved: {saved[-1]}\ngo on with: {go_on}", file=sys.stderr)
        else:
            print("\nstopped before anything was saved", file=sys.stderr)
        return 130
    if finished.place.rank == 0:
        report(finished)
    return 0


def report(finished: "Run") -> None:
    """Print what a run made and what to do next; where it made too few steps to be of use, say that."""
    config, out = finished.config, finished.out
    state = finished.state
    print(f"{out}: {state.step:,} steps, {state.tokens:,} {config.targets}, {state.minutes:.1f} minutes")
    print(f"  {out}/model.safetensors, config.json   the model")
    print(f"  {out}/metrics.jsonl                    its numbers, step by step")
    if any((out / "samples").glob("*")):
        print(f"  {out}/samples/                         what it made on the way")
    if (fault := too_short(finished)) is not None:
        steps = LONGER * max(state.step, config.log_every, config.optim.warmup_steps)
        longer = ("--max-steps", steps)
        if config.max_minutes and state.step < config.max_steps:
            longer = ("--max-minutes", math.ceil(steps * state.minutes / max(state.step, 1)))
        warn(
            f"{fault}, so the model has learned next to nothing: train longer "
            f"({command('train', out, '--resume', *longer)}), or take a smaller model or smaller batches"
        )
        return
    print("next:")
    for line in next_commands(finished):
        print(f"  {line}")


def next_commands(finished: "Run") -> list[str]:
    """What to do with a run, on the data that it was not trained on."""
    from perceivers.train.data_record import data_record

    out, record = finished.out, data_record(finished.out)
    held_out = [] if record is None else [split for split in ("test", "validation") if split in record["splits"]]
    which = ["--split", "validation"] if held_out == ["validation"] else []
    lines = [command("evaluate", out, *which)] if held_out or record is None else []
    if finished.tokenizer != "pictures":
        return [*lines, *filter(None, [use(out, finished.tokenizer)])]
    if record is not None and held_out and isinstance(finished.config.objective, CrossEntropy):
        lines.append(command("predict", out, record["path"], "--split", held_out[0]))
    return lines


def too_short(finished: "Run") -> str | None:
    """Why a run was too short to be of use; None if it was not."""
    steps, log_every = finished.state.step, finished.config.log_every
    if finished.reached_lr is False:
        return f"the run ended inside its warm-up, after {steps:,} {'step' if steps == 1 else 'steps'}"
    if steps < log_every:
        return f"the run made {steps:,} {'step' if steps == 1 else 'steps'}, fewer than one line of its log tells of"
    return None
