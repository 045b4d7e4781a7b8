import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import perceivers
from perceivers.cli.main import COMMANDS
from perceivers.commands import command, free_run
from perceivers.presets import preset
from perceivers.records import to_dict

from .pasted import why_refused

SOURCES = sorted(Path(perceivers.__file__).parent.rglob("*.py"))
ROOT = Path(__file__).parents[1]
A_COMMAND = rf"perceivers (?:{'|'.join(COMMANDS)})\b"
KINDS = re.compile(r"perceivers (?:prepare|convert) (?:KIND.*|[a-z-]+)")
"""Names of commands, which need more to be run."""
NOT_MESSAGES = {"prog", "name"}


def test_a_command_holds_any_words() -> None:
    words = ["train", "my run", "$HOME", "it's", 3]
    assert shlex.split(command("predict", *words)) == ["perceivers", "predict", *map(str, words)]


def test_a_free_run(tmp_path: Path) -> None:
    assert free_run(tmp_path) == tmp_path / "a"
    for name in "abd":
        (tmp_path / name).mkdir()
    assert free_run(tmp_path) == tmp_path / "c"
    for name in "abcdefghijklmnopqrstuvwxyz":
        (tmp_path / name).mkdir(exist_ok=True)
    assert free_run(tmp_path) == tmp_path / "27"


@pytest.mark.parametrize(
    "line",
    [
        "perceivers evaluate runs/a --splitt test",
        "perceivers train music_small --max-steps N",
        "perceivers prepare tokens DIR --out STORE",
        "perceivers evaluat runs/a",
    ],
)
def test_what_cannot_be_pasted_is_noticed(line: str) -> None:
    assert why_refused(line)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_messages_make_their_commands_in_one_place(path: Path) -> None:
    """A command with words that are known when it is printed is quoted, and read by the parser in every test."""
    for node in _messages(ast.parse(path.read_text(encoding="utf-8"))):
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
        assert not re.search(rf"{A_COMMAND}[^`\n]*\0", text), f"{path}:{node.lineno}: {text!r}"


@pytest.mark.parametrize("path", [*SOURCES, ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=str)
def test_commands_that_are_shown_can_be_pasted(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in backticks and those that stand on a line of their own."""
    for run in "abc":
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "config.yaml").write_text(yaml.safe_dump(to_dict(preset("text_small"))))
    text = path.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    shown = re.findall(rf"`({A_COMMAND}[^`\n]* [^`\n]*)`|^ *({A_COMMAND}.*?)$", text, re.M)
    lines = [re.sub(r"\[.*?\]|\.\.\.", "", "".join(pair)) for pair in shown]  # with what is in brackets left out
    refused = [why_refused(line.replace(" NAME", " text_small")) for line in lines if not KINDS.fullmatch(line)]
    assert not [why for why in refused if why]


def _messages(tree: ast.AST) -> Iterator[ast.JoinedStr]:
    """Texts with values in them, but for names that the parsers get."""
    named = {
        id(keyword.value)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg in NOT_MESSAGES
    }
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) and id(node) not in named)
