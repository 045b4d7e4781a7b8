import io
import json
import math
import sys

import pytest

from perceivers.cli.console import as_json, big, counted, forgiving_streams, note, table, warn


def test_table() -> None:
    rows = [("a", "shape", "1"), ("bcd", "", "1,000")]
    assert table(rows, right=(2,)) == "a    shape      1\nbcd         1,000"


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (2_500_000, "2.5 MB"), (7e9, "7 GB"), (3e15, "3 PB")],
)
def test_big(number: float, shown: str) -> None:
    assert big(number, "B") == shown


def test_numbers_that_json_lacks_are_null() -> None:
    result = {"a": math.inf, "b": [math.nan, -math.inf, 1.5], "c": {"d": (math.nan, "inf", 3, True, None)}}
    expected = {"a": None, "b": [None, None, 1.5], "c": {"d": [None, "inf", 3, True, None]}}
    assert json.loads(as_json(result), parse_constant=pytest.fail) == expected


def test_counted() -> None:
    assert [counted(n, "byte") for n in (0, 1, 152_524)] == ["0 bytes", "1 byte", "152,524 bytes"]


def test_a_stream_of_another_encoding_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_out, encoding="cp1252"))
    forgiving_streams()
    print("é → \udcff", flush=True)
    assert bytes_out.getvalue() == "é ? ?\n".encode("cp1252")


def test_messages_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    warn("look out")
    note("by the way")
    assert capsys.readouterr() == ("", "perceivers: warning: look out\nperceivers: by the way\n")
