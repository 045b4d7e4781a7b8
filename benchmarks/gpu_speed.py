"""Parts of `gpu.py` that measure speed: attention, steps of training, generated tokens."""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_bench import PRECISIONS, Bench
from perceivers.data.batch import TokenBatch
from perceivers.data.config import CopyConfig
from perceivers.generate.decode import decode
from perceivers.generate.lean import lighten
from perceivers.models.build import build
from perceivers.models.cached import CachedPerceiverAR
from perceivers.models.cost import forward_flops
from perceivers.models.perceiver_ar_config import PerceiverARConfig, RotaryPositions
from perceivers.nn.attention import Backend, attend
from perceivers.nn.masks import AttentionMask
from perceivers.train.config import OptimConfig, TrainConfig
from perceivers.train.loop import train_step
from perceivers.train.run import start

MANY_ROWS = {"P1": 32, "P2": 16, "P3": 8, "P4": 4}


def attention(bench: Bench) -> None:
    """Each back end beside plain products in float32, and each kernel for one query, as a generated token has it."""
    plan = [(name, kind, padded) for name in ("P1", "P3") for kind in PRECISIONS for padded in (False, True)]
    plan = [each for each in plan if each[0] in bench.scale.settings]
    for each in plan:
        for backend in ("sdpa", "reference"):
            _backend(bench, backend, *each)
    for setting in bench.scale.settings.values():
        for kind in PRECISIONS:
            with bench.attempt(f"one query, {setting.context}, {kind}", "kernels"):
                _one_query(bench, setting.context, kind)
    if bench.device.type != "cpu":  # where flex has no backward pass; it comes last because it compiles
        for each in plan:
            _backend(bench, "flex", *each)


def _backend(bench: Bench, backend: Backend, name: str, kind: str, padded: bool) -> None:
    """Latents at the end of a context, forward and backward; padding needs a mask."""
    about = (f"{name}, {kind}", f"{backend}, padded" if padded else backend)
    if bench.late(*about):
        return
    scale, setting = bench.scale, bench.scale.settings[name]
    n, m = setting.latents, setting.context
    torch.manual_seed(0)
    options = {"dtype": PRECISIONS[kind], "device": bench.device, "requires_grad": True}
    with bench.attempt(*about):
        inputs = [torch.randn(1, scale.heads, size, scale.dim // scale.heads, **options) for size in (n, m, m)]
        grad = torch.randn_like(inputs[0], dtype=torch.float32)
        real = (torch.arange(m, device=bench.device) >= 5)[None]
        mask = AttentionMask(causal=True, keys=real if padded else None)
        exact = _gradients([x.detach().float().requires_grad_() for x in inputs], grad, mask, "reference")
        ours = _gradients(inputs, grad, mask, backend)
        off = [float((a.float() - b).abs().max() / b.abs().max()) for a, b in zip(ours, exact, strict=True)]
        work = 4 * (n * (m - n) + n * (n + 1) // 2) * scale.dim / 1e12
        forward = bench.seconds(partial(attend, *inputs, mask=mask, backend=backend), most=0.3)
        both = bench.seconds(partial(_gradients, inputs, grad, mask, backend), most=0.4)
        more = dict(zip(("off", "off_dq", "off_dk", "off_dv"), off, strict=True))
        bench.row(*about, work / forward, "TFLOP/s", with_backward=3 * work / both, **more)


def _gradients(inputs: list[Tensor], grad: Tensor, mask: AttentionMask, backend: Backend) -> list[Tensor]:
    out = attend(*inputs, mask=mask, backend=backend)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.to(out.dtype))]


@torch.no_grad()
def _one_query(bench: Bench, context: int, kind: str) -> None:
    """One query reads all places but some of the last, one less each time, as a cache does that fills."""
    heads, channels, dtype = bench.scale.heads, bench.scale.dim // bench.scale.heads, PRECISIONS[kind]
    q = torch.randn(1, heads, 1, channels, dtype=dtype, device=bench.device)
    k, v = (torch.randn(1, heads, context, channels, dtype=dtype, device=bench.device) for _ in range(2))
    calls = {"auto": None, "reference": None}
    if bench.device.type == "cuda":
        calls |= {b.name: b for b in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)}
        calls |= {b.name: b for b in (SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH)}
    for name, kernel in calls.items():
        about = (f"one query, {context}, {kind}", name)
        if bench.late(*about):
            return
        left = iter(range(context, 0, -1))
        backend: Backend = "reference" if name == "reference" else "auto"

        def read(left: Iterator[int] = left, backend: Backend = backend) -> Tensor:
            places = next(left)
            return attend(q, k[:, :, :places], v[:, :, :places], mask=AttentionMask(), backend=backend)

        with bench.attempt(*about), nullcontext() if kernel is None else sdpa_kernel(kernel):
            seconds = bench.seconds(read, most=0.2)
            bench.row(*about, 1e6 * seconds, "microseconds", tb_per_s=2 * k.nbytes / seconds / 1e12)


