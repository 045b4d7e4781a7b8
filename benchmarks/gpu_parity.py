"""The part of `gpu.py` that compares with the numbers of official code (`tests/parity`), on any device."""

import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gpu_bench import Bench

sys.path.insert(0, str(Path(__file__).parents[1]))  # for tests.parity

UNITS = {torch.float32: "of what is allowed", torch.bfloat16: "of the largest number"}


class Recorder:
    """Stands in for `torch.testing.assert_close`, and keeps how far off numbers are in place of raising."""

    def __init__(self) -> None:
        self.of_allowed = self.of_largest = 0.0
        self.compared = 0

    def __call__(self, actual: Any, expected: Any, *, rtol: Any = None, atol: Any = None, **_: Any) -> None:
        """Both may be tensors or numbers."""
        kinds = torch.as_tensor(actual), torch.as_tensor(expected)
        rtol, atol = torch.testing._comparison.get_tolerances(*kinds, rtol=rtol, atol=atol)
        ours, theirs = (x.detach().cpu().double() for x in kinds)
        if ours.shape != theirs.shape:
            raise AssertionError(f"shapes {list(ours.shape)} and {list(theirs.shape)}")
        self.compared += 1
        if not ours.numel():
            return
        off, allowed = (ours - theirs).abs(), atol + rtol * theirs.abs()
        self.of_allowed = max(self.of_allowed, float((off / allowed.clamp(min=1e-300)).max()))
        self.of_largest = max(self.of_largest, float(off.max() / theirs.abs().max().clamp(min=1e-12)))


@contextmanager
def cases_on(device: torch.device, recorder: Recorder) -> Iterator[None]:
    """Tests of parity make and compare everything on `device` here."""
    from_numpy, assert_close = torch.from_numpy, torch.testing.assert_close
    torch.set_default_device(device)
    torch.from_numpy = lambda array: from_numpy(array).to(device)
    torch.testing.assert_close = recorder
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.from_numpy, torch.testing.assert_close = from_numpy, assert_close


def suites() -> Iterator[tuple[str, str, Callable[[torch.dtype], None]]]:
    """Family, case, and what compares it."""
    from tests.parity import ecp_cases, hip_cases, io_cases, test_official_ar

    for case in test_official_ar.CASES:
        yield "Perceiver AR", case.path.stem, lambda d, c=case: test_official_ar.test_case(c, d, "sdpa")
    for case in io_cases.cases():
        if case.info["family"] != "fullsize_shapes" and case.kind != "bytes_tokenizer":
            yield "Perceiver IO", case.path.stem, lambda d, c=case: io_cases.check(c, d)
    for case in hip_cases.cases():
        if case.info["family"] != "fullsize_shapes":
            yield "HiP", case.path.stem, lambda d, c=case: hip_cases.check(c, d, "sdpa")
    for case in ecp_cases.cases():
        yield "ECP", case.path.stem, lambda d, c=case: ecp_cases.check(c, d, "sdpa")


def parity(bench: Bench) -> None:
    """Official numbers: the largest error as a share of the case's tolerance, or in bfloat16 of the largest number."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    every = list(suites())
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        for family in dict.fromkeys(name for name, _, _ in every):
            if bench.late(family, kind):
                continue
            results: dict[str, dict[str, Any]] = {}
            own = [(case, check) for name, case, check in every if name == family]
            for case, check in own[:: 9 if bench.quick else 1]:
                if time.monotonic() > bench.deadline:
                    break
                recorder = Recorder()
                error = None
                with cases_on(bench.device, recorder):
                    try:
                        check(dtype)
                    except (Exception, SystemExit) as failure:
                        error = "".join(traceback.format_exception(failure)[-2:]).strip()[-500:]
                    except BaseException as failure:  # of pytest
                        if isinstance(failure, KeyboardInterrupt):
                            raise
                        error = f"{type(failure).__name__}: {failure}"[:500]
                share = recorder.of_allowed if dtype == torch.float32 else recorder.of_largest
                results[case] = {"share": share, "compared": recorder.compared, "error": error}
            worst = max(results, key=lambda name: results[name]["share"])
            failed = {name: found["error"] for name, found in results.items() if found["error"]}
            bench.row(
                family, kind, results[worst]["share"], UNITS[dtype], worst=worst, cases=results,
                ran=len(results), of=len(own), compared=sum(r["compared"] for r in results.values()),
                above=[n for n, r in results.items() if r["share"] > 1], failed=failed,
            )  # fmt: skip
