"""Commands that the package tells people to run. Imports no torch."""

import shlex
from itertools import chain, count
from pathlib import Path
from string import ascii_lowercase


def command(*words: object) -> str:
    """A command of this package that can be pasted into a shell, whatever its words hold.

    Every command in a message is made here, where the tests let the command's own parser read it.

    Args:
        words: What follows `perceivers`. What only the user knows is a word in capitals: STORE, DIR, RUN.
    """
    return shlex.join(["perceivers", *map(str, words)])


def free_run(folder: Path = Path("runs")) -> Path:
    """The first of runs/a, runs/b, ..., runs/z, runs/27, ... at which nothing is."""
    names = chain(ascii_lowercase, map(str, count(len(ascii_lowercase) + 1)))
    return next(folder / name for name in names if not (folder / name).exists())
