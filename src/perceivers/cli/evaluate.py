"""`perceivers evaluate`: how likely a model finds data that it was not trained on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from perceivers.cli import evaluate_io
from perceivers.cli.console import as_json, counted, failed, note, table
from perceivers.cli.flags import CONFIG, parse, read_config
from perceivers.cli.next_commands import IN_PYTHON, PREDICTED
from perceivers.data.config import CopyConfig
from perceivers.data.splits import SPLITS, split_in
from perceivers.nearest import check_source

if TYPE_CHECKING:
    from perceivers.data.tokens import TokenStore
    from perceivers.evaluate.copying import Copying
    from perceivers.evaluate.likelihood import Likelihood
    from perceivers.generate.loaded import Loaded

DESCRIPTION = """Score a model on a split of its data: every token once, with as much context as the model takes; or
masked bytes, classes, hidden pixels, optical flow, for models that predict these.

    perceivers evaluate runs/a

    perceivers evaluate runs/a --data other_store --split validation --json
"""

UNITS = {"bytes": "byte", "performance": "event"}
"""What a token is, by the model's tokenizer."""

COPY_TOKENS = 2**17
"""About so many tokens of mirrored halves are scored for the copy task."""


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags:
    """Arguments of `perceivers evaluate`."""

    run: tyro.conf.Positional[str]
    """Run directory, saved model, or model on the Hugging Face hub."""
    data: Path | None = None
    """What `perceivers prepare` made; None = what the run was trained on."""
    split: str = "test"
    """Split of the store, or of the copy task."""
    stride: int | None = None
    """Next tokens only: tokens scored a window, at most the latents; None = as many (ECP, which has none: half of its
    input). Fewer is
    slower; each token then has more context and latents before it."""
    baselines: bool = False
    """Next tokens only: also score models that count the train split: n-grams, for music also a mixing counter. Takes
    minutes and gigabytes for large stores."""
    pieces: int = 20
    """Music: so many pieces of the split, at most, are played on by the model after 10 s, up to 30 s, to set its use of
    the keys beside theirs; 0 leaves it out."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Of matrix products."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto."""
    json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print one JSON object, and nothing else."""


def run(args: Sequence[str]) -> int:
    """Parse, score, print."""
    flags = parse(EvaluateFlags, args, prog="perceivers evaluate", description=DESCRIPTION)
    check_source(flags.run)
    from perceivers.generate.loaded import load
    from perceivers.models.config import SequenceConfig

    loaded = load(flags.run, device=flags.device)
    if loaded.tokenizer in PREDICTED:
        result, words = evaluate_io.score_run(flags, loaded), evaluate_io.report
    elif not isinstance(loaded.config, SequenceConfig):
        raise ValueError(f"{flags.run} reads {loaded.tokenizer!r}, and nothing scores what it says; {IN_PYTHON}")
    elif flags.data is None and loaded.tokenizer == "copy":
        result, words = _copying(flags, loaded), report
    else:
        result, words = _likelihood(flags, loaded), report
    print(as_json(result) if flags.json else words(result))
    if lost := [name for name, value in result.items() if isinstance(value, float) and math.isnan(value)]:
        failed(f"{flags.run}: what it predicts is not a number (NaN), and so are {', '.join(lost)}")
        return 1
    return 0


def _likelihood(flags: EvaluateFlags, loaded: "Loaded") -> dict[str, Any]:
    """Scores of a store's split."""
    from perceivers.data.tokens import TokenStore
    from perceivers.evaluate.likelihood import score
    from perceivers.evaluate.playing import play
    from perceivers.train.data import check_store, open_store, sequence_model
    from perceivers.train.data_record import recorded_store

    store = recorded_store(Path(flags.run)) if flags.data is None else open_store(flags.data)
    if not isinstance(store, TokenStore) or store.tokenizer != loaded.tokenizer:
        raise ValueError(
            f"{store.path} holds {store.tokenizer!r} tokens, {flags.run} reads {loaded.tokenizer!r}: "
            "give a store of its own kind with --data"
        )
    check_store(store, sequence_model(loaded.config))
    split = store.split(flags.split)
    likelihood = score(loaded.model, split, stride=flags.stride, precision=flags.precision, progress=not flags.json)
    data = {"data": str(store.path), "fingerprint": store.fingerprint, "split": split.name}
    result = {"run": flags.run, **data, "tokenizer": loaded.tokenizer, **numbers(likelihood, loaded.tokenizer)}
    if loaded.tokenizer == "performance" and flags.pieces > 0:
        if not flags.json:
            note(f"playing on from openings of at most {flags.pieces} pieces")
        playing = play(loaded, split, pieces=flags.pieces)
        result["playing"] = None if playing is None else playing.numbers()
    return result | (_baselines(store, split.name, likelihood) if flags.baselines else {})


def _baselines(store: "TokenStore", split: str, likelihood: "Likelihood") -> dict[str, Any]:
    """Models that count, on the same tokens, and how many percent fewer nats the model needs than each."""
    from perceivers.evaluate.baselines import score_baselines
    from perceivers.evaluate.bootstrap import paired_bootstrap

    rows = []
    for name, nats in score_baselines(store, split).items():
        fewer = paired_bootstrap(likelihood.nats, nats, likelihood.tokens).percent_fewer
        mean = float(nats.sum() / likelihood.tokens.sum())
        rows.append(
            {"name": name, "nats_per_token": mean, "percent_fewer": fewer.value, "percent_fewer_95": fewer.ends}
        )
    return {"baselines": rows}


