"""Official parameters by name: which of them make ours, and what of a file does not fit.

Haiku names a parameter `<module path>/<name>`, keeps linear weights as inputs x outputs, and keys and values apart.
"""

import difflib
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

Names = dict[str, tuple[str, ...]]
"""For a name of our `state_dict` the official parameters that it is made of, joined along the first axis."""

SHOWN = 6
"""Problems that an error lists."""


def joined(params: Mapping[str, np.ndarray], sources: Names, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Our `state_dict`, with the given shapes, from Haiku's parameters: linear weights are transposed.

    Raises:
        ValueError: Lists parameters that are missing, unknown or of another shape; or ours has one of a kind that the
            official code has not.
    """
    check_counterparts(sources, shapes)
    check_fit(params, {n: shape for ours, names in sources.items() for n, shape in _official(names, shapes[ours])})
    return {
        ours: torch.cat([torch.from_numpy(np.ascontiguousarray(_turned(name, params[name]))) for name in names])
        for ours, names in sources.items()
    }


def check_counterparts(sources: Names, ours: Iterable[str]) -> None:
    """Check that each of our parameters is made of official ones.

    Raises:
        ValueError: The official code has nothing like one of them.
    """
    if other := sorted(sources.keys() ^ set(ours)):
        raise ValueError(f"the official code has nothing like {other[0]} of this config")


def _turned(name: str, value: np.ndarray) -> np.ndarray:
    return value.T if name.endswith("/w") else value


def _official(names: tuple[str, ...], shape: torch.Size) -> list[tuple[str, tuple[int, ...]]]:
    """Shapes of the parameters that are joined along the first axis into one of `shape`."""
    part = (shape[0] // len(names), *shape[1:])
    return [(name, part[::-1] if name.endswith("/w") else part) for name in names]


def check_fit(
    found: Mapping[str, np.ndarray | Tensor], wanted: Mapping[str, tuple[int, ...]], more: Iterable[str] = ()
) -> None:
    """Check that there is each parameter that is wanted, in its shape, and no other.

    Raises:
        ValueError: Lists those that are missing, unknown or of another shape, and `more` problems.
    """
    shapes = [
        f"{name} has shape {list(found[name].shape)}, the config asks for {list(shape)}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name].shape) != tuple(shape)
    ]
    refuse([*misnamed(found, wanted), *shapes, *more])


def misnamed(found: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """What is missing and what is unknown, with the nearest name among the others."""
    found, wanted = set(found), set(wanted)
    missing = [f"missing {name}{nearest(name, found - wanted)}" for name in wanted - found]
    return missing + [f"unknown {name}{nearest(name, wanted)}" for name in found - wanted]


def refuse(problems: list[str]) -> None:
    """Raise an error that lists `problems`, if there are any."""
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError("weights do not fit the config: " + "; ".join(sorted(problems)[:SHOWN]) + more)


def nearest(name: str, candidates: Iterable[str]) -> str:
    """A hint at the candidate that `name` may stand for; nothing where none is like it."""
    near = difflib.get_close_matches(name, list(candidates), n=1)
    return f" (nearest: {near[0]})" if near else ""


def linear(ours: str, *official: str) -> Names:
    """Names of a linear layer, or of several as one."""
    return {
        f"{ours}.weight": tuple(f"{name}/w" for name in official),
        f"{ours}.bias": tuple(f"{name}/b" for name in official),
    }


def norms(ours: str, official: str) -> Names:
    """Names of a layer norm or batch norm."""
    return {f"{ours}.weight": (f"{official}/scale",), f"{ours}.bias": (f"{official}/offset",)}


def numbered(name: str, count: int) -> str:
    """Haiku's name of the module called `name` after `count` others of it."""
    return f"{name}_{count}" if count else name
