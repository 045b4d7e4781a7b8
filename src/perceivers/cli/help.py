"""What `--help` and `--help-all` print of a command's flags: read off its dataclass, and the words under each field."""

import ast
import inspect
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import tyro

POSITIONAL = typing.get_args(tyro.conf.Positional[int])[1]
WITHOUT_FLAG = typing.get_args(tyro.conf.FlagConversionOff[int])[1]
REPEATED = typing.get_args(tyro.conf.UseAppendAction[int])[1]
NEEDED = object()
FIRST_PART = re.compile(r"(.*?)(?:; .*|\. [A-Z].*|\.?)$")
"""What a flag means, without the second sentence or half of one."""
WIDEST_FLAG = 26
"""Columns that a flag and its value get; the words of a longer one start on the next line."""


@dataclass(frozen=True)
class Flag:
    """A flag, or an argument without one, in words."""

    name: str
    value: str
    words: str
    default: str

    @property
    def spelled(self) -> str:
        """As in a command."""
        return f"{self.name} {self.value}".rstrip()


def help_text(cls: type, default: Any, *, prog: str, description: str, main: Sequence[str] | None) -> str:
    """The help of a command.

    Args:
        cls: Dataclass of its flags.
        default: An instance whose values are the defaults; None for those of the class.
        prog: The command.
        description: Paragraphs; indented ones are examples and stay as they are.
        main: Flags that are shown, in this order and in short; None for all, in full.
    """
    width = max(40, min(shutil.get_terminal_size().columns, 100))
    flags = list(_flags(cls, default))
    arguments = [flag for flag in flags if not flag.name.startswith("--")]
    named = {flag.name: flag for flag in flags}
    others = [flag for flag in flags if flag not in arguments]
    shown = [*arguments, *(others if main is None else [named[name] for name in main if name in named])]
    usage = " ".join([prog, *(flag.name for flag in arguments)])
    hidden = len(flags) - len(shown)
    last = f"{hidden} more flags: {prog} --help-all" if hidden else ""
    blocks = [f"usage: {usage} [flags]", *_paragraphs(description, width), _lines(shown, width, brief=main is not None)]
    return "\n\n".join([*blocks, *([last] if last else [])])


def _paragraphs(text: str, width: int) -> Iterator[str]:
    """Paragraphs of a description; examples that follow each other stand together."""
    examples: list[str] = []
    for block in text.strip().split("\n\n"):
        if block.startswith(" "):
            examples.append(textwrap.indent(textwrap.dedent(block), "  "))
            continue
        yield textwrap.fill(" ".join(block.split()), width)
    if examples:
        yield "\n".join(examples)


def _lines(flags: list[Flag], width: int, *, brief: bool) -> str:
    """Flags on the left, what they mean on the right."""
    column = min(max(len(flag.spelled) for flag in flags), WIDEST_FLAG) + 4
    lines = []
    for flag in flags:
        words = FIRST_PART.match(flag.words)[1] if brief else flag.words  # pyright: ignore[reportOptionalSubscript]
        text = f"{words} {flag.default}".strip()
        wrapped = textwrap.wrap(text, width - column) or [""]
        left = f"  {flag.spelled}"
        if len(left) + 2 > column:
            lines.append(left)
            left = ""
        lines.append(f"{left:{column}}{wrapped[0]}".rstrip())
        lines += [" " * column + line for line in wrapped[1:]]
    return "\n".join(lines)


def _flags(cls: type, default: Any, prefix: str = "", with_values: bool = False) -> Iterator[Flag]:
    """All flags of a dataclass, and of those inside it."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in fields(cls):
        kind: Any = hints[field.name]
        notes: Sequence[Any] = ()
        if typing.get_origin(kind) is typing.Annotated:
            kind, *notes = typing.get_args(kind)
        value = _value(field, default)
        spelled_out = with_values or WITHOUT_FLAG in notes
        names = [note.name for note in notes if getattr(note, "name", None) is not None]
        if is_dataclass(value) or is_dataclass(kind):
            inner = f"{prefix}{names[0] if names else field.name}.".lstrip(".")
            given = value if is_dataclass(value) else None
            part: Any = kind if given is None else type(given)
            yield from _flags(part, given, inner, spelled_out)
        elif field.name != "kind" and not _holds_dataclasses(value):  # one of several parts is chosen in a file
            words = _words(cls).get(field.name, "")
            if POSITIONAL in notes:
                many = "..." if typing.get_origin(kind) is tuple and kind.__args__[-1] is Ellipsis else ""
                yield Flag(field.name.upper() + many, "", words, "")
            else:
                name = f"--{prefix}{names[0] if names else field.name}".replace("_", "-")
                kind = typing.get_args(kind)[0] if REPEATED in notes else kind
                yield _flag(name, kind, value, words, spelled_out)


def _flag(name: str, kind: Any, value: Any, words: str, with_values: bool) -> Flag:
    """A flag with the kind of value that it takes, and its default."""
    if kind is bool and not with_values:
        both = f"{name}, --no-{name.removeprefix('--')}"
        return Flag(both, "", words, "(default: on)") if value else Flag(name, "", words, "")
    if value is NEEDED:
        return Flag(name, _kind(kind), words, "(needed)")
    said = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return Flag(name, _kind(kind), words, "" if value is None or said == "" else f"(default: {said})")


def _kind(kind: Any) -> str:
    """What a value looks like: INT, {a,b}, or FLOAT FLOAT for two."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return "|".join(dict.fromkeys(_kind(option) for option in inner if option is not types.NoneType))
    if origin is Literal:
        return "{" + ",".join(map(str, inner)) + "}"
    if origin is tuple:
        return f"{_kind(inner[0])} ..." if inner[-1] is Ellipsis else " ".join(map(_kind, inner))
    if kind is bool:
        return "{True,False}"
    return "TEXT" if kind is str else getattr(kind, "__name__", str(kind)).upper()


def _value(field: Any, default: Any) -> Any:
    if default is not None:
        return getattr(default, field.name)
    if field.default_factory is not MISSING:
        return field.default_factory()
    return NEEDED if field.default is MISSING else field.default


def _holds_dataclasses(value: Any) -> bool:
    return isinstance(value, tuple) and any(is_dataclass(item) for item in value)


@cache
def _words(cls: type) -> dict[str, str]:
    """The string under each field of a dataclass, its bases' included."""
    words: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if is_dataclass(base):
            body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]).body
            for field, text in pairwise(body):
                match field, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                        words[name] = " ".join(said.split())
    return words