def steps(bench: Bench) -> None:
    """A step of `perceivers train` on full rows: those that need no compiler first."""
    names = list(bench.scale.settings)
    many = {name: 2 if bench.quick else MANY_ROWS[name] for name in names}
    plan = [(name, rows, "bfloat16", False) for name in names for rows in (1, many[name])]
    plan += [(name, 1, "float32", False) for name in names]
    plan += [(name, 1, "bfloat16", True) for name in sorted(names, key=lambda n: n in ("P2", "P4"))]
    plan += [(name, many[name], "bfloat16", True) for name in names if name in ("P1", "P3")]
    for name, rows, precision, compiled in plan:
        about = (f"{name}, {rows} rows, {precision}", "compiled" if compiled else "eager")
        if (compiled and bench.quick) or bench.late(*about):
            continue
        with bench.attempt(*about), TemporaryDirectory() as out:
            _step(bench, about, name, rows, precision, compiled, Path(out))
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def _step(
    bench: Bench, about: tuple[str, str], name: str, rows: int, precision: str, compiled: bool, out: Path
) -> None:
    setting = bench.scale.settings[name]
    torch.compiler.reset()
    config = TrainConfig(
        model=_config(bench, setting.context, setting.latents),
        data=CopyConfig(length=setting.context, batch_size=rows),
        optim=OptimConfig(optimizer="adamw", lr=1e-4, warmup_steps=0),
        precision=precision,  # pyright: ignore[reportArgumentType]
        compile=compiled,
        device=str(bench.device),
    )
    run = start(config, out, store=None, init=None, resume=False, tensorboard=False)
    length = setting.context + 1
    batch = TokenBatch(
        torch.randint(3, config.model.vocab_size, (rows, length)),  # pyright: ignore
        torch.arange(1, length + 1).expand(rows, -1)[..., None].contiguous(),
        torch.full((rows,), length),
    )
    batch = batch.pin_memory() if bench.device.type == "cuda" else batch
    begun = time.perf_counter()
    train_step(run, iter([batch]))
    first = time.perf_counter() - begun
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = bench.seconds(lambda: train_step(run, iter([batch])))
    peak = torch.cuda.max_memory_allocated() if bench.device.type == "cuda" else 0
    work = 3 * forward_flops(config.model, training=True) * rows / seconds / 1e12
    limit = bench.earlier("bfloat16 product")
    more = {"ms": 1000 * seconds, "read_per_s": rows * setting.context / seconds, "tflops": work}
    more |= {"share_of_product": work / limit if limit else None, "peak_gb": peak / 1e9, "first_s": first}
    bench.row(*about, rows * setting.latents / seconds, "targets/s", **more)
    bench.busy(*about, lambda: train_step(run, iter([batch])))


def _config(bench: Bench, context: int, latents: int) -> PerceiverARConfig:
    scale = bench.scale
    size = {"dim": scale.dim, "depth": scale.depth, "heads": scale.heads, "cross_heads": scale.heads, "dropout": 0.0}
    positions = RotaryPositions(channel_share=0.5)
    return PerceiverARConfig(
        vocab_size=259, max_seq_len=context, num_latents=latents, zero_logits=False, positions=positions, **size
    )


def tokens(bench: Bench) -> None:
    """A generated token after a full context, from kept keys and values."""
    settings = [s for name, s in bench.scale.settings.items() if name != "P2"]
    plan = [(s, kind, compiled) for compiled in (False, True) for kind in PRECISIONS for s in settings]
    for setting, kind, compiled in plan:
        about = (f"{setting.context:,}, {kind}", "compiled" if compiled else "eager")
        if (compiled and bench.quick) or bench.late(*about):
            continue
        with bench.attempt(*about):
            torch.manual_seed(0)
            model = build(_config(bench, setting.context, setting.latents)).eval()
            _token(bench, about, lighten(model, kind).to(bench.device), compiled=compiled)


def _token(bench: Bench, about: tuple[str, str], model: nn.Module, *, compiled: bool) -> None:
    torch.compiler.reset()
    config: PerceiverARConfig = model.config  # pyright: ignore[reportAssignmentType]
    most = config.num_latents // 2  # until latents are rebuilt
    prompt = torch.randint(3, 259, (config.max_seq_len - most,)).tolist()
    for samples in (1,) if compiled else (1, 4):
        cached = CachedPerceiverAR(model, compiled=compiled)  # pyright: ignore[reportArgumentType]
        cached.start([prompt], max_tokens=most + 1, samples=samples)
        token = torch.full((samples,), 3, device=bench.device)
        count = most - 4
        for _ in range(3):
            cached.feed(token)
        bench.wait()
        begun = time.perf_counter()
        for _ in range(count):
            cached.feed(token)
        bench.wait()
        seconds = (time.perf_counter() - begun) / count
        moved = sum(p.nbytes for p in model.parameters()) + cached.nbytes
        speed = bench.earlier("copy")
        bound = 1e12 * speed / moved if speed else None
        more = {"bound": bound, "share_of_bound": 1 / seconds / bound if bound else None, "ms": 1000 * seconds}
        bench.row(about[0], f"{about[1]}, {samples} samples", samples / seconds, "tokens/s", mb=moved / 1e6, **more)
        bench.busy(about[0], f"{about[1]}, {samples} samples", partial(cached.feed, token))
    if not compiled:
        drawn, begun = 0, 0.0
        for _ in decode(model, [prompt], max_tokens=most, stop_at_eos=False):
            drawn += 1
            begun = time.perf_counter() if drawn == 3 else begun
        bench.row(about[0], "drawn", (drawn - 3) / (time.perf_counter() - begun), "tokens/s")
