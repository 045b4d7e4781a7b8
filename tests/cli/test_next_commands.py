from pathlib import Path

import pytest

from perceivers.cli.next_commands import train_on, use
from perceivers.presets import preset
from perceivers.train.data import training_data

from ..pasted import why_refused
from .conftest import Command, write_store


@pytest.mark.parametrize("tokenizer", ["performance", "bytes", "ids", "copy", "masked_bytes", "pictures", "frames"])
def test_every_model_has_a_use(tokenizer: str, tmp_path: Path) -> None:
    line = use(tmp_path / "my run", tokenizer)
    assert line is not None
    assert why_refused(line) is None
    assert f"'{tmp_path}/my run'" in line
    assert ("in place of" in line) == (tokenizer in ("pictures", "frames"))


def test_but_for_those_that_no_command_reads() -> None:
    assert use("run", "films") is None


def test_music_of_a_hub_lands_here() -> None:
    assert use("owner/name", "performance") == "perceivers generate owner/name --out new.mid --out new.wav"


@pytest.mark.parametrize(("tokenizer", "vocab_size"), [("ids", 300), ("copy", 256), ("bytes", 256)])
def test_a_store_is_trained_on(
    tokenizer: str, vocab_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    write_store(tmp_path / "my store", tokenizer=tokenizer, vocab_size=vocab_size)
    line = train_on(Path("my store"))
    vocabulary = "" if tokenizer == "bytes" else f" --model.vocab-size {vocab_size + 3}"
    assert line == f"perceivers train text_small{vocabulary} --data 'my store' --out runs/b"


@pytest.mark.parametrize("name", ["music_small", "text_small", "mnist", "flow_small", "masked_small", "bytes_ecp"])
def test_a_preset_without_data_names_the_command_that_makes_them(name: str) -> None:
    with pytest.raises(ValueError, match=r"made by `perceivers prepare [a-z]+ DIR --out STORE`"):
        training_data(preset(name), None)


def test_a_plan_of_a_task_that_makes_its_own_data_names_none(command: Command) -> None:
    for what, named in (("copy_4096", False), ("bytes_1b", True)):
        done = command("show", what, "--gpus", 1, "--memory", 1000)
        assert ("--data STORE" in done.out) == named, done.out
