"""Command lines and files of flags to dataclasses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from perceivers.cli.help import help_text
from perceivers.presets import PRESETS, preset
from perceivers.records import check_finite, from_dict
from perceivers.train.config import TrainConfig

Flags = TypeVar("Flags")

CONFIG = "config.yaml"
MOST_VALUES = 10_000
"""More than any configuration has; aliases of aliases make billions."""

HELP = {"-h", "--help", "--help-all"}


def parse(
    cls: type[Flags],
    args: Sequence[str],
    *,
    prog: str,
    description: str,
    default: Flags | None = None,
    main: Sequence[str] | None = None,
) -> Flags:
    """Parse a command's arguments into its dataclass; ends the process with code 2 where that can't be done.

    Args:
        cls: Dataclass of the command's flags.
        args: What follows the command.
        prog: The command.
        description: Stands in its help.
        default: Values of what is not given; None for those of the class.
        main: Flags that `--help` shows, where it leaves the others to `--help-all`; None for all.
    """
    if HELP & set(args):
        shown = None if "--help-all" in args else main
        print(help_text(cls, default, prog=prog, description=description, main=shown))
        raise SystemExit(0)
    chosen = tyro.MISSING_NONPROP if default is None else default
    parsed = tyro.cli(cls, args=args, prog=prog, description=description, default=chosen)
    check_finite(parsed)
    return parsed


def read_settings(source: str) -> tuple[TrainConfig, list[str]]:
    """The configuration called `source`, and flags that change it.

    Args:
        source: A preset's name; a YAML file that starts from one, `preset: NAME`, or that holds a whole configuration;
            or a run directory, for the configuration that it was trained with.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: There is no such preset, or the file is no configuration.
    """
    path = Path(source)
    if source not in PRESETS and path.is_dir():
        return read_config(path / CONFIG), []
    if path.suffix not in (".yaml", ".yml"):
        return preset(source), []
    values = read_yaml(path)
    if "preset" not in values:
        return read_config(path), []
    return preset(str(values.pop("preset"))), to_flags(values)


def read_config(path: Path) -> TrainConfig:
    """The whole configuration in a YAML file, such as a run's config.yaml.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is none.
    """
    values = read_yaml(path)
    if "model" not in values or "data" not in values:
        raise ValueError(f"{path} has neither a line `preset: NAME` nor a whole configuration, as a run's {CONFIG} has")
    try:
        return from_dict(TrainConfig, values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of names and values.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        values = _small_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} can't be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold names and values, such as `preset: bach_demo`")
    return values


def _small_yaml(text: str) -> Any:
    """A YAML text's values; refuses aliases that make a small text large, before anything of that size exists."""
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        if _written_out(root, {}) > MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {MOST_VALUES:,} values")
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _written_out(node: yaml.Node, known: dict[int, int | None]) -> int:
    """How many values a node holds, each alias written out."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = None  # not yet: an alias inside of what it stands for comes back here
        inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_written_out(part, known) for part in inner)
    if (size := known[id(node)]) is None:
        raise ValueError("an alias stands inside of what it stands for")
    return size


def to_flags(values: dict[str, Any], prefix: str = "") -> list[str]:
    """The flags that say what nested `values` say.

    So one parser checks files and command lines, and `lr: 3e-4`, a string to YAML, is a number as well.
    """
    flags: list[str] = []
    for key, value in values.items():
        name = f"--{prefix}{key}"
        match value:
            case dict():
                flags += to_flags(value, f"{prefix}{key}.")
            case list():
                flags += [name, *map(str, value)]
            case _:
                flags += [name, str(value)]
    return flags
