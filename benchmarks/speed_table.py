"""What the command lines of the other benchmarks of speed share: their arguments, and their table."""

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sampling import machine
from sampling_timing import Row


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The arguments that all of them have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs; numbers mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there too")
    return parser


def print_table(found: Iterable[Row], *, scale: Any, json_file: Path | None) -> None:
    """Print rows as they are found, and write them to a file at the end."""
    facts, rows = machine(), []
    print(", ".join(f"{name} {fact}" for name, fact in facts.items()), end="\n\n")
    print("| part | setting | what | median | lowest | highest | unit |\n| --- | --- | --- | --: | --: | --: | --- |")
    for row in found:
        print(row, flush=True)
        rows.append(row)
    if json_file:
        table = {"machine": facts, "scale": asdict(scale), "rows": [asdict(row) for row in rows]}
        json_file.write_text(json.dumps(table, indent=1) + "\n")
