"""What commands print."""

import sys
from collections.abc import Sequence


def warn(text: str) -> None:
    """Say something on stderr that the user should know."""
    print(f"perceivers: warning: {text}", file=sys.stderr)


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
