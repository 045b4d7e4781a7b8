"""Where a demo puts its files: it takes the place of an earlier demo and of nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from perceivers.data.header import StoreHeader
from perceivers.records import to_dict
from perceivers.train.config import TrainConfig
from perceivers.writing import Lock, remove_directory, write_text

MARK = ".demo"
"""File with the configuration of the demo's run: what has it is a demo's directory."""
STORE_SOURCE = "perceivers demo"
"""What the header of a demo's store says of its source."""
RUN, STORE, CONFIG = "run", "store", "config.yaml"
OUTPUTS = ("continuation.mid", "continuation.wav", "continuation.png", "training.png")
RUN_FILES = {CONFIG, "data.json", "metrics.jsonl", "clock.txt", "config.json", "model.safetensors", "checkpoints"}


@contextmanager
def demo_place(out: Path, config: TrainConfig) -> Iterator[None]:
    """Hold `out`, without the run of an earlier demo, for a demo that trains as `config` says.

    Raises:
        FileExistsError: Something there is no demo's, or another process is writing there.
    """
    with Lock.of_directory(out):
        _check(out)
        if (out / RUN).is_dir():
            with Lock.of_directory(out / RUN):
                remove_directory(out / RUN)
        write_text(out / MARK, _text(config))
        yield


def _check(out: Path) -> None:
    """Refuse what would be replaced, unless a demo made it."""
    found = [out / name for name in (RUN, STORE, *OUTPUTS) if (out / name).exists()]
    if not (out / MARK).is_file():
        foreign = next(iter(found), None)
    else:
        foreign = _foreign_run(out) or _foreign_store(out / STORE)
    if foreign is not None:
        raise FileExistsError(f"{foreign} is there, and it is no demo's: choose another --out, or move it away")


def _foreign_run(out: Path) -> Path | None:
    """What another one has put into a demo's run, or the run where it was trained otherwise."""
    run = out / RUN
    if not run.exists():
        return None
    visible = [path for path in run.iterdir() if not path.name.startswith(".")] if run.is_dir() else [run]
    strangers = [path for path in visible if path.name not in RUN_FILES]
    if (run / "checkpoints").is_dir():
        strangers += [path for path in (run / "checkpoints").glob("[!.]*") if not path.name.startswith("step-")]
    if strangers or not visible:
        return next(iter(strangers), None)
    same = (run / CONFIG).is_file() and (run / CONFIG).read_bytes() == (out / MARK).read_bytes()
    return None if same else run


def _foreign_store(path: Path) -> Path | None:
    if not path.exists():
        return None
    try:
        source = StoreHeader.read(path / "header.json").source
    except (OSError, ValueError):
        return path
    return None if source == STORE_SOURCE else path


def _text(config: TrainConfig) -> str:
    """What training writes to the run's config.yaml."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)
