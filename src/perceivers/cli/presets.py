"""`perceivers presets`: names of complete settings."""

from collections.abc import Sequence

from perceivers.cli.console import table
from perceivers.cli.flags import HELP
from perceivers.commands import command
from perceivers.presets import PRESETS, summary


def run(args: Sequence[str]) -> int:
    """Print every preset's name and what it is."""
    if args and args[0] in HELP:
        print("usage: perceivers presets\n\nLists complete settings by name; `perceivers show NAME` tells more.")
        return 0
    if args:
        raise ValueError(f"presets takes no arguments, got {args[0]!r}; try {command('show', args[0])}")
    print(table([(name, summary(name)) for name in PRESETS]))
    return 0
