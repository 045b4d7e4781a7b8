"""`perceivers show`: size, cost and settings of a run, a saved model or a preset."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from perceivers.cli.console import big, counted, table
from perceivers.cli.flags import CONFIG, parse, read_config
from perceivers.cli.show_plan import describe_plan
from perceivers.data.config import CopyConfig, DataConfig
from perceivers.data.masked_config import MaskedTextConfig
from perceivers.data.picture_config import PictureConfig, WarpConfig
from perceivers.models.config import ModelConfig
from perceivers.models.cost import count_parameters, forward_flops, parts, training_memory
from perceivers.models.ecp_config import ECPConfig
from perceivers.models.hip_config import HiPConfig
from perceivers.models.output_config import (
    AverageOutputConfig,
    GridQueries,
    MultimodalOutputConfig,
    QueryOutputConfig,
)
from perceivers.models.perceiver_ar_config import PerceiverARConfig
from perceivers.models.perceiver_config import PerceiverIOConfig
from perceivers.nearest import suggestion
from perceivers.presets import PRESETS, preset, summary
from perceivers.records import from_dict, parse_json
from perceivers.train.config import WARMUP_SHARE, TrainConfig
from perceivers.writing import finish_files

DESCRIPTION = """Show the size, cost and settings of a run, a saved model or a preset.

    perceivers show music_small

    perceivers show runs/a

    perceivers show bytes_1b --gpus 8 --memory 80
