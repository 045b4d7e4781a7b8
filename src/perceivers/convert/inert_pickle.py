"""Read arrays out of a pickle without running anything that the pickle asks for.

A pickle is a program: it names functions and has them called. Here every name becomes a `Named`, which only remembers
what it was called with; arrays are made afterwards, by this file, from the shape, type and bytes that were remembered.
"""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Named", "as_array", "as_mapping", "read_pickle"]

_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}
_MAPPINGS = {"OrderedDict", "FlatMapping", "FlatMap", "frozendict"}


class Named:
    """Stands for whatever a pickle wanted to make by calling `path`; does nothing itself.

    Attributes:
        path: Module and name.
        args: What it was called with.
        state: What its state was set to.
        items: Keys and values that were put into it.
    """

    path = ""
    args: tuple[Any, ...]
    state: Any
    items: dict[Any, Any]

    def __new__(cls, *args: Any, **_: Any) -> "Named":
        """Remember the arguments."""
        made = super().__new__(cls)
        made.args, made.state, made.items = args, None, {}
        return made

    def __call__(self, *args: Any) -> "Named":
        """What a function that the pickle asked for would return."""
        return type(self)(*args)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, _: Any) -> None:
        """Take an element, as a list would, and forget it."""

    add = append


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[Named]:
        return type("Named", (Named,), {"path": f"{module}.{name}"})


def read_pickle(path: Path) -> Any:
    """The tree in a pickle: plain containers, numbers and strings as they are, everything else as `Named`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no complete pickle.
    """
    with path.open("rb") as file:
        try:
            return _Reader(file).load()
        except Exception as error:  # a damaged pickle can fail in any way
            raise ValueError(f"{path} is damaged or no pickle: {type(error).__name__}: {error}") from error


def as_mapping(value: Any) -> dict | None:
    """The dictionary that `value` is, or that a Haiku or ordered dictionary holds; None if it is neither."""
    if isinstance(value, Named) and value.path.rpartition(".")[2] in _MAPPINGS:
        value = value.args[0] if value.args else value.items
    return value if isinstance(value, dict) else None


def as_array(value: Any) -> np.ndarray | None:
    """The array that numpy or jax would have made of `value`; None if it is none.

    Raises:
        ValueError: It is one, but not of numbers, or its parts do not fit each other.
    """
    if not isinstance(value, Named):
        return None
    args, state = value.args, None
    match value.path.rpartition(".")[2]:
        case "_reconstruct":
            state = value.state
        # (numpy's function, its arguments, the state of numpy's array, ...): jax of all ages, and dill.
        case "reconstruct_device_array" | "_reconstruct_array" | "_create_array" if len(args) > 2:
            state = args[2]
        case "_frombuffer" if len(args) == 4:  # numpy in pickle protocol 5
            content, dtype, shape, order = args
            return _make(shape, dtype, content, fortran=order == "F")
        case "scalar" if len(args) == 2:
            return _make((), *args, fortran=False)
    if not isinstance(state, tuple) or len(state) != 5:
        return None
    _, shape, dtype, fortran, content = state
    return _make(shape, dtype, content, fortran=bool(fortran))


def _make(shape: Any, dtype: Any, content: Any, *, fortran: bool) -> np.ndarray:
    code = dtype.args[0] if isinstance(dtype, Named) and dtype.args else None
    if not isinstance(code, str) or code not in _NUMBERS:
        raise ValueError(f"an array of type {code!r}: only plain numbers can be read")
    big_endian = isinstance(dtype.state, tuple) and dtype.state[1:2] == (">",)
    kind = np.dtype((">" if big_endian else "<") + code)
    if isinstance(content, Named):  # how pickle protocols 0 to 2 write bytes
        content = str(content.args[0]).encode("latin1") if content.args else b""
    sizes_fit = isinstance(shape, tuple) and all(isinstance(size, int) and size >= 0 for size in shape)
    if not sizes_fit or not isinstance(content, bytes | bytearray) or len(content) != math.prod(shape) * kind.itemsize:
        raise ValueError(f"an array of shape {shape} and type {code} does not fit its bytes: the file is damaged")
    array = np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")
    return array.astype(kind.newbyteorder("="))
