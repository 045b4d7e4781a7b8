"""Commands that the package tells people to run are read by the parser of the command, whenever a test makes one."""

import io
import shlex
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

from perceivers import commands
from perceivers.cli import flags
from perceivers.cli.main import main

refused: list[str] = []
"""Commands that were made and can't be parsed, and why."""


class _ParsedError(BaseException):
    """A command got as far as its work."""


def why_refused(line: str) -> str | None:
    """What the parser of a command line has against it; None where it would begin to work."""
    said = io.StringIO()
    words = shlex.split(line, comments=True)
    with patch.object(flags, "check_finite", side_effect=_ParsedError), redirect_stderr(said), redirect_stdout(said):
        try:
            code = main(words[1:])
        except _ParsedError:
            return None
    return None if code == 0 else f"{line}: {said.getvalue()}"


def _checked(command: Callable[..., str]) -> Callable[..., str]:
    def checked(*words: object) -> str:
        line = command(*words)
        if (why := why_refused(line)) is not None:
            refused.append(why)
        return line

    return checked


commands.command = _checked(commands.command)  # before any other module imports it
