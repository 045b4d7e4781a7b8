import inspect
import math
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from perceivers import Loaded
from perceivers.arguments import check_kind, checked_numbers, kind_of
from perceivers.demo import run_demo

MODULES = (
    *(f"evaluate.{name}" for name in ("bootstrap", "classification", "copying", "flow", "likelihood", "masked")),
    *(f"evaluate.{name}" for name in ("naming", "playing", "reconstruction", "schedule", "two_sided")),
    *("data.prepare", "generate.fill", "generate.decode"),
)
INNER = {"flow_picture", "predictions_a_rebuild", "longest_prompt", "thinned", "check_pictures"}
"""Whoever calls them has checked."""


@checked_numbers(seed=0, share=0)
def work(
    _: str, *, count: int = 3, most: int | None = None, seconds: float = 1.0, share: float = 0.5, seed: int = 0
) -> str:
    """Takes numbers of every kind."""
    return f"{count} {most} {seconds} {share} {seed}"


def test_what_numbers_are_asked_for() -> None:
    kinds = [kind_of(annotation) for annotation in (int, float, int | None, float | None, bool, str, str | None)]
    assert kinds == [int, float, int, float, None, None, None]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seconds": math.nan}, "seconds=nan must be a finite number"),
        ({"seconds": -math.inf}, "seconds=-inf must be a finite number"),
        ({"seconds": "3"}, "seconds='3' must be a number"),
        ({"seconds": None}, "seconds=None must be a number"),
        ({"seconds": 0}, "seconds=0 must be more than 0"),
        ({"share": -0.5}, "share=-0.5 must be 0 or more"),
        ({"count": 0}, "count=0 must be 1 or more"),
        ({"count": 2.0}, "count=2.0 must be a whole number"),
        ({"count": True}, "count=True must be a whole number"),
        ({"most": "7"}, "most='7' must be a whole number, or None"),
        ({"seed": -1}, "seed=-1 must be 0 or more"),
    ],
)
def test_numbers_that_mean_nothing(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        work("", **given)


def test_numbers_that_go() -> None:
    numbers: dict[str, Any] = {"count": np.int64(5), "seconds": np.float32(0.5), "share": 0, "most": None}
    assert work("", **numbers, seed=0) == "5 None 0.5 0 0"
    check_kind("lr", 3, float)
    check_kind("name", "x", str)
    with pytest.raises(TypeError, match="missing"):
        work()  # pyright: ignore[reportCallIssue]


def _with_numbers() -> Iterator[Any]:
    """Public functions and their arguments that are numbers."""
    for name in MODULES:
        module = import_module(f"perceivers.{name}")
        for function in vars(module).values():
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                yield from _of(function, name)
    yield from _of(Loaded.steps, "Loaded")  # to which the others pass their numbers as they come
    yield from _of(run_demo, "demo")


def _of(function: Callable[..., Any], where: str) -> Iterator[Any]:
    for parameter in inspect.signature(function).parameters.values():
        if kind_of(parameter.annotation) and not function.__name__.startswith("_") and function.__name__ not in INNER:
            yield pytest.param(function, parameter.name, id=f"{where}.{function.__name__}({parameter.name})")


@pytest.mark.parametrize(("function", "name"), list(_with_numbers()))
def test_public_functions_refuse_them(function: Callable[..., Any], name: str) -> None:
    for number in (math.nan, "3"):
        with pytest.raises(ValueError, match=rf"^{name}="):
            function(**{name: number})
