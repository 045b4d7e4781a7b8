"""What to do next with a store and with a run, as commands to paste."""

from collections.abc import Sequence
from pathlib import Path

from perceivers.commands import command, free_run

IN_PYTHON = "no command makes anything of that: take perceivers.load in Python"

PREDICTED = ("masked_bytes", "pictures", "frames")
"""What models read that `perceivers predict` asks."""


def train_on(out: Path) -> str:
    """The command that trains a first model on the store at `out`."""
    from perceivers.data.batch import NUM_SPECIAL
    from perceivers.data.picture_store import PictureStore
    from perceivers.train.data import open_store

    store = open_store(out)
    if isinstance(store, PictureStore):
        settings = _for_pictures(store.shape, store.classes)
    elif store.tokenizer in ("performance", "bytes"):
        settings = ["music_small" if store.tokenizer == "performance" else "text_small"]
    else:
        settings = ["text_small", "--model.vocab-size", store.header.vocab_size + NUM_SPECIAL]
    return command("train", *settings, "--data", out, "--out", free_run())


def _for_pictures(shape: tuple[int, int, int], classes: Sequence[str] | None) -> list[object]:
    """A preset for pictures, and what of it has to be otherwise for these."""
    if classes is None:
        return ["flow_small"]
    settings: list[object] = ["mnist"]
    if shape != (28, 28, 1):
        settings += ["--model.input.features.shape", *shape]
    if len(classes) != 10:
        settings += ["--model.output.classes", len(classes)]
    return settings


def use(run: str | Path, tokenizer: str) -> str | None:
    """What to do with a model, by what it reads, in words that end in a command; None where no command does it."""
    match tokenizer:
        case "performance":
            new = Path(run) if Path(run).is_dir() else Path()
            return command("generate", run, "--out", new / "new.mid", "--out", new / "new.wav")
        case "bytes" | "ids" | "copy":
            return command("generate", run)
        case "masked_bytes":
            return command("predict", run, "text with ____")
        case "pictures":
            return f"{command('predict', run, 'PICTURE')}   # a picture file in place of PICTURE"
        case "frames":
            line = command("predict", run, "FIRST", "SECOND", "--out", "flow.png")
            return f"{line}   # two picture files in place of FIRST and SECOND"
    return None
