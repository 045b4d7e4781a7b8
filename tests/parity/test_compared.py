"""What an adapter overlooks is found."""

import pytest

from .compared import Consumed


def test_what_nobody_reads_fails() -> None:
    entries = Consumed({"in/a": 1, "in/b": 2, "out/c": 3})
    with pytest.raises(AssertionError, match=r"\['in/b'\], which its adapter did not read"), entries.whole("in/"):
        assert ("in/b" in entries, entries["in/a"]) == (True, 1)


def test_all_is_read_by_value_or_left_out_with_a_reason() -> None:
    entries = Consumed({"in/a": 1, "in/b": 2, "out/c": 3, "out/d": 4})
    with entries.whole():
        assert entries.below("in/") == {"a": 1, "b": 2}
        assert entries.get("out/c") == 3
        entries.skip("out/d", because="the official code computes it and never uses it")


def test_each_test_reads_anew() -> None:
    entries = Consumed({"in/a": 1})
    with entries.whole():
        assert entries["in/a"] == 1
    with pytest.raises(AssertionError, match="in/a"), entries.whole():
        pass
