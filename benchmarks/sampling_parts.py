"""The parts of `sampling.py` that time this package alone."""

import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from perceivers.generate.decode import FullForward
from perceivers.generate.lean import lighten
from perceivers.models.cached import CHUNK, CachedPerceiverAR
from perceivers.models.cost import forward_flops
from perceivers.models.perceiver_ar import PerceiverAR
from sampling_timing import (
    Row,
    Scale,
    Span,
    Steady,
    Task,
    fresh_model,
    in_turns,
    memory_bandwidth,
    random_prompts,
    timed,
)


def speed(scale: Scale) -> Iterator[Row]:
    for context in scale.contexts:
        for latents in scale.latents:
            model = fresh_model(scale, context, latents)
            steady, uncached = Steady(model), FullForward(model)
            compiled = _compiled(model) if scale.compiled and context == scale.contexts[1] else None
            uncached.start(random_prompts(1, context), max_tokens=1)
            token = torch.tensor([3])
            tasks = {
                "step": steady.step(scale.burst),
                "refill": steady.refill,
                "uncached": timed(lambda uncached=uncached, token=token: uncached.feed(token)),
            }
            if compiled is not None:
                tasks["compiled"] = compiled.step(scale.burst)
            seconds = in_turns(tasks, scale.rounds)
            cached, full = steady.per_second(seconds["step"], seconds["refill"]), 1 / seconds["uncached"]
            about = ("speed", f"M {context:,}, N {latents:,}")
            yield Row.of(*about, "a step", 1000 * seconds["step"], "ms")
            yield Row.of(*about, f"the token that rebuilds {steady.run.refill}", 1000 * seconds["refill"], "ms")
            yield Row.of(*about, "cached", cached, "tokens/s")
            yield Row.of(*about, "uncached", full, "tokens/s")
            yield Row.of(*about, "cached / uncached", cached / full, "x")
            if compiled is not None:
                faster = steady.per_second(seconds["compiled"], seconds["refill"])
                yield Row.of(*about, "cached and compiled", faster, "tokens/s")
                yield Row.of(*about, "cached and compiled / uncached", faster / full, "x")


def bound(scale: Scale) -> Iterator[Row]:
    read = memory_bandwidth(scale)
    for context in scale.contexts[1:]:
        for dtype in (torch.float32, torch.bfloat16):
            model = fresh_model(scale, context, scale.latents[0], dtype)
            runs = {"eager": Steady(model)}
            if scale.compiled and (compiled := _compiled(model)) is not None:
                runs["compiled"] = compiled
            tasks: dict[str, Task] = {name: steady.step(scale.burst) for name, steady in runs.items()}
            seconds = in_turns(tasks | {"sum": read}, scale.rounds)
            about = ("bound", f"M {context:,}, N {scale.latents[0]:,}, {str(dtype).removeprefix('torch.')}")
            touched = bytes_touched(runs["eager"])
            least = seconds["sum"] * touched / scale.summed_bytes
            yield Row.of(*about, "memory bandwidth", scale.summed_bytes / seconds["sum"] / 1e9, "GB/s")
            yield Row.of(*about, "weights, keys and values of a step", touched / 1e6, "MB")
            yield Row.of(*about, "bound: reading them once", 1000 * least, "ms")
            for name in runs:
                yield Row.of(*about, f"{name} step", 1000 * seconds[name], "ms")
                yield Row.of(*about, f"{name} step / bound", seconds[name] / least, "x")


def _compiled(model: PerceiverAR) -> Steady | None:
    torch.compiler.reset()
    try:
        return Steady(model, compiled=True)
    except RuntimeError as error:  # no compiler for C++, for example
        print(f"  compiled steps left out: {str(error).splitlines()[0]}", file=sys.stderr)
        return None


