import re
from pathlib import Path

import pytest
import yaml

from perceivers.cli.convert import OFFICIAL
from perceivers.cli.flags import to_flags
from perceivers.cli.main import COMMANDS
from perceivers.cli.prepare import KINDS
from perceivers.presets import PRESETS, preset
from perceivers.records import to_dict

from .conftest import Command

PAGES = [
    [],
    *([name] for name in COMMANDS),
    *(["prepare", kind] for kind in KINDS),
    *(["convert", kind] for kind in (*OFFICIAL, "huggingface", "to-huggingface")),
    *(["train", name] for name in PRESETS),
]


@pytest.mark.parametrize("args", PAGES, ids=" ".join)
def test_help_fits_one_screen(command: Command, monkeypatch: pytest.MonkeyPatch, args: list[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = command(*args, "--help")
    lines = done.out.splitlines()
    assert (done.code, done.err) == (0, "")
    assert lines[0].startswith(" ".join(["usage: perceivers", *args]))
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert done.out.isascii()


@pytest.mark.parametrize("args", [["train"], ["generate"]], ids=" ".join)
def test_the_rest_is_in_help_all(command: Command, args: list[str]) -> None:
    brief, whole = command(*args, "--help").out, command(*args, "--help-all").out
    assert brief.splitlines()[-1].endswith("--help-all")
    assert len(whole.splitlines()) > len(brief.splitlines())
    assert flags(brief) < flags(whole)


def flags(page: str) -> set[str]:
    """The flags on the left of a page."""
    return {line.split()[0].rstrip(",") for line in page.splitlines() if line.startswith("  --")}


@pytest.mark.parametrize("name", PRESETS)
def test_help_of_training_has_every_field(command: Command, name: str) -> None:
    """But parts that only a file can choose: their kinds, and records in a row."""
    values = to_dict(preset(name))
    values["model"].pop("data_sets", None)
    said = {flag.replace("_", "-") for flag in to_flags(values) if flag.startswith("--")}
    expected = {flag for flag in said if not flag.endswith(".kind")}
    shown = flags(command("train", name, "--help-all").out)
    assert shown - expected == {"--data", "--out", "--init", "--resume", "--tensorboard"}
    assert expected - shown == set()


def test_defaults_are_those_of_the_settings(command: Command, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(preset("copy_tiny"))))
    pages = {settings: command("train", settings, "-h").out for settings in ("copy_tiny", tmp_path, "text_small")}
    found = [re.findall(r"Channels of the latents \(default: (\d+)\)", page) for page in pages.values()]
    assert found == [["128"], ["128"], ["320"]]


def test_flags_that_are_off_read_as_off(command: Command) -> None:
    page = " ".join(command("generate", "--help-all").out.split())
    assert "--cached, --no-cached Keep keys and values from token to token;" in page
    assert "takes a full forward pass. (default: on)" in page
    assert (
        "--strict Refuse a prompt that is longer than the model's input; otherwise its last tokens are read. --" in page
    )
    assert "(default: True)" not in page
    assert "(default: None)" not in page


def test_needed_flags_say_so(command: Command) -> None:
    page = " ".join(command("prepare", "tokens", "--help").out.split())
    assert "--out PATH Where the store shall be. (needed)" in page
    assert '.jsonl: each line is a document, {"ids": [3, 1, 4]}.' in page
