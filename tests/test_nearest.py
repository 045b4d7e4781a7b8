from pathlib import Path

import pytest

from perceivers.nearest import no_such, suggestion


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for run in ("runs/music", "runs/words", "demo/run"):
        Path(run).mkdir(parents=True)
        Path(run, "config.json").write_text("{}")
    Path("runs/empty").mkdir()
    Path("store").mkdir()
    Path("store/header.json").write_text("{}")


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("runs/musicc", "runs/music"),
        ("run/music", "runs/music"),
        ("music", "runs/music"),
        ("runs/deeper/words", "runs/words"),
        ("demo", "demo/run"),
        ("./runs/wrods", "runs/words"),
    ],
)
def test_the_nearest_run_is_suggested(path: str, meant: str) -> None:
    assert no_such(path) == f"{path} does not exist; did you mean {meant}?"


def test_an_absolute_path(tmp_path: Path) -> None:
    assert suggestion(tmp_path / "runs/musicc") == f"; did you mean {tmp_path}/runs/music?"


def test_few_that_are_there_are_named() -> None:
    assert suggestion("xyzzy") == "; there are demo/run, runs/music, runs/words"
    for number in range(4):
        Path(f"runs/{number}").mkdir()
        Path(f"runs/{number}/config.json").write_text("{}")
    assert suggestion("xyzzy") == ""


def test_stores_are_known_by_their_own_file() -> None:
    assert suggestion("stroe", holds="header.json") == "; did you mean store?"


def test_nothing_near() -> None:
    assert no_such(Path("runs/empty/a")) == "runs/empty/a does not exist"
