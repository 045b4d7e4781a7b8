"""`perceivers predict`: what a model says about single inputs: the blanks of a text, the class of a picture."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from perceivers.cli.console import as_json, failed, table
from perceivers.cli.flags import parse
from perceivers.cli.next_commands import IN_PYTHON, use
from perceivers.commands import command
from perceivers.nearest import check_source

if TYPE_CHECKING:
    from perceivers.generate.loaded import Loaded

MISUSED = 2
"""Exit code where some inputs can't be predicted; the others are."""

DESCRIPTION = """Fill the blanks of a text, name the class of a picture, or find the motion between two pictures.

What it does depends on what the model reads. Text: inputs are texts, .txt files, or - for the standard input; two
underscores or more are a blank of as many bytes. Pictures: picture files, folders, .npz and .npy files, or a store.
Motion: two picture files.

    perceivers predict runs/a "It is a truth universally________________"

    perceivers predict runs/b digit.png more/ --json

    perceivers predict runs/c first.png second.png --out flow.png
"""


@dataclass(frozen=True, kw_only=True)
class PredictFlags:
    """Arguments of `perceivers predict`."""

    run: tyro.conf.Positional[str]
    """Run directory, saved model, or model on the Hugging Face hub."""
    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Texts, or files, as the model reads."""
    top: int = 5
    """Answers that are shown, the most likely ones."""
    split: str | None = None
    """Pictures: only this split of a store or of an array file."""
    out: Path | None = None
    """Motion: picture to write, its colours are directions."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto."""
    json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print one JSON object, and nothing else."""


def run(args: Sequence[str]) -> int:
    """Parse, predict, print."""
    flags = parse(PredictFlags, args, prog="perceivers predict", description=DESCRIPTION)
    check_source(flags.run)
    if not flags.inputs:
        raise ValueError(f"name something to predict: {command('predict', flags.run, 'INPUT')}")
    if flags.top < 1:
        raise ValueError(f"--top {flags.top} must be at least 1")
    from perceivers.generate.loaded import load
    from perceivers.models.config import SequenceConfig

    loaded = load(flags.run, device=flags.device)
    failures = 0
    match loaded.tokenizer:
        case "masked_bytes":
            predictions, failures = _texts(flags, loaded)
            shown = "\n\n".join(_text_report(one) for one in predictions if "error" not in one)
        case "pictures":
            from perceivers.cli.predict_pictures import classes_report, predict_classes

            predictions, failures = predict_classes(flags, loaded)
            shown = classes_report(predictions)
        case "frames":
            from perceivers.cli.predict_pictures import flow_report, predict_flow

            predictions = predict_flow(flags, loaded)
            shown = flow_report(predictions)
        case tokenizer if isinstance(loaded.config, SequenceConfig):
            line = use(flags.run, tokenizer) or IN_PYTHON
            raise ValueError(f"{flags.run} reads {tokenizer!r} tokens and predicts what comes next: {line}")
        case tokenizer:
            raise ValueError(f"{flags.run} reads {tokenizer!r}: {IN_PYTHON}")
    result = {"run": flags.run, "tokenizer": loaded.tokenizer, "predictions": predictions}
    if flags.json or shown:
        print(as_json(result) if flags.json else shown)
    return 0 if not failures else MISUSED


def _texts(flags: PredictFlags, loaded: "Loaded") -> tuple[list[dict[str, Any]], int]:
    """Filled texts, with an `error` in place of each that can't be, and how many can't; what is wrong is said."""
    from perceivers.generate.fill import fill

    if flags.split is not None or flags.out is not None:
        raise ValueError(f"--split and --out are for pictures, {flags.run} reads text: leave them out")
    results: list[dict[str, Any]] = []
    for text in flags.inputs:
        try:
            results.append(asdict(fill(loaded.model, _read_text(text), top=flags.top)))
        except Exception as error:  # whatever one text does to the model, the others are answered; the exit code tells
            said = " ".join(str(error).split()) or type(error).__name__
            failed(said)
            results.append({"input": text, "error": said})
    return results, sum("error" in result for result in results)


def _read_text(text: str) -> str:
    """The text itself, or that of the file or the standard input which it names."""
    if text == "-":
        name, data = "the standard input", sys.stdin.buffer.read()
    elif text.endswith(".txt"):
        name, data = text, Path(text).read_bytes()
    else:  # bytes of the command line that this locale has no characters for come back as they were
        name, data = f"the text {text!r}", text.encode("utf-8", "surrogateescape")
    try:
        return data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error


def _text_report(filled: dict[str, Any]) -> str:
    """A filled text, and what else could stand in its blanks."""
    rows = [
        (
            f"  blank {number}" if place == 0 else "",
            json.dumps(choice["text"], ensure_ascii=False),
            f"{choice['probability']:.2%}",
        )
        for number, blank in enumerate(filled["blanks"], 1)
        for place, choice in enumerate(blank["choices"])
    ]
    return f"{filled['text']}\n{table(rows, right=(2,))}"
