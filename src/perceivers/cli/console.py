"""What commands print, and the streams that it goes to."""

import io
import json
import math
import sys
from collections.abc import Sequence
from typing import Any


def forgiving_streams() -> None:
    """Let standard output and error replace characters that their encoding lacks, in place of failing midway.

    A terminal of cp1252, or a pipe in an ASCII locale, gets a question mark for each; files are always UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def as_json(result: Any) -> str:
    """A result as one line of valid JSON, where numbers that JSON lacks (inf, NaN) are null."""
    return json.dumps(_finite(result), allow_nan=False)


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_finite(inner) for inner in value]
    return value


def counted(number: int, thing: str) -> str:
    """A number of things in words: 1 document, 1,200 documents."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def warn(text: str) -> None:
    """Say something on stderr that the user should know."""
    print(f"perceivers: warning: {text}", file=sys.stderr)


def failed(text: str) -> None:
    """Say on stderr what could not be done, where the rest goes on."""
    print(f"perceivers: error: {text}", file=sys.stderr)


def note(text: str) -> None:
    """Say something on stderr that is only worth knowing."""
    print(f"perceivers: {text}", file=sys.stderr)


def table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Rows in aligned columns; those whose index is in `right` are aligned there."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def big(number: int | float, unit: str = "") -> str:
    """A number with three digits and a prefix: 12.3 M."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}".rstrip()
