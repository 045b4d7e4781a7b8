"""The command `perceivers`: finds the subcommand, and turns errors into one line and an exit code.

Nothing is imported before it is needed, so that every `--help` answers at once.
"""

import getpass
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import perceivers
from perceivers.cli.console import failed, forgiving_streams, note
from perceivers.train.errors import TrainingError

COMMANDS = {
    "prepare": "turn music, text or ids into training data",
    "train": "train a model, or go on training it",
    "evaluate": "how likely a model finds data that it was not trained on",
    "generate": "continue a prompt, or start from nothing",
    "predict": "fill the blanks of a text, name a picture's class, find motion",
    "show": "size, cost and settings of a run or a preset",
    "presets": "complete settings by name",
    "convert": "published weights to a model of ours",
    "demo": "train on Bach's chorales and hear the result, in about ten minutes",
}
"""Each lives in the module of its name beside this one, which has `run(args) -> int`."""

USAGE = f"""usage: perceivers COMMAND ...

{"".join(f"  {name:10}{what}{chr(10)}" for name, what in COMMANDS.items())}
`perceivers COMMAND --help` tells more, --help-all everything.
Everywhere: --debug shows where an error came from.
"""

LARGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""PyTorch reads it when it is imported: on a CPU under Linux, large tensors then lie in pages of 2 MB in place of 4 KB.
A step of training maps hundreds of MB of them, and spent a tenth of its time on that."""

OK, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: the work went wrong; the user's input is; Ctrl-C."""


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        args: What follows `perceivers`; None for the arguments of this process.
    """
    os.environ.update(LARGE_PAGES | os.environ)
    _find_cache()
    forgiving_streams()
    args = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    try:
        try:
            return _run(args)
        finally:
            sys.stdout.flush()  # here, and not when Python ends, a reader that has gone is noticed
    except SystemExit as stop:  # of the parser, which has said why
        return stop.code if isinstance(stop.code, int) else FAILED
    except KeyboardInterrupt:
        print("\nperceivers: stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if debug:
            raise
        code, hint = _judge(error)
        message = " ".join(str(error).split()) or type(error).__name__
        failed(f"{message}{hint}")
        return code


def _find_cache() -> None:
    """Give PyTorch's compiler another place for its cache where something else has its name.

    PyTorch makes the directory when it is imported, and can't be imported without.
    """
    try:
        default = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
    except (KeyError, OSError):  # a user without a name
        return
    path = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or default)
    if os.path.lexists(path) and not path.is_dir():
        other = path.with_name(f"{path.name}_directory")
        note(f"{path} is no directory, which PyTorch's compiler needs there: remove it; {other} serves until then")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(other)


def _run(args: list[str]) -> int:
    match args:
        case [] | ["-h" | "--help" | "--help-all" | "help", *_]:
            print(USAGE, end="")
            return OK
        case ["--version" | "version"]:
            print(f"perceivers {perceivers.__version__}")
            return OK
        case [command, *rest] if command in COMMANDS:
            return import_module(f"perceivers.cli.{command}").run(rest)
        case [command, *_]:
            import difflib

            near = difflib.get_close_matches(command, COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
            raise ValueError(f"no command is called {command!r}; {hint}")
    raise AssertionError


def _judge(error: Exception) -> tuple[int, str]:
    """Exit code of an error, and what to say after its message."""
    wrong_path = FileNotFoundError | FileExistsError | NotADirectoryError | IsADirectoryError | PermissionError
    if isinstance(error, ValueError | ImportError | wrong_path):
        return MISUSED, ""
    if isinstance(error, TrainingError | FloatingPointError):
        return FAILED, ""
    return FAILED, f" ({type(error).__name__}; --debug shows where)"


if __name__ == "__main__":
    sys.exit(main())
