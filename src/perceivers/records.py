"""Frozen dataclasses to plain values and back: what config.json and config.yaml hold. Imports no torch."""

import dataclasses
import difflib
import json
import math
import numbers
import sys
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, TypeVar

Record = TypeVar("Record")


@typing.dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def record(cls: type[Record]) -> type[Record]:
    """Make a class a frozen dataclass with keyword arguments of the types that its fields have.

    Numbers of numpy become Python's, lists tuples; a number that is NaN or infinite, or of another kind, is refused.
    """
    check: Callable[[Any], None] | None = getattr(cls, "__post_init__", None)

    def __post_init__(self: Any) -> None:
        _take_types(self)
        if check is not None:  # which says in words of its own what a field may be called
            check(self)
        _take_types(self, words=True)
        check_finite(self)

    cls.__post_init__ = __post_init__  # pyright: ignore[reportAttributeAccessIssue]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def not_negative(record: Any, *names: str) -> None:
    """Refuse fields below 0.

    Raises:
        ValueError: Names the first one.
    """
    for name in names:
        if (value := getattr(record, name)) < 0:
            raise ValueError(f"{name}={value} must be 0 or more")


def check_finite(values: Any, *, path: str = "") -> None:
    """Refuse NaN and infinities, which no setting means, in any field of a dataclass and of those inside it.

    Raises:
        ValueError: Names the first one.
    """
    if dataclasses.is_dataclass(values):
        for f in dataclasses.fields(values):
            check_finite(getattr(values, f.name), path=f"{path}.{f.name}" if path else f.name)
    elif isinstance(values, tuple | list):
        for value in values:
            check_finite(value, path=path)
    elif isinstance(values, float) and not math.isfinite(values):
        raise ValueError(f"{path}={values} must be a finite number")


def _take_types(made: Any, *, words: bool = False) -> None:
    """Give fields plain values of their types; those that are one of a few words only where `words` is true.

    Raises:
        ValueError: One has a value of another type.
    """
    for name, hint in _hints(type(made)).items():
        options = _options(hint)
        if not words and any(typing.get_origin(option) is Literal for option in options):
            continue
        given = getattr(made, name)
        value = _plain(given)
        if not any(_fits(option, value) for option in options):
            raise ValueError(f"{name}={given!r} is of the wrong kind: {_needed(options)}")
        if value is not given:
            object.__setattr__(made, name, value)


_hints = cache(typing.get_type_hints)


def _options(hint: Any) -> tuple[Any, ...]:
    """The types of which a value has one."""
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _plain(value: Any) -> Any:
    """A number of Python in place of one of numpy, and a tuple in place of a list."""
    match value:
        case bool() | int() | float() | str() | None:
            return value
        case numbers.Integral():
            return int(value)
        case numbers.Real():
            return float(value)
        case list() | tuple():
            items = tuple(map(_plain, value))
            same = type(value) is tuple and all(new is old for new, old in zip(items, value, strict=True))
            return value if same else items
    return value


def _needed(options: tuple[Any, ...]) -> str:
    return f"needs {' or '.join(map(_spelled, options))}"


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds.

    Raises:
        json.JSONDecodeError: It is none, or nested deeper than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None


def to_dict(record: Any) -> Any:
    """A dataclass as dictionaries, lists and scalars."""
    if dataclasses.is_dataclass(record):
        return {f.name: to_dict(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, list | tuple):
        return [to_dict(item) for item in record]
    return record


def from_dict(cls: type[Record] | Any, values: Any, *, path: str = "") -> Record:
    """What `to_dict` was given; fields that are missing take their defaults.

    Where a field may be one of several dataclasses, its `kind` says which; without one, the names of its fields.

    Args:
        cls: Type of the result: a dataclass, or the type of one of its fields.
        values: Plain values.
        path: Where they stand, for messages: "model.positions".

    Raises:
        ValueError: An unknown field (the nearest name is suggested) or kind, or a value of another type.
    """
    options = _options(cls)
    records = [option for option in options if dataclasses.is_dataclass(option)]
    if records and isinstance(values, dict):
        return _record(_by_kind(records, values, path), values, path)
    if isinstance(values, list):
        values = _tuple(options, values, path)
    if not any(_fits(option, values) for option in options):
        raise ValueError(f"{path or 'config'}: got {values!r}, {_needed(options)}")
    return values


def _tuple(options: tuple[Any, ...], values: list[Any], path: str) -> tuple[Any, ...]:
    """A list as a tuple; its dictionaries as the dataclasses that stand in such a tuple."""
    items = [typing.get_args(option)[0] for option in options if typing.get_origin(option) is tuple]
    inner = next((item for item in items if dataclasses.is_dataclass(item)), None)
    if inner is None:
        return tuple(values)
    return tuple(
        from_dict(inner, value, path=f"{path}[{i}]") if isinstance(value, dict) else value
        for i, value in enumerate(values)
    )


def _fits(cls: Any, value: Any) -> bool:
    """Whether `value` is of type `cls`; an integer is a float as well, a boolean is no number."""
    origin, kinds = typing.get_origin(cls), typing.get_args(cls)
    if origin is Literal:
        return value in kinds
    if origin is tuple:
        if isinstance(value, tuple) and kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, kinds, value))
    if isinstance(value, bool):
        return cls is bool
    if cls is float and isinstance(value, int):
        return abs(value) <= sys.float_info.max
    return cls is Any or isinstance(value, cls)


def _spelled(cls: Any) -> str:
    if typing.get_origin(cls) is Literal:
        return " or ".join(map(repr, typing.get_args(cls)))
    return cls.__name__.removesuffix("Type") if isinstance(cls, type) else str(cls)


def _by_kind(records: list[Any], values: dict[Any, Any], path: str) -> Any:
    if len(records) == 1:
        return records[0]
    kinds = {f.default: record for record in records for f in dataclasses.fields(record) if f.name == "kind"}
    if "kind" not in values:
        known = [len(values.keys() & {f.name for f in dataclasses.fields(record)}) for record in records]
        if known.count(max(known)) == 1:
            return records[known.index(max(known))]
        raise ValueError(f"{path or 'config'}: needs a kind, one of {', '.join(map(repr, kinds))}")
    if (kind := str(values["kind"])) not in kinds:
        raise ValueError(f"{path or 'config'}: kind {kind!r} is not one of {', '.join(map(repr, kinds))}")
    return kinds[kind]


def _record(cls: Any, values: dict[Any, Any], path: str) -> Any:
    hints = _hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    prefix = f"{path}." if path else ""
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names)}"
            raise ValueError(f"{prefix}{name}: no such field of {cls.__name__}; {hint}")
    given = {name: from_dict(hints[name], value, path=f"{prefix}{name}") for name, value in values.items()}
    needed = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{path or cls.__name__}: lacks {', '.join(missing)}")
    made = cls(**given)
    check_finite(made, path=path)
    return made
