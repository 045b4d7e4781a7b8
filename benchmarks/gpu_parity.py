"""The part of `gpu.py` that compares with the numbers of official code (`tests/parity`), on any device."""

import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gpu_bench import Bench

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # for its folder parity

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


@dataclass(frozen=True)
class Check:
    """A case, and what compares all of it in a precision."""

    family: str
    case: str
    run: Callable[..., None]
    drifts: bool = True
    """Whether it means something in bfloat16."""


def checks() -> Iterator[Check]:
    """Every case that has numbers."""
    from parity import ecp_cases, hip_cases, io_cases, test_official_ar  # pyright: ignore[reportMissingImports]

    for case in test_official_ar.CASES:
        drifts = case.kind in ("forward", "forward_variants", "loss_grad")
        yield Check("Perceiver AR", case.path.stem, partial(test_official_ar.test_case, case, backend="sdpa"), drifts)
    for case in io_cases.cases():
        if case.info["family"] != "fullsize_shapes" and case.kind != "bytes_tokenizer":
            yield Check("Perceiver IO", case.path.stem, partial(io_cases.check, case))
    for case in hip_cases.cases():
        if case.info["family"] != "fullsize_shapes":
            yield Check("HiP", case.path.stem, partial(hip_cases.check, case, backend="sdpa"))
    for case in ecp_cases.cases():
        yield Check("ECP", case.path.stem, partial(ecp_cases.check, case, backend="sdpa"))


def parity(bench: Bench) -> None:
    """Official numbers: the largest error as a share of the case's tolerance, or in bfloat16 of the largest number."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    every = list(checks())
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        for family in dict.fromkeys(check.family for check in every):
            if bench.late(family, kind):
                continue
            own = [check for check in every if check.family == family and (dtype == torch.float32 or check.drifts)]
            results = {}
            for check in own[:: 9 if bench.quick else 1]:
                if time.monotonic() < bench.deadline:
                    results[check.case] = compared(check, dtype, bench.device)
            worst = max(results, key=lambda name: results[name]["share"])
            more = {"worst": worst, "ran": len(results), "of": len(own), "cases": results}
            more |= {"compared": sum(found["compared"] for found in results.values())}
            more |= {"above": [name for name, found in results.items() if found["share"] > 1]}
            more |= {"failed": {name: found["error"] for name, found in results.items() if found["error"]}}
            bench.row(family, kind, results[worst]["share"], UNITS[dtype], **more)


def compared(check: Check, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """How far off a case is, over how many comparisons, and what stopped it."""
    recorder, error = Recorder(), None
    with cases_on(device, recorder):
        try:
            check.run(dtype=dtype)
        except KeyboardInterrupt:
            raise
        except BaseException as failure:  # what pytest raises is no Exception
            last = traceback.extract_tb(failure.__traceback__)[-1]
            error = f"{type(failure).__name__}: {failure} ({Path(last.filename).name}:{last.lineno})"[:400]
    share = recorder.of_allowed if dtype == torch.float32 else recorder.of_largest
    return {"share": share, "compared": recorder.compared, "error": error}
