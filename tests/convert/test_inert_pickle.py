import collections
import contextlib
import os
import pickle
import sys
import tracemalloc
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perceivers.convert.inert_pickle import Named, as_array, as_mapping, read_pickle


def write(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3, dtype=">f4"),
        np.array(7, dtype=np.int32),
        np.zeros((0, 5), np.float16),
        np.float64(2.5),
        np.array([True, False]),
    ],
    ids=["float32", "fortran", "big-endian", "zero-dimensional", "empty", "scalar", "bool"],
)
def test_arrays_come_back_as_they_were(tmp_path: Path, value: Any, protocol: int) -> None:
    array = as_array(read_pickle(write(tmp_path / "a.pickle", value, protocol)))
    np.testing.assert_array_equal(array, value)
    assert array.dtype == value.dtype.newbyteorder("=")
    assert array.flags.writeable


def test_plain_values_stay_plain(tmp_path: Path) -> None:
    value = {"step": 7, "list": [1, (2.5, None)], "text": "x", "set": {3}}
    assert read_pickle(write(tmp_path / "a.pickle", value)) == value


class Runs:
    """Its pickle asks for a function to be called."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_no_code_is_run(tmp_path: Path, protocol: int) -> None:
    proof = tmp_path / "ran"
    command = f"touch {proof}"
    attacks = [
        Runs(os.system, command),
        Runs(eval, f"__import__('os').system('{command}')"),
        Runs(exec, f"open({str(proof)!r}, 'w')"),
        Runs(Path.touch, proof),
        Runs(getattr, os, "system"),
    ]
    values = [{"params": attacks[0]}, *attacks[:4]]
    for value in values:
        tree = read_pickle(write(tmp_path / "a.pickle", value, protocol))
        found = tree["params"] if isinstance(tree, dict) else tree
        assert isinstance(found, Named)
        assert as_array(found) is None
        assert as_mapping(found) is None
    assert not proof.exists()

    pickle.loads(pickle.dumps(attacks[0]))  # the same file does harm where its code is run
    assert proof.exists()


def test_names_of_what_was_asked_for_are_kept(tmp_path: Path) -> None:
    found = read_pickle(write(tmp_path / "a.pickle", Runs(os.system, "true")))
    assert (found.path, found.args) == (f"{os.name}.system", ("true",))


@pytest.fixture
def strange(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module that is gone when the pickle is read."""
    module = types.ModuleType("gone")
    monkeypatch.setitem(sys.modules, "gone", module)

    def define(base: type, **members: Any) -> type:
        made = type("Strange", (base,), {"__module__": module.__name__, **members})
        module.Strange = made
        return made

    module.define = define
    return module


@pytest.mark.parametrize("base", [object, dict, list, set])
def test_unknown_classes_are_inert(
    tmp_path: Path, strange: types.ModuleType, monkeypatch: pytest.MonkeyPatch, base: type
) -> None:
    thing = strange.define(base)()
    thing.weight = np.ones(3)
    match thing:
        case dict():
            thing["k"] = 5
        case list():
            thing += [1, 2]
        case set():
            thing.add(1)
    path = write(tmp_path / "a.pickle", {"thing": thing, "kept": 5})
    monkeypatch.delitem(sys.modules, strange.__name__)
    tree = read_pickle(path)
    assert isinstance(tree["thing"], Named)
    assert tree["kept"] == 5


