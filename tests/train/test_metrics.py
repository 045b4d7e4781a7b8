import builtins
import math
from pathlib import Path
from typing import Any

import pytest

from perceivers.train.metrics import MetricsLog, read_metrics


def test_numbers_come_back(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write(1, {"a": 0.1, "b": 7})
    log.write(1, {"c": math.inf, "d": math.nan})
    log.write(3, {})
    log.close()
    assert read_metrics(tmp_path) == [{"step": 1, "a": 0.1, "b": 7}, {"step": 1, "c": None, "d": None}, {"step": 3}]


def test_later_rows_go_on_resume(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in (1, 3, 5, 7):
        log.write(step, {"a": 0.5})
    log = MetricsLog(tmp_path, step=5)
    log.write(6, {"a": 1.0})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 3, 5, 6]


def test_a_new_run_starts_empty(tmp_path: Path) -> None:
    MetricsLog(tmp_path).write(1, {"a": 0.5})
    MetricsLog(tmp_path)
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("cut", range(1, len('{"step": 2, "a": 0.5}\n')))
def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path, cut: int) -> None:
    log = MetricsLog(tmp_path)
    log.write(1, {"a": 0.5})
    log.write(2, {"a": 0.5})
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    kept = 1 + (cut == 1)  # without its line feed a row is still whole
    assert len(read_metrics(tmp_path)) == kept
    MetricsLog(tmp_path, step=2).write(3, {"a": 0.25})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3] if kept == 2 else [1, 3]


def test_tensorboard_has_every_number_once(tmp_path: Path) -> None:
    for first in (0, 2):  # killed after three steps, resumed at two
        log = MetricsLog(tmp_path, step=first, tensorboard=True)
        for step in range(first + 1, first + 4):
            log.write(step, {"train/nats": step / 8})
        log.close()
    read = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = read.EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/nats")
    assert [(event.step, event.value) for event in events] == [(step, step / 8) for step in (1, 2, 3, 4, 5)]


def test_tensorboard_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if "tensorboard" in name:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'perceivers\[tracking\]'"):
        MetricsLog(tmp_path, tensorboard=True)


@pytest.mark.parametrize(
    "damage", [b"\0\0\0\n", b"\xff\xfe\n", b"[1]\n", b"7\n", b'{"loss": 3}\n', b'{"step": "7"}\n', b"[" * 9999]
)
def test_a_damaged_record_does_not_stop_a_run(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 3}\n' + damage + b'\n{"step": 5}\n{"step": 7}\n')
    MetricsLog(tmp_path, step=5).close()
    assert read_metrics(tmp_path) == [{"step": 3}, {"step": 5}]
