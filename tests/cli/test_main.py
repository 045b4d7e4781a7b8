import os
import subprocess
import sys
from pathlib import Path

import pytest

from perceivers.cli import main as cli
from perceivers.train.errors import TrainingError

from .conftest import Command

ALL_HELP = """
import contextlib, io, sys
from perceivers.cli.main import COMMANDS, main
for args in [[], *([name] for name in COMMANDS), ["prepare", "music"], ["convert", "official-ar"], ["train", "pg19"]]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main([*args, "--help"])
    assert code == 0 and "usage: perceivers" in out.getvalue(), (args, code, out.getvalue())
    assert "torch" not in sys.modules, args
"""


def test_no_help_imports_torch() -> None:
    subprocess.run([sys.executable, "-c", ALL_HELP], check=True)


def test_as_a_program(tmp_path: Path) -> None:
    """Once through the installed script and a real process, with its exit codes."""
    script = Path(sys.executable).with_name("perceivers")
    done = subprocess.run([script, "presets"], capture_output=True, text=True, check=True)
    assert "music_small" in done.stdout
    wrong = subprocess.run([script, "show", tmp_path], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("perceivers: error: ")
    assert len(wrong.stderr.splitlines()) == 1


MISTYPED = """
import contextlib, io, sys
from perceivers.cli.main import main
for args in ["evaluate", "nowhere/of/all"], ["generate", "nowhere"], ["predict", "./nowhere", "x"], ["show", "a/b/c"], \
        ["train", "a/b/c"], ["convert", "to-huggingface", "a/b/c", "out"], ["convert", "huggingface", "a/b/c", "out"]:
    with contextlib.redirect_stderr(io.StringIO()) as err:
        assert main(args) == 2, args
    assert "does not exist" in err.getvalue(), err.getvalue()
    assert args[0] == "show" or not {"torch", "huggingface_hub"} & sys.modules.keys(), args
"""


def test_a_path_that_leads_nowhere_is_refused_before_anything_is_loaded() -> None:
    subprocess.run([sys.executable, "-c", MISTYPED], check=True)


LARGE_TENSOR = """
import sys
from perceivers.cli.main import main
main(["presets"])
import torch
ones = torch.ones(2**25)
rows = open("/proc/self/smaps_rollup").read().splitlines()
print(next(row.split()[1] for row in rows if row.startswith("AnonHugePages")), file=sys.stderr)
"""
LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not LARGE_PAGES.exists() or "[never]" in LARGE_PAGES.read_text(),
    reason="this system has no large pages",
)
def test_large_tensors_of_the_command_lie_in_large_pages() -> None:
    """Unless the user said something else."""

    def kilobytes(**said: str) -> int:
        env = {name: value for name, value in os.environ.items() if name not in cli.LARGE_PAGES} | said
        done = subprocess.run([sys.executable, "-c", LARGE_TENSOR], env=env, capture_output=True, text=True, check=True)
        return int(done.stderr)

    assert kilobytes() > 2**16
    if "[madvise]" in LARGE_PAGES.read_text():
        assert kilobytes(THP_MEM_ALLOC_ENABLE="0") < 2**16


@pytest.mark.parametrize("args", [["presets"], ["presets", "--help"]])
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["at the end", "at once"])
def test_reader_that_has_seen_enough(args: list[str], unbuffered: str) -> None:
    """As in `perceivers presets | head -0`, whenever Python writes what was printed."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "perceivers.cli.main", *args],
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert done.stderr == b""


@pytest.mark.parametrize("args", [[], ["--help"], ["help"]])
def test_overview(command: Command, args: list[str]) -> None:
    done = command(*args)
    assert done.code == 0
    assert all(name in done.out for name in cli.COMMANDS)


def test_version(command: Command) -> None:
    assert command("--version").out == "perceivers 0.1.0\n"


def test_unknown_command(command: Command) -> None:
    done = command("trian", "music_small")
    assert (done.code, done.err) == (2, "perceivers: error: no command is called 'trian'; did you mean train?\n")
    assert "there are prepare, train" in command("xyzzy").err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("two\n  lines"), 2, "perceivers: error: two lines\n"),
        (FileNotFoundError("x: no such file"), 2, "perceivers: error: x: no such file\n"),
        (ImportError("needs y"), 2, "perceivers: error: needs y\n"),
        (TrainingError("too hot"), 1, "perceivers: error: too hot\n"),
        (ZeroDivisionError("oops"), 1, "perceivers: error: oops (ZeroDivisionError; --debug shows where)\n"),
        (RuntimeError(), 1, "perceivers: error: RuntimeError (RuntimeError; --debug shows where)\n"),
        (KeyboardInterrupt(), 130, "\nperceivers: stopped\n"),
    ],
)
def test_errors(command: Command, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str) -> None:
    def fail(args: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    done = command("presets")
    assert (done.code, done.err) == (code, said)


def test_debug_lets_errors_through(command: Command) -> None:
    with pytest.raises(ValueError, match="no command is called 'trian'"):
        command("trian", "--debug")


def test_a_file_where_the_compiler_has_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    assert cli.main(["--version"]) == 0
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(cache)
    cache.write_text("")
    assert cli.main(["--version"]) == 0
    assert f"{cache} is no directory, which PyTorch's compiler needs there: remove it" in capsys.readouterr().err
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == f"{cache}_directory"
