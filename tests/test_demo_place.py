"""A demo clears what a demo made, and nothing else."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from perceivers.data.tokens import StoreWriter
from perceivers.demo_place import OUTPUTS, STORE_SOURCE, demo_place
from perceivers.presets import bach_demo
from perceivers.records import to_dict
from perceivers.writing import Lock, write_text

CONFIG = replace(bach_demo(), max_minutes=1.0)


def write_store(path: Path, source: str | None) -> None:
    with StoreWriter(path, tokenizer="performance", vocab_size=388, overwrite=True, source=source) as writer:
        writer.append("train", np.array([3]), name="x")


def a_demo(out: Path) -> None:
    """What a demo leaves, without its work."""
    with demo_place(out, CONFIG):
        assert not (out / "run").exists()
        write_store(out / "store", STORE_SOURCE)
        write_text_in(out / "run" / "config.yaml", yaml.safe_dump(to_dict(CONFIG), sort_keys=False))
        for name in ("metrics.jsonl", "model.safetensors", "config.json", "data.json"):
            write_text_in(out / "run" / name, name)
        write_text_in(out / "run" / "checkpoints" / "step-00000001" / "state.json", "{}")
        for name in OUTPUTS:
            write_text(out / name, name)


def write_text_in(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("earlier", [0, 1, 2])
def test_a_demo_takes_the_place_of_a_demo(tmp_path: Path, earlier: int) -> None:
    for _ in range(earlier + 1):
        a_demo(tmp_path / "demo")
    assert sorted(os.listdir(tmp_path / "demo")) == sorted([".demo", "run", "store", *OUTPUTS])


def test_an_interrupted_demo_begins_again(tmp_path: Path) -> None:
    def interrupted() -> None:
        with demo_place(tmp_path / "demo", CONFIG):
            write_store(tmp_path / "demo" / "store", STORE_SOURCE)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    a_demo(tmp_path / "demo")


@pytest.mark.parametrize("name", ["run/notes.txt", "run/model.safetensors", "store/header.json", *OUTPUTS])
def test_what_no_demo_made_stays(tmp_path: Path, name: str) -> None:
    write_text_in(tmp_path / "out" / name, "mine")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="is there, and it is no demo's: choose another --out"):
        a_demo(tmp_path / "out")
    assert contents(tmp_path) == before


def another_run(out: Path) -> None:
    write_text(out / "run" / "config.yaml", yaml.safe_dump(to_dict(replace(CONFIG, max_minutes=60.0)), sort_keys=False))


@pytest.mark.parametrize(
    "change",
    [
        lambda out: write_text(out / "run" / "notes.txt", "mine"),
        lambda out: write_text_in(out / "run" / "samples" / "a.mid", "mine"),
        lambda out: write_text_in(out / "run" / "checkpoints" / "best" / "model.safetensors", "mine"),
        lambda out: (out / "run" / "config.yaml").unlink(),
        another_run,
        lambda out: write_store(out / "store", "music"),
        lambda out: write_text(out / "store" / "header.json", "mine"),
    ],
)
def test_what_came_to_a_demo_stays(tmp_path: Path, change: Callable[[Path], object]) -> None:
    out = tmp_path / "demo"
    a_demo(out)
    change(out)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="is there, and it is no demo's: choose another --out"):
        a_demo(out)
    assert contents(tmp_path) == before


def test_other_files_beside_a_demo_do_not_matter(tmp_path: Path) -> None:
    write_text_in(tmp_path / "out" / "thesis.tex", "mine")
    for _ in range(2):
        a_demo(tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"


def test_a_demo_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    a_demo(out)
    with (
        demo_place(out, CONFIG),
        pytest.raises(FileExistsError, match="another process is writing in this directory"),
        demo_place(out, CONFIG),
    ):
        pass
    a_demo(out)
    with Lock.of_directory(out / "run"), pytest.raises(FileExistsError, match="run: another process is writing"):
        a_demo(out)
    assert (out / "run" / "model.safetensors").exists()