"""


@dataclass(frozen=True, kw_only=True)
class ShowFlags:
    """Arguments of `perceivers show`."""

    what: Positional[str]
    """Preset, run directory or saved model."""
    gpus: int | None = None
    """Say how to share the run among so many GPUs, and what that takes."""
    memory: float = 80.0
    """Of each GPU, in GB."""


def run(args: Sequence[str]) -> int:
    """Parse, look, print."""
    flags = parse(ShowFlags, args, prog="perceivers show", description=DESCRIPTION)
    what, place = flags.what, Path(flags.what)
    if what in PRESETS or not place.exists():
        config = preset(what)
        print(f"{what}: {summary(what)}\n")
        print("\n\n".join([describe_model(config.model), describe_training(config), *_plan(flags, config)]))
        return 0
    if (place / CONFIG).is_file():
        config = read_config(place / CONFIG)
        sections = [describe_model(config.model), describe_training(config), describe_run(place, config.targets)]
        sections += _plan(flags, config)
    else:
        model, tokenizer = read_model_config(place)
        sections = [describe_model(model), f"reads {tokenizer!r} tokens; how it was trained is not on record"]
    print(f"{what}\n")
    print("\n\n".join(sections))
    return 0


def _plan(flags: ShowFlags, config: TrainConfig) -> list[str]:
    if flags.gpus is None:
        return []
    if flags.gpus < 1 or flags.memory <= 0:
        raise ValueError(f"--gpus {flags.gpus} --memory {flags.memory:g}: give at least 1 GPU, and its memory in GB")
    return [describe_plan(config, flags.what, gpus=flags.gpus, memory=round(flags.memory * 1e9))]


def read_model_config(directory: Path) -> tuple[ModelConfig, str]:
    """The config and tokenizer of a saved model, without its weights.

    Raises:
        FileNotFoundError: There is none.
        ValueError: The file is damaged.
    """
    finish_files(directory)
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory} is neither a run nor a saved model: it has no {CONFIG} and no config.json"
            + suggestion(directory)
        )
    from perceivers.convert.huggingface import is_huggingface, read_huggingface_config

    if is_huggingface(directory):
        return read_huggingface_config(directory)
    try:
        saved = parse_json(path.read_text(encoding="utf-8"))
        return from_dict(ModelConfig, saved["model"]), from_dict(str, saved["tokenizer"], path="tokenizer")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a model's config: {error!r}") from error


def describe_model(config: ModelConfig) -> str:
    """Parts, lengths and cost of a model."""
    total = count_parameters(config)
    rows = [(part.name, part.shape, f"{part.parameters:,}") for part in parts(config)]
    rows.append(("all", "", f"{total:,}"))
    forward, training = forward_flops(config), 3 * forward_flops(config, training=True)
    facts = [*_lengths(config), ("weights", f"{big(4 * total, 'B')} in float32")]
    for name, flops in (("forward", forward), ("training", training)):
        cost = f"{big(flops, 'FLOP')} a sample"
        if isinstance(config, PerceiverARConfig | ECPConfig):
            cost = f"{big(flops, 'FLOP')} a sequence, {big(flops / config.num_targets, 'FLOP')} a predicted token"
        facts.append((name, cost))
    return f"{table([('part', 'shape', 'parameters'), *rows], right=(2,))}\n\n{table(facts)}"


def _lengths(config: ModelConfig) -> list[tuple[str, str]]:
    """What goes in and what is asked, by family."""
    match config:
        case PerceiverARConfig():
            latents = f"{config.num_latents:,} latents and {config.max_prefix_len:,} before them"
            return [("inputs", f"{config.max_seq_len:,}: {latents}")]
        case ECPConfig(pattern="ecp"):
            segments = f"segments of {config.segment_len:,}, and every one predicts"
            reach = f"{config.depth} layers reach {config.reach:,} back"
            return [("inputs", f"{config.max_seq_len:,} in {segments}; {reach}")]
        case ECPConfig():
            latents = f"{config.num_targets:,} latents and {config.context_len:,} before them"
            return [("inputs", f"{config.max_seq_len:,}: {latents}, pattern {config.pattern}")]
        case PerceiverIOConfig():
            return [("inputs", f"{config.input.tokens:,} of {config.input.dim:,} channels"), *_queries(config)]
        case HiPConfig():
            sizes = [
                (f"inputs of {data_set.name}", f"{sum(m.positions for m in data_set.modalities):,} positions")
                for data_set in config.data_sets
            ]
            return [*sizes, *((name, _by_block(getattr(config, name))) for name in ("groups", "latents", "dims"))]


def _queries(config: PerceiverIOConfig) -> list[tuple[str, str]]:
    match config.output:
        case AverageOutputConfig():
            return [("output", "average of the latents")]
        case MultimodalOutputConfig(modalities=modalities):
            return [("queries", ", ".join(f"{m.queries.count:,} of {m.name}" for m in modalities))]
        case QueryOutputConfig(queries=GridQueries() as queries):
            return [("queries", f"{queries.count:,}")]
        case _:
            return [("queries", "the inputs")]


def _by_block(values: tuple[int, ...]) -> str:
    return ", ".join(f"{value:,}" for value in values)


def describe_training(config: TrainConfig) -> str:
    """Steps, optimiser and memory of a run."""
    data, optim = config.data, config.optim
    rows = f"{data.batch_size:,} rows" + (f" in each of {config.accumulate:,} batches" if config.accumulate > 1 else "")
    length = f"or {config.max_minutes:g} minutes, " if config.max_minutes else ""
    facts = [
        ("steps", f"{config.max_steps:,}, {length}of {rows}: {_rows(config)}"),
        ("optimiser", f"{optim.optimizer}, {optim.lr:g} {_warmup(config)}then {optim.schedule}"),
    ]
    for name, bfloat16 in (("float32", False), ("bfloat16", True)):
        memory = training_memory(config.model, rows=data.batch_size, bfloat16=bfloat16, cpu=True)
        pieces = ", ".join(f"{part} {big(size, 'B')}" for part, size in vars(memory).items())
        facts.append((f"memory, {name}", f"about {big(memory.total, 'B')} on a CPU: {pieces}"))
    return table(facts)


def _warmup(config: TrainConfig) -> str:
    """When the rate is reached: under a clock, warm-up ends with a share of the run at the latest."""
    if not config.optim.warmup_steps:
        return "from the start, "
    after = f"after {counted(config.optim.warmup_steps, 'step')}"
    if config.max_minutes is None:
        return f"{after}, "
    share = f"{WARMUP_SHARE * 100:.0f} % of the run ({WARMUP_SHARE * config.max_minutes:.2g} minutes at most)"
    return f"{after} or {share}, whichever is first, "


def _rows(config: TrainConfig) -> str:
    """What a row of a batch is."""
    match config.data:
        case CopyConfig(length=length):
            return f"the copy task, {length:,} tokens"
        case DataConfig(crop=crop):
            return f"{crop} crops"
        case MaskedTextConfig(share=share, unit=unit):
            return f"text with {share:.0%} of its {unit} masked"
        case PictureConfig(hidden=hidden):
            return f"pictures with {hidden:.0%} of their pixels hidden" if hidden else "pictures"
        case WarpConfig(shape=(height, width)):
            return f"pairs of frames of {height} x {width}"
        case _:
            return config.data.kind


def describe_run(run: Path, targets: str) -> str:
    """What a run has seen, how many `targets` for one, and how far it is."""
    from perceivers.train.metrics import read_metrics

    facts = [("data", _data(run))]
    rows = read_metrics(run) if (run / "metrics.jsonl").exists() else []
    done: dict[str, Any] = {}
    for row in rows:
        done |= {name: value for name, value in row.items() if value is not None}
    if "tokens" in done:
        facts.append(("done", f"{done['step']:,} steps, {done['tokens']:,} {targets}, {done['minutes']:.1f} minutes"))
    else:
        facts.append(("done", "no step on record"))
    scores = [name for name in done if name.startswith("validation/")]
    facts += [(name, f"{done[name]:.4f} (last)") for name in ("train/nats", *scores) if name in done]
    if not (run / "model.safetensors").exists():
        facts.append(("weights", "none saved yet"))
    return table(facts)


def _data(run: Path) -> str:
    path = run / "data.json"
    if not path.exists():
        return "made as it is needed"
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
        splits = "; ".join(
            f"{name} " + ", ".join(f"{count:,} {what}" for what, count in counts.items())
            for name, counts in record["splits"].items()
        )
        return f"{record['path']} ({record['tokenizer']}, {record['fingerprint']}): {splits}"
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