def test_dictionaries_of_haiku_and_ordered_ones(
    tmp_path: Path, strange: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = strange.define(dict, __reduce__=lambda self: (type(self), (dict(self),)))
    flat.__name__ = flat.__qualname__ = "FlatMapping"
    strange.FlatMapping = flat
    path = write(tmp_path / "a.pickle", [flat(a=1), collections.OrderedDict(b=2), {"c": 3}])
    monkeypatch.delitem(sys.modules, strange.__name__)
    assert [as_mapping(value) for value in read_pickle(path)] == [{"a": 1}, {"b": 2}, {"c": 3}]
    assert as_mapping([1]) is None


@pytest.mark.parametrize("name", ["reconstruct_device_array", "_reconstruct_array", "_create_array"])
def test_arrays_of_jax_and_dill(
    tmp_path: Path, strange: types.ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def rebuild(*_: Any) -> None:
        """Stands for the function of jax or dill that the pickle names."""

    rebuild.__module__, rebuild.__qualname__ = strange.__name__, name
    setattr(strange, name, rebuild)
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    path = write(tmp_path / "a.pickle", Runs(rebuild, *value.__reduce__(), {"weak_type": False}))
    monkeypatch.delitem(sys.modules, strange.__name__)
    np.testing.assert_array_equal(as_array(read_pickle(path)), value)


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    found = read_pickle(write(tmp_path / "a.pickle", np.array([None, {}], dtype=object)))
    with pytest.raises(ValueError, match="array of type 'O8': only plain numbers can be read"):
        as_array(found)


def test_array_that_does_not_fit_its_bytes(tmp_path: Path) -> None:
    function, args, (version, _, dtype, fortran, content) = np.ones(3, np.float32).__reduce__()

    class Wrong:
        def __reduce__(self) -> tuple:
            return function, args, (version, (5,), dtype, fortran, content)

    with pytest.raises(ValueError, match=r"shape \(5,\) and type f4 does not fit its bytes"):
        as_array(read_pickle(write(tmp_path / "a.pickle", Wrong())))


@pytest.mark.parametrize(
    "content", [b"", b"no pickle", pickle.dumps(list(range(99)))[:-5], b"\x80\x04K\x05\x8c\x01aR."]
)
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pickle"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pickle is damaged or no pickle"):
        read_pickle(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_pickle(tmp_path / "none.pickle")


def bomb(*operations: bytes) -> bytes:
    """Tuples of twice the tuple before, 40 deep: small as a file, and without end when it is hashed or printed."""
    twice = b"".join(b"q" + bytes([place]) + b"h" + bytes([place]) + b"\x86" for place in range(40))
    return b"\x80\x03" + b"K\x01\x85" + twice + b"".join(operations) + b"."


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR(K\x01"
FLOATS = b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR"


@pytest.mark.parametrize(
    "content",
    [
        b"Nr" + (200_000_000).to_bytes(4, "little") + b".",  # takes the memory of 200 million notes in C
        bomb(b"qz}hzK\x01s"),  # a key that is never hashed to its end
        b"\x80\x03" + b"".join(b"cm\nn%x\n0" % name for name in range(20_000)) + b"N.",
        b"\x80\x05\x96" + (2**33).to_bytes(8, "little") + b".",  # a bytearray that is not there
        b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b".",
        b"cm\nn\nq\x00(" + b"K\x01" * 1000 + b"tq\x010" + b"h\x00h\x01R0" * 1000 + b"N.",
    ],
    ids=["memo", "key", "names", "bytearray", "bytes", "arguments"],
)
def test_small_files_that_ask_for_much_get_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pkl").write_bytes(content)
    tracemalloc.start()
    try:
        with contextlib.suppress(ValueError):
            assert read_pickle(tmp_path / "a.pkl") is None
        assert tracemalloc.get_traced_memory()[1] < 40 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("part", ["shape", "type", "content"])
def test_what_has_no_end_is_not_printed(tmp_path: Path, part: str) -> None:
    deep = b"hz"
    shape, kind, content = deep if part == "shape" else b"K\x01\x85", FLOATS, b"C\x04abcd"
    if part == "type":
        kind = b"cnumpy\ndtype\n(" + deep + b"K\x00K\x01tR"
    if part == "content":
        content = b"c_codecs\nencode\n" + deep + b"\x85R"
    array = ARRAY + shape + kind + b"\x89" + content + b"tb"
    (tmp_path / "a.pkl").write_bytes(bomb(b"qz0", array))
    value = read_pickle(tmp_path / "a.pkl")
    with pytest.raises(ValueError, match="an array of ") as caught:
        as_array(value)
    assert len(str(caught.value)) < 200