def numbers(likelihood: "Likelihood", tokenizer: str) -> dict[str, Any]:
    """What a likelihood says, as plain values; EOS counts as a token."""
    from perceivers.evaluate.bootstrap import mean_with_interval

    interval = mean_with_interval(likelihood.nats, likelihood.tokens)
    documents, tokens = len(likelihood.names), int(likelihood.tokens.sum())
    edges = [*sorted(likelihood.buckets), None]
    result = {
        "documents": documents,
        "tokens": tokens,
        "nats_per_token": likelihood.nats_per_token,
        "nats_per_token_95": interval.ends,
        "bits_per_token": likelihood.bits_per_token,
        "perplexity": likelihood.perplexity,
        "accuracy": likelihood.accuracy,
        "by_position": [
            {"from": start, "tokens": likelihood.buckets[start][1], "nats_per_token": _mean(*likelihood.buckets[start])}
            for start in edges[:-1]
        ],
        "stride": likelihood.stride,
        "max_seq_len": likelihood.max_seq_len,
        "least_context": likelihood.least_context,
    }
    if tokenizer == "bytes":  # an EOS costs bits, but is no byte
        result["bits_per_byte"] = float(likelihood.nats.sum()) / math.log(2) / (tokens - documents)
    return result


def _mean(nats: float, count: int) -> float:
    return nats / count


def _copying(flags: EvaluateFlags, loaded: "Loaded") -> dict[str, Any]:
    """Scores of fresh sequences of the copy task."""
    from perceivers.evaluate.copying import score_copying

    if flags.stride is not None:
        raise ValueError("--stride has no meaning for the copy task, whose windows are fixed: leave it out")
    config = read_config(Path(flags.run) / CONFIG)
    if not isinstance(config.data, CopyConfig):
        raise ValueError(f"{flags.run} was trained on a store of copy sequences: name one with --data")
    length, split = config.data.length, split_in(flags.split, SPLITS)
    copying = score_copying(
        loaded.model,
        length,
        count=max(1, COPY_TOKENS // (length // 2)),
        split=split,
        precision=flags.precision,
        progress=not flags.json,
    )
    return {"run": flags.run, "split": split, "tokenizer": "copy", **copy_numbers(copying)}


def copy_numbers(copying: "Copying") -> dict[str, Any]:
    """What the scores of the copy task say, as plain values."""
    return {
        "length": copying.length,
        "sequences": copying.sequences,
        "perfect_sequences": copying.perfect,
        "mirrored_tokens": copying.tokens,
        "mirrored_accuracy": copying.accuracy,
        "nats_per_mirrored_token": copying.nats_per_token,
    }


def report(result: dict[str, Any]) -> str:
    """The same for people."""
    if "mirrored_accuracy" in result:
        return "\n".join(
            [
                f"{result['run']}: the copy task, {result['split']} sequences of {result['length']:,} tokens",
                table(
                    [
                        ("right in the mirrored half", f"{result['mirrored_accuracy']:.4%}"),
                        ("sequences without a mistake", f"{result['perfect_sequences']:,} of {result['sequences']:,}"),
                        ("nats a mirrored token", f"{result['nats_per_mirrored_token']:.4f}"),
                    ],
                    right=(1,),
                ),
            ]
        )
    rows = [
        (
            "nats a token",
            f"{result['nats_per_token']:.4f}",
            evaluate_io.interval(result["nats_per_token_95"], result["documents"], "document"),
        ),
        ("bits a token", f"{result['bits_per_token']:.4f}", ""),
        ("perplexity a token", f"{result['perplexity']:.3f}", ""),
        ("most likely token is right", f"{result['accuracy']:.2%}", ""),
    ]
    for beside in result.get("baselines", ()):
        fewer = f"the model needs {beside['percent_fewer']:.1f} % fewer"
        if ends := beside["percent_fewer_95"]:
            fewer += f" (95 %: {ends[0]:.1f} to {ends[1]:.1f})"
        rows.append((f"nats a token of the {beside['name']}", f"{beside['nats_per_token']:.4f}", fewer))
    if "bits_per_byte" in result:
        rows.insert(2, ("bits a byte", f"{result['bits_per_byte']:.4f}", "ends of documents included"))
    edges = [bucket["from"] for bucket in result["by_position"]]
    ends = [f"{edge - 1:,}" for edge in edges[1:]] + ["on"]
    positions = [("position", "tokens", "nats a token")] + [
        (f"{bucket['from']:,} to {end}", f"{bucket['tokens']:,}", f"{bucket['nats_per_token']:.4f}")
        for bucket, end in zip(result["by_position"], ends, strict=True)
    ]
    lines = [
        f"{result['run']} on the {result['split']} split of {result['data']}: "
        f"{counted(result['documents'], 'document')}, "
        f"{counted(result['tokens'], UNITS.get(result['tokenizer'], 'token'))} with their ends",
        f"windows of {result['max_seq_len']:,} inputs that score {result['stride']:,}: "
        f"each token has the {result['least_context']:,} before it in view, or more, or all of its document",
        "",
        table(rows, right=(1,)),
        "",
        table(positions, right=(0, 1, 2)),
    ]
    if (playing := result.get("playing")) is not None:
        from perceivers.evaluate.playing import played, playing_rows

        lines += ["", played(playing), table(playing_rows(playing))]
    return "\n".join(lines)
