"""Compiled models: when they are made, and what if not; real ones in processes of their own.

Annotations that are checked at run time can't be compiled.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.callback import CallbackTrigger, callback_handler

from perceivers.data.tokens import TokenStore
from perceivers.models.ecp_config import ECPConfig
from perceivers.presets import PRESETS, preset
from perceivers.train import clock
from perceivers.train.compiled import compile_model, is_compiled, pays
from perceivers.train.config import TrainConfig
from perceivers.train.errors import TrainingError
from perceivers.train.loop import train
from perceivers.train.metrics import read_metrics

Tiny = Callable[..., TrainConfig]


def test_it_is_off_where_it_does_not_pay(tiny: Tiny) -> None:
    for name in PRESETS:
        assert not pays(replace(preset(name), max_minutes=1.0)), name
    assert pays(tiny(compile=True, max_minutes=1.0))
    assert not pays(tiny(max_minutes=119.0))
    assert not pays(tiny())
    assert pays(tiny(max_minutes=120.0))
    assert not pays(tiny(compile=False, max_minutes=1e4))
    assert not pays(tiny(model=ECPConfig(max_seq_len=16_384, segment_len=256), max_minutes=1e4))


def test_no_compiler_for_cpp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CXX", "g++-99")
    monkeypatch.setattr("shutil.which", lambda name: None)
    model = nn.Linear(2, 3)
    compile_model(model, torch.device("cpu"))
    assert not is_compiled(model)
    said = "perceivers: no C++ compiler is here (g++-99, clang++, cl): training goes on without --compile\n"
    assert capsys.readouterr().err == said
    compiled_as(lambda model, x: x, monkeypatch)
    monkeypatch.setattr("shutil.which", lambda name: "/bin/clang++" if name == "clang++" else None)
    compile_model(model, torch.device("cpu"))
    assert is_compiled(model)


def compiled_as(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `call(model, ...)` stand for what is compiled."""

    def compile_(model: nn.Module) -> None:
        model._compiled_call_impl = lambda *args, **kwargs: call(model, *args, **kwargs)  # pyright: ignore

    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(nn.Module, "compile", compile_)


@pytest.mark.parametrize(
    "failure",
    [PermissionError(13, "Permission denied", "/cache/g++.lock"), RuntimeError("file too short\n\n...")],
)
def test_a_broken_cache_is_named_and_training_goes_on(
    tiny: Tiny,
    store: TokenStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failure: Exception,
) -> None:
    """Also where the forward pass worked, and some gradients are there already."""
    train(tiny(max_steps=3), tmp_path / "plain", store=store, progress=False)
    calls = []

    def fail_backward(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        out = model._call_impl(*args, **kwargs)
        calls.append(out)

        def fail(_: Any) -> None:
            raise failure

        out.register_hook(fail)
        return out

    compiled_as(fail_backward, monkeypatch)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/cache")
    train(tiny(max_steps=3, compile=True), tmp_path / "run", store=store, progress=False)
    said = capsys.readouterr().err.splitlines()
    assert len(calls) == len(said) == 1
    assert said[0].startswith(f"perceivers: the model could not be compiled ({type(failure).__name__}: ")
    assert "training goes on without; if it happens again, remove /cache, or add --compile False" in said[0]
    for name in ("model.safetensors", "checkpoints/step-00000003/optimizer.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_a_cache_that_is_no_directory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(model: nn.Module) -> None:
        raise FileExistsError(17, "File exists", "/cache")

    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(nn.Module, "compile", fail)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/cache")
    model = nn.Linear(2, 3)
    compile_model(model, torch.device("cpu"))
    assert not is_compiled(model)
    assert "could not be compiled (FileExistsError: [Errno 17] File exists: '/cache')" in capsys.readouterr().err


def test_an_error_that_is_not_the_compilers_comes_again(
    tiny: Tiny, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        raise MemoryError

    compiled_as(fail, monkeypatch)
    monkeypatch.setattr("perceivers.models.perceiver_ar.PerceiverAR.forward", fail)
    with pytest.raises(TrainingError, match="out of memory at step 0"):
        train(tiny(compile=True), tmp_path / "run", store=store, progress=False)


def test_compiling_is_announced_and_takes_no_training_time(
    tiny: Tiny,
    store: TokenStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    now, registered = [0], list(callback_handler.start_callbacks)

    def slow(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with callback_handler.install_callbacks(CallbackTrigger.DYNAMO, "0/0"):
            now[0] += 300 * 10**9
        return model._call_impl(*args, **kwargs)

    def read() -> int:
        now[0] += 10**9
        return now[0]

    compiled_as(slow, monkeypatch)
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic_ns=read))
    run = train(tiny(max_steps=100, max_minutes=0.2, compile=True), tmp_path / "run", store=store)
    assert run.state.step == 6  # a second before, and one after what does not count
    assert read_metrics(tmp_path / "run")[-1]["minutes"] == pytest.approx(0.2, abs=1e-5)
    said = "perceivers: compiling the model, which takes minutes and does not count as training time"
    assert capsys.readouterr().err.count(said) == 1
    assert callback_handler.start_callbacks == registered


ONE_GRAPH = """
import torch
from perceivers.models.build import build
from perceivers.models.perceiver_ar_config import PerceiverARConfig

size = {"dim": 16, "depth": 2, "heads": 2, "cross_heads": 2, "dropout": 0.1}
model = build(PerceiverARConfig(vocab_size=13, max_seq_len=43, num_latents=11, **size)).train()
tokens, positions = torch.randint(13, (2, 43)), torch.arange(1, 44).expand(2, -1)[..., None]
for bfloat16 in (False, True):
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        torch.compile(model, fullgraph=True)(tokens, positions=positions).float().square().sum().backward()
assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
"""

AS_WITHOUT = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from perceivers.hub import read_model
from perceivers.presets import preset
from perceivers.train.loop import train
from perceivers.train.metrics import read_metrics

config = preset("copy_tiny")
config = replace(config, max_steps=3, log_every=1, precision="float32", device="cpu")
graphs, numbers, names = torch._dynamo.utils.counters["stats"], [], []


def look(model, step):
    before = graphs["unique_graphs"]
    model(torch.zeros(1, 5, dtype=torch.long), positions=torch.arange(5)[None, :, None], num_latents=2)
    assert graphs["unique_graphs"] == before  # evaluation, of another shape, is not compiled
    return {}


for compiled in (False, True):
    out = Path(sys.argv[1]) / str(compiled)
    train(replace(config, compile=compiled), out, evaluate=look, progress=False)
    numbers.append([row["train/nats"] for row in read_metrics(out)])
    names.append(list(read_model(out)[0].state_dict()))
assert graphs["unique_graphs"] > 0
assert names[0] == names[1]
assert all(abs(a - b) < 1e-4 * a for a, b in zip(*numbers, strict=True)), numbers
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("script", [ONE_GRAPH, AS_WITHOUT], ids=["one graph", "as without"])
def test_compiled(script: str, tmp_path: Path) -> None:
    """Of full rows in training: one graph in both precisions; steps, files and evaluation as without."""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
