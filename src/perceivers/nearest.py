"""What a path that leads nowhere may have meant. Imports no torch."""

import difflib
import re
from itertools import islice
from pathlib import Path

MODEL, STORE = "config.json", "header.json"
"""Files by which a folder is known as a saved model (a run holds one) and as a store."""

LOOKED_AT = 1000
"""Folders that are looked at, at most: a suggestion is no reason to wait."""


HUB_ID = re.compile(r"[A-Za-z0-9](?:[\w.-]*\w)?/[A-Za-z0-9](?:[\w.-]*\w)?", re.ASCII)


def is_hub_id(source: str | Path) -> bool:
    """Whether `source`, which is not here, can mean `owner/name` on the hub: no folder `owner` is here either."""
    return isinstance(source, str) and HUB_ID.fullmatch(source) is not None and not Path(source).parent.exists()


def check_source(source: str | Path) -> None:
    """Refuse, before anything is loaded, a path that leads nowhere.

    Raises:
        FileNotFoundError: Nothing is there, and it is no hub id; the nearest run is suggested.
    """
    if not Path(source).exists() and not is_hub_id(source):
        raise FileNotFoundError(no_such(source))


def no_such(path: str | Path, *, holds: str = MODEL) -> str:
    """The message that nothing is at `path`, with the folder that was probably meant.

    Args:
        path: As it was given.
        holds: The file by which such folders are known.
    """
    return f"{path} does not exist{suggestion(path, holds=holds)}"


def suggestion(path: str | Path, *, holds: str = MODEL) -> str:
    """The nearest folders that hold the file `holds`, in words to put after a message; empty if there are none."""
    names = [str(folder) for folder in _folders(Path(path), holds)]
    # A folder of the same name somewhere else counts more than one whose path is spelled alike.
    near = [name for name in names if Path(name).name == Path(path).name]
    near = near or difflib.get_close_matches(str(path), names, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    if names and len(names) <= 5:
        return f"; there {'is' if len(names) == 1 else 'are'} {', '.join(names)}"
    return ""


def _folders(path: Path, holds: str) -> list[Path]:
    """Folders that hold the file, in the nearest folder above `path` that exists, and in those inside it."""
    above = next((folder for folder in (path, *path.parents) if folder.is_dir()), Path())
    try:
        first = [folder for folder in islice(sorted(above.iterdir()), LOOKED_AT) if folder.is_dir()]
        second = [inner for folder in first for inner in islice(folder.iterdir(), LOOKED_AT // max(len(first), 1) + 1)]
    except OSError:  # what can't be listed can't be suggested
        return []
    return sorted(folder for folder in (*first, *second) if (folder / holds).is_file())
