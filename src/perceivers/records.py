"""Frozen dataclasses to plain values and back: what config.json and config.yaml hold. Imports no torch."""

import dataclasses
import difflib
import types
import typing
from typing import Any, TypeVar

Record = TypeVar("Record")


def to_dict(record: Any) -> Any:
    """A dataclass as dictionaries, lists and scalars."""
    if dataclasses.is_dataclass(record):
        return {f.name: to_dict(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, list | tuple):
        return [to_dict(item) for item in record]
    return record


def from_dict(cls: type[Record] | Any, values: Any, *, path: str = "") -> Record:
    """What `to_dict` was given; fields that are missing take their defaults.

    Where a field may be one of several dataclasses, its `kind` says which, or else the names of its fields.

    Raises:
        ValueError: An unknown field (the nearest name is suggested) or kind.
    """
    options = typing.get_args(cls) if isinstance(cls, types.UnionType) or typing.get_origin(cls) is typing.Union else ()
    records = [option for option in options or (cls,) if dataclasses.is_dataclass(option)]
    if records and isinstance(values, dict):
        return _record(_by_kind(records, values, path), values, path)
    if isinstance(values, list):
        return tuple(values)  # pyright: ignore[reportReturnType]
    return values


def _by_kind(records: list[Any], values: dict[str, Any], path: str) -> Any:
    if len(records) == 1:
        return records[0]
    kinds = {f.default: record for record in records for f in dataclasses.fields(record) if f.name == "kind"}
    if not kinds:
        fits = [r for r in records if values.keys() <= {f.name for f in dataclasses.fields(r)}]
        return fits[0] if fits else records[0]
    if (kind := values.get("kind")) not in kinds:
        raise ValueError(f"{path or 'config'}: kind {kind!r} is not one of {', '.join(map(repr, kinds))}")
    return kinds[kind]


def _record(cls: Any, values: dict[str, Any], path: str) -> Any:
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(names)}"
            raise ValueError(f"{path}{name}: no such field of {cls.__name__}{hint}")
    return cls(**{name: from_dict(hints[name], value, path=f"{path}{name}.") for name, value in values.items()})