def bytes_touched(steady: Steady) -> int:
    """What a token halfway between two rebuilds reads: weights but the embedding's table, keys and values."""
    steady.back_to(steady.middle)
    run, model = steady.run, steady.run.model
    weights = sum(weight.nbytes for weight in model.parameters()) - model.token_embedding.weight.nbytes
    context = sum(cache.nbytes // cache.keys.shape[2] for cache in run.context.values())
    latents = sum(cache.nbytes // cache.keys.shape[2] for cache in run.layers)
    return weights + context * run.end + latents * run.latents


def weights(scale: Scale) -> Iterator[Row]:
    context, latents = scale.contexts[1], scale.latents[0]
    runs: dict[str, Steady] = {}
    for kind in ("float32", "bfloat16", "int8"):
        model = fresh_model(scale, context, latents)
        lighten(model, kind)
        runs[kind] = Steady(model)
        if scale.compiled and (compiled := _compiled(model)) is not None:
            runs[f"{kind}, compiled"] = compiled
    seconds = in_turns({name: run.step(scale.burst) for name, run in runs.items()}, scale.rounds)
    about = ("weights", f"M {context:,}, N {latents:,}")
    for name in runs:
        yield Row.of(*about, f"{name}: a step", 1000 * seconds[name], "ms")
        yield Row.of(*about, f"float32 step / {name}", seconds["float32"] / seconds[name], "x")


def growth(scale: Scale) -> Iterator[Row]:
    latents = scale.latents[0]
    runs = {context: Steady(fresh_model(scale, context, latents)) for context in scale.growth}
    tasks: dict[str, Task] = {"sum": memory_bandwidth(scale)}
    for context, steady in runs.items():
        tasks |= {f"{context} step": steady.step(scale.burst), f"{context} refill": steady.refill}
    seconds = in_turns(tasks, scale.rounds)
    shortest = scale.growth[0]
    touched = {context: bytes_touched(steady) for context, steady in runs.items()}
    for context, steady in runs.items():
        about = ("growth", f"M {context:,}, N {latents:,}")
        step = seconds[f"{context} step"]
        more = (touched[context] - touched[shortest]) * seconds["sum"] / scale.summed_bytes
        line = seconds[f"{shortest} step"] + more
        whole = 1 / steady.per_second(step, seconds[f"{context} refill"])
        yield Row.of(*about, "a step", 1000 * step, "ms")
        if context > shortest:
            yield Row.of(*about, f"a step at {shortest:,}, and reading the rest of the context", 1000 * line, "ms")
            yield Row.of(*about, "step / that", step / line, "x")
        yield Row.of(*about, "a token, rebuilds included", 1000 * whole, "ms")


def refill(scale: Scale) -> Iterator[Row]:
    context = scale.contexts[-1]
    for latents in scale.latents:
        model = fresh_model(scale, context, latents)
        steady = Steady(model)
        rebuild = steady.run.refill
        spans = _spans(model)
        recomputed = [0.0]
        tasks: dict[str, Task] = {"ours": steady.refill}
        tasks |= {name: lambda span=span: span.seconds for name, span in spans.items()}
        tasks["official"] = lambda steady=steady, recomputed=recomputed: _official_refill(steady, recomputed)
        tasks["recomputed"] = lambda recomputed=recomputed: recomputed[0]
        seconds = in_turns(tasks, scale.rounds)
        rest = seconds["ours"] - sum(seconds[name] for name in spans)
        about = ("refill", f"M {context:,}, N {latents:,}, {rebuild} rebuilt")
        yield Row.of(*about, "from kept keys and values", 1000 * seconds["ours"], "ms")
        for name in spans:
            yield Row.of(*about, f"of that: {name}", 1000 * seconds[name], "ms")
        yield Row.of(*about, "of that: the oldest tokens leave, and the rest", 1000 * rest, "ms")
        yield Row.of(*about, "from all tokens, the official way", 1000 * seconds["official"], "ms")
        yield Row.of(*about, "of that: keys and values of the context", 1000 * seconds["recomputed"], "ms")
        yield Row.of(*about, "official / ours", seconds["official"] / seconds["ours"], "x")


def _spans(model: PerceiverAR) -> dict[str, Span]:
    reader = model.cross_attend
    assert reader is not None
    return {
        "the cross-attend": Span(reader.norm_latents, reader.feed_forward),
        "the latent stack": Span(model.layers[0], model.layers[-1]),
    }


@torch.inference_mode()
def _official_refill(steady: Steady, recomputed: list[float]) -> float:
    """The same token by the official sampler's way: the context's keys and values from its tokens, then the latents.

    Tokens move, keys and values need not: they are all written anew, in pieces as large as a prompt's.
    """
    steady.back_to(steady.full)
    run = steady.run

    def recompute() -> None:
        leave = steady.steps + 1
        tokens = torch.cat([run.tokens[:, leave : run.end], steady.token[:, None]], 1)
        run.first_column += leave
        run.end = 0
        for at in range(0, tokens.shape[1], CHUNK):
            run._read_tokens(tokens[:, at : at + CHUNK])

    recomputed[0] = timed(recompute)()
    return recomputed[0] + timed(lambda: run._rebuild(run.refill))()


def first(scale: Scale) -> Iterator[Row]:
    context = scale.contexts[-1]
    (prompt,) = random_prompts(1, context)
    a, b = torch.randn(2, scale.matrix, scale.matrix)
    for latents in scale.latents:
        model = fresh_model(scale, context, latents)
        run = CachedPerceiverAR(model)
        tasks: dict[str, Task] = {
            "start": timed(lambda run=run: run.start([prompt], max_tokens=1)),
            "product": timed(lambda: a @ b, 5),
        }
        seconds = in_turns(tasks, scale.rounds)
        config = replace(model.config, num_latents=run.prompt_latents)
        unread = 2 * (run.prompt_latents - 1) * config.dim * config.vocab_size  # only the last latent predicts
        flops = forward_flops(config) - unread
        rate, peak = flops / seconds["start"], 2 * scale.matrix**3 / seconds["product"]
        about = ("first", f"M {context:,}, {run.prompt_latents} latents")
        yield Row.of(*about, "time to the first token", seconds["start"], "s")
        yield Row.of(*about, "operations", flops / 1e9, "GFLOP")
        yield Row.of(*about, "rate", rate / 1e9, "GFLOP/s")
        yield Row.of(*about, f"a product of {scale.matrix} x {scale.matrix} matrices", peak / 1e9, "GFLOP/s")
        yield Row.of(*about, "rate / product's", rate / peak, "x")


def samples(scale: Scale) -> Iterator[Row]:
    context, latents, many = scale.contexts[1], scale.latents[0], scale.samples
    model = fresh_model(scale, context, latents)
    runs = {
        "1 sample": Steady(model),
        f"{many} samples of a prompt": Steady(model, samples=many),
        f"{many} prompts": Steady(model, prompts=many),
    }
    tasks: dict[str, Task] = {}
    for name, steady in runs.items():
        tasks |= {f"{name}: step": steady.step(scale.burst), f"{name}: refill": steady.refill}
    seconds = in_turns(tasks, scale.rounds)
    rates: dict[str, np.ndarray] = {}
    about = ("samples", f"M {context:,}, N {latents:,}")
    for name, steady in runs.items():
        rates[name] = steady.per_second(seconds[f"{name}: step"], seconds[f"{name}: refill"])
        yield Row.of(*about, f"{name}, all rows", rates[name], "tokens/s")
        yield Row.of(*about, f"{name}: keys and values", steady.run.nbytes / 1e6, "MB")
    for name in list(runs)[1:]:
        yield Row.of(*about, f"{name} / 1 sample", rates[name] / rates["1 sample"], "x")
