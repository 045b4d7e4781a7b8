"""Numbers that callers pass to functions, checked. Imports no torch."""

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def kind_of(annotation: Any) -> type | None:
    """Int or float, where an annotation is one of them, or one of them or None; else None."""
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    kinds = [option for option in options if option is not types.NoneType]
    return kinds[0] if kinds in ([int], [float]) else None


def check_kind(name: str, value: object, annotation: Any) -> None:
    """Refuse what is no number where one is asked for.

    Args:
        name: Of the argument.
        value: What was given.
        annotation: Its type; what is neither int nor float, with or without None, is not looked at.

    Raises:
        ValueError: Names it.
    """
    kind, optional = kind_of(annotation), isinstance(annotation, types.UnionType)
    if kind is None or (value is None and optional):
        return
    if isinstance(value, bool) or not isinstance(value, Integral if kind is int else Real):
        number = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name}={value!r} must be {number}{', or None' if optional else ''}")


def checked_numbers(**least: int | float) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Let a function refuse numbers that mean nothing, before it begins.

    Its arguments that are annotated as int or float have to be such numbers, and finite. Whole numbers are at least 1,
    others above 0, unless said otherwise.

    Args:
        least: The lowest value of arguments that have another one.
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        signature = inspect.signature(function)
        annotations = {name: parameter.annotation for name, parameter in signature.parameters.items()}

        @functools.wraps(function)
        def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            try:
                given = signature.bind_partial(*args, **kwargs).arguments
            except TypeError:  # of which Python says more where it calls
                given = {}
            for name, value in given.items():
                check_kind(name, value, annotations[name])
                _check_size(name, value, annotations[name], least)
            return function(*args, **kwargs)

        return checked

    return decorate


def _check_size(name: str, value: Any, annotation: Any, least: dict[str, int | float]) -> None:
    kind = kind_of(annotation)
    if kind is None or value is None:
        return
    if not math.isfinite(value):
        raise ValueError(f"{name}={value} must be a finite number")
    if kind is float and name not in least:
        if value <= 0:
            raise ValueError(f"{name}={value} must be more than 0")
    elif value < (lowest := least.get(name, 1)):
        raise ValueError(f"{name}={value} must be {lowest} or more")
