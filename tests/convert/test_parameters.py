import numpy as np
import pytest
import torch

from perceivers.convert.parameters import check_fit, joined, linear, misnamed, nearest, numbered

SHAPES = {"to_kv.weight": torch.Size([4, 3]), "to_kv.bias": torch.Size([4])}
SOURCES = linear("to_kv", "key", "value")


def params() -> dict[str, np.ndarray]:
    return {
        "key/w": np.arange(6.0).reshape(3, 2),
        "value/w": np.arange(6.0, 12).reshape(3, 2),
        "key/b": np.array([1.0, 2]),
        "value/b": np.array([3.0, 4]),
    }


def test_two_official_layers_are_one_of_ours() -> None:
    state = joined(params(), SOURCES, SHAPES)
    assert state["to_kv.weight"].tolist() == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]
    assert state["to_kv.bias"].tolist() == [1, 2, 3, 4]


def test_what_does_not_fit_is_listed() -> None:
    wrong = params() | {"key/w": np.zeros((2, 3))}
    wrong["valeu/b"] = wrong.pop("value/b")
    with pytest.raises(ValueError, match="weights do not fit the config") as error:
        joined(wrong, SOURCES, SHAPES)
    for part in (
        "key/w has shape [2, 3], the config asks for [3, 2]",
        "missing value/b (nearest: valeu/b)",
        "unknown valeu/b (nearest: value/b)",
    ):
        assert part in str(error.value)


def test_long_lists_are_cut() -> None:
    with pytest.raises(ValueError, match=r"missing .*; and 3 more$"):
        check_fit({}, {f"a{i}": (1,) for i in range(9)})


def test_names() -> None:
    assert misnamed(["a"], ["a"]) == []
    assert nearest("offset", ["scale", "ofset"]) == " (nearest: ofset)"
    assert nearest("offset", ["scale"]) == ""
    assert (numbered("linear", 0), numbered("linear", 2)) == ("linear", "linear_2")
