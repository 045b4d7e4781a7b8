"""Read arrays out of a pickle without running anything that the pickle asks for.

A pickle is a program: it names functions and has them called. Here every name becomes a `Named`, which only remembers
what it was called with; arrays are made afterwards, by this file, from the shape, type and bytes that were remembered.
"""

import math
import os
import pickle
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, ClassVar

import numpy as np

__all__ = ["Named", "as_array", "as_mapping", "read_pickle"]

_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}
_MOST_NAMES, _MOST_ARGS, _MOST_AXES = 10_000, 100, 32
"""More than pickles of weights have; they bound the memory that a small file can ask for."""
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
        if len(args) > _MOST_ARGS:
            raise ValueError(f"{cls.path} is called with {len(args)} arguments")
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


class _Tuple(tuple):
    """A tuple that is no key: hashing one that holds itself twice, and that twice, and so on, takes for ever."""

    __hash__ = None  # pyright: ignore


_InPython: Any = pickle._Unpickler  # pyright: ignore[reportAttributeAccessIssue]
"""Python's reader in Python: unlike the one in C it takes no memory for what a file merely announces."""


class _Reader(_InPython):
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_InPython.dispatch)

    def __init__(self, file: BinaryIO) -> None:
        size = os.fstat(file.fileno()).st_size
        super().__init__(SimpleNamespace(read=lambda count: file.read(min(count, size)), readline=file.readline))
        self._names: dict[str, type[Named]] = {}

    def find_class(self, module: str, name: str) -> type[Named]:
        path = f"{module}.{name}"
        if path not in self._names:
            if len(self._names) == _MOST_NAMES:
                raise ValueError(f"it asks for more than {_MOST_NAMES:,} names")
            self._names[path] = type("Named", (Named,), {"path": path})
        return self._names[path]


def _load_tuple(reader: Any, *, code: int) -> None:
    _InPython.dispatch[code](reader)
    reader.stack[-1] = _Tuple(reader.stack[-1])


def _load_bytearray(reader: Any) -> None:
    (size,) = struct.unpack("<Q", reader.read(8))
    reader.append(bytearray(reader.read(size)))


for _code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
    _Reader.dispatch[_code[0]] = partial(_load_tuple, code=_code[0])
_Reader.dispatch[pickle.BYTEARRAY8[0]] = _load_bytearray


def read_pickle(path: Path) -> Any:
    """The tree in a pickle: plain containers, numbers and strings as they are, everything else as `Named`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no complete pickle.
    """
    with path.open("rb") as file:
        try:
            return _Reader(file).load()
        except Exception as error:  # a damaged pickle can fail in any way, lack of memory among them
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
        shown = repr(code[:20]) if isinstance(code, str) else type(code).__name__  # its text may have no end
        raise ValueError(f"an array of type {shown}: only plain numbers can be read")
    big_endian = isinstance(dtype.state, tuple) and dtype.state[1:2] == (">",)
    kind = np.dtype((">" if big_endian else "<") + code)
    if isinstance(content, Named):  # how pickle protocols 0 to 2 write bytes
        text = content.args[0] if content.args else ""
        content = text.encode("latin1") if isinstance(text, str) else None
    sizes_fit = isinstance(shape, tuple) and len(shape) <= _MOST_AXES
    sizes_fit = sizes_fit and all(isinstance(size, int) and 0 <= size < 2**63 for size in shape)
    if not sizes_fit:
        raise ValueError(f"an array of type {code} without a shape: the file is damaged")
    if not isinstance(content, bytes | bytearray) or len(content) != math.prod(shape) * kind.itemsize:
        raise ValueError(f"an array of shape {shape} and type {code} does not fit its bytes: the file is damaged")
    array = np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")
    return array.astype(kind.newbyteorder("="))
