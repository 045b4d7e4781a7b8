import pytest

from perceivers.cli.console import big, note, table, warn


def test_table() -> None:
    rows = [("a", "shape", "1"), ("bcd", "", "1,000")]
    assert table(rows, right=(2,)) == "a    shape      1\nbcd         1,000"


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (2_500_000, "2.5 MB"), (7e9, "7 GB"), (3e15, "3 PB")],
)
def test_big(number: float, shown: str) -> None:
    assert big(number, "B") == shown


def test_messages_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    warn("look out")
    note("by the way")
    assert capsys.readouterr() == ("", "perceivers: warning: look out\nperceivers: by the way\n")
