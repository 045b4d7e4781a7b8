"""What the parts of `gpu.py` share: rows that are shown and kept as they are found, time limits, and a clock."""

import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import training

PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass
class Bench:
    """One part while it runs: its rows go to the screen and to a file at once."""

    part: str
    quick: bool
    device: torch.device
    found: Path
    """Rows of all parts, a line of JSON each."""
    deadline: float

    def row(self, setting: str, what: str, value: float, unit: str, **more: Any) -> None:
        """A number that was found."""
        self._write({"setting": setting, "what": what, "value": value, "unit": unit, **more})

    @contextmanager
    def attempt(self, setting: str, what: str) -> Iterator[None]:
        """What fails within becomes a row, and the part goes on."""
        try:
            yield
        except Exception as error:
            last = traceback.format_exception(error)[-1].strip()[:600]
            where = [f"{Path(f.filename).name}:{f.lineno} {f.line}" for f in traceback.extract_tb(error.__traceback__)]
            self._write({"setting": setting, "what": what, "error": last, "where": where[-6:]})

    def late(self, setting: str, what: str) -> bool:
        """Whether the part's time is over; then the row says so."""
        if time.monotonic() < self.deadline:
            return False
        self._write({"setting": setting, "what": what, "error": "left out: the part's time is over"})
        return True

    def earlier(self, what: str) -> float | None:
        """What the part `machine` measured."""
        rows = [json.loads(line) for line in self.found.read_text().splitlines()]
        return next((r.get("value") for r in rows if r["part"] == "machine" and r["what"] == what), None)

    def _write(self, row: dict[str, Any]) -> None:
        row = {"part": self.part, **row}
        with self.found.open("a") as file:
            file.write(json.dumps(row) + "\n")
        number = f"{row['value']:.5g} {row['unit']}" if "value" in row else f"FAILED {row['error']}"
        more = {k: v for k, v in row.items() if k not in ("part", "setting", "what", "value", "unit", "error", "cases")}
        print(f"| {self.part} | {row['setting']} | {row['what']} | {number} | {more or ''}", flush=True)

    def seconds(self, call: Callable[[], object], *, most: float = 1.0, warm: int = 2) -> float:
        """Seconds of a call, the mean of many that follow each other for at most `most` seconds or 50 calls."""
        for _ in range(warm):
            call()
        self.wait()
        begun, count = time.perf_counter(), 0
        while count < 3 or (count < 50 and time.perf_counter() - begun < most):
            call()
            count += 1
            if count % 5 == 0:
                self.wait()
        self.wait()
        return (time.perf_counter() - begun) / count

    def busy(self, setting: str, what: str, call: Callable[[], object]) -> None:
        """How long the device works for one call, and at what; the rest of the time it waits for Python."""
        if self.device.type != "cuda":
            return
        with self.attempt(setting, f"{what}, busy"):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                call()
                self.wait()
            found = [kernel for kernel in profile.key_averages() if kernel.self_device_time_total > 0]
            found.sort(key=lambda kernel: -kernel.self_device_time_total)
            top = {kernel.key[:60]: round(kernel.self_device_time_total / 1000, 3) for kernel in found[:6]}
            total = sum(kernel.self_device_time_total for kernel in found) / 1000
            self.row(setting, f"{what}, busy", total, "ms", kernels=sum(kernel.count for kernel in found), top=top)

    def wait(self) -> None:
        """Until the device has done all that was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @property
    def scale(self) -> training.Scale:
        """Sizes of P1 to P4."""
        return training.QUICK if self.quick else training.FULL
