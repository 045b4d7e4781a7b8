"""Reference cases: where they are, what is in them, and what only the official code does.

A case is `NAME.json` beside `NAME.safetensors`, see `goldens/perceiver_ar`; `PERCEIVERS_GOLDENS` names another
directory. The official code finds a row's length by its first zero and counts latents where we count positions; with
one latent it ignores padding.
"""

import dataclasses
import itertools
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from perceivers.convert.official_ar import config_from_official, convert_params
from perceivers.data.batch import TokenBatch
from perceivers.models.perceiver_ar import PerceiverAR, latent_steps
from perceivers.nn.masks import AttentionMask
from perceivers.train.objectives import cross_entropy, predict

from .compared import Consumed

DIRECTORY = Path(os.environ.get("PERCEIVERS_GOLDENS") or Path(__file__).parent / "goldens" / "perceiver_ar")


@dataclass(frozen=True)
class Case:
    """A case on disk."""

    path: Path

    @cached_property
    def info(self) -> dict[str, Any]:
        return json.loads(self.path.read_text())

    @cached_property
    def arrays(self) -> Consumed[np.ndarray]:
        return Consumed(load_file(self.path.with_suffix(".safetensors")))

    @property
    def kind(self) -> str:
        return self.info["kind"]

    @property
    def tolerance(self) -> dict[str, Any]:
        return self.info["suggested_tolerance"]

    @property
    def dtypes(self) -> list[torch.dtype]:
        """Precisions that the case has numbers for."""
        stored = any(name.startswith("ref64/") for name in self.arrays)
        return [torch.float32, torch.float64] if stored else [torch.float32]

    def tensor(self, name: str) -> Tensor:
        """A stored tensor; integers as int64."""
        tensor = torch.from_numpy(self.arrays[name].copy())
        return tensor if tensor.is_floating_point() else tensor.long()

    def maybe(self, name: str) -> Tensor | None:
        """A stored tensor, or None."""
        return self.tensor(name) if name in self.arrays else None

    def expected(self, name: str, dtype: torch.dtype) -> Tensor:
        """A result: of the float64 run where it is wanted and stored."""
        source = "ref64" if dtype == torch.float64 and f"ref64/{name}" in self.arrays else "out"
        return self.tensor(f"{source}/{name}")

    def tree(self, prefix: str) -> dict[str, np.ndarray]:
        """Stored arrays below `prefix`, by official name."""
        return self.arrays.below(prefix)

    def model(self, dtype: torch.dtype, backend: str, **options: Any) -> PerceiverAR:
        """Our model with the case's parameters; `options` replace official arguments."""
        config = config_from_official(self.info["model"] | options)
        model = PerceiverAR(dataclasses.replace(config, backend=backend))
        model.load_state_dict(convert_params(self.tree("params/"), config))
        return model.to(dtype).eval()


def cases() -> list[Case]:
    found = [Case(path) for path in sorted(DIRECTORY.glob("*.json"))]
    if not found:
        raise FileNotFoundError(f"{DIRECTORY} has no reference cases (*.json)")
    return found


def row_lengths(tokens: Tensor) -> Tensor:
    """Tokens before the first zero of each row."""
    zero = tokens == 0
    return torch.where(zero.any(-1), zero.int().argmax(-1), tokens.shape[-1])


def token_batch(events: Tensor, positions: Tensor | None) -> TokenBatch:
    """A batch of the training loop; a case without positions has them counted from 1, as the official pipeline does."""
    lengths = row_lengths(events)
    if positions is None:
        counted = torch.arange(1, events.shape[1] + 1)
        positions = (counted * (counted <= lengths[:, None]))[..., None]
    return TokenBatch(events, positions, lengths)


class Recorder(nn.Module):
    """Takes the place of a model and keeps what it is called with."""

    def forward(self, tokens: Tensor, *, positions: Tensor, lengths: Tensor | None, num_latents: int) -> Tensor:
        self.tokens, self.positions = tokens, positions
        self.lengths = torch.full((len(tokens),), tokens.shape[1]) if lengths is None else lengths
        return torch.zeros(len(tokens), num_latents, 1)


def shifted(batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, their positions and targets as `predict` cuts them, right-padded with zeros."""
    recorder = Recorder()
    _, (labels, mask, _) = predict(recorder, batch, num_latents=batch.tokens.shape[1] - 1)
    real = torch.arange(mask.shape[1]) < recorder.lengths[:, None]
    targets = torch.zeros_like(labels)
    targets[real] = labels[mask]  # each row's labels stand at its right end
    return recorder.tokens * real, recorder.positions * real[..., None], targets


@dataclass(frozen=True)
class Output:
    """What the official model returns, from ours. Only valid latents (step >= 0) mean anything."""

    logits: Tensor
    latent_last_steps: Tensor
    encoder_mask: Tensor
    processor_mask: Tensor


@torch.no_grad()
def run(model: PerceiverAR, tokens: Tensor, positions: Tensor | None, *, z_index_dim: int | None = None) -> Output:
    """Call `model` as the official one is called."""
    per_position = model.config.latents_per_position
    num_latents = model.config.num_latents if z_index_dim is None else z_index_dim // per_position
    batch, seq_len = tokens.shape
    one_latent = num_latents * per_position == 1
    lengths = torch.full((batch,), seq_len) if one_latent else row_lengths(tokens)
    seen: dict[str, AttentionMask] = {}

    def remember(name: str) -> Any:
        return lambda _module, _args, kwargs: seen.update({name: kwargs["mask"]})

    reader = model.cross_attend or next(iter(model.extra_cross_attends.values()))
    hooks = [
        reader.register_forward_pre_hook(remember("encoder"), with_kwargs=True),
        model.layers[0].register_forward_pre_hook(remember("processor"), with_kwargs=True),
    ]
    full = bool((lengths == seq_len).all())
    logits = model(tokens, positions=positions, lengths=None if full else lengths, num_latents=num_latents)
    for hook in hooks:
        hook.remove()

    latents = num_latents * per_position
    encoder = _dense(seen["encoder"], batch, latents, seq_len)
    for row, length in enumerate(lengths):  # we see rows right-aligned
        encoder[row] = encoder[row].roll(-(seq_len - int(length)), dims=-1)
    processor = _dense(seen["processor"], batch, latents, latents)
    return Output(logits, latent_steps(lengths, num_latents).clamp(min=-1), encoder, processor)


def _dense(mask: AttentionMask, batch: int, queries: int, keys: int) -> Tensor:
    dense = mask.dense(queries, keys, torch.get_default_device())
    everything = torch.ones(batch, queries, keys, dtype=torch.bool)
    return everything if dense is None else everything & dense


def compare_output(case: Case, output: Output, where: str, *, atol: float, dtype: torch.dtype) -> None:
    """Compare what the case has under `where`, at valid latents."""
    steps = case.tensor(f"out/{where}latent_last_steps")
    assert torch.equal(output.latent_last_steps, steps)
    valid = steps >= 0
    if f"out/{where}logits" in case.arrays:
        expected = case.expected(f"{where}logits", dtype)
        torch.testing.assert_close(output.logits[valid], expected[valid].to(dtype), atol=atol, rtol=0)
    for name in ("encoder_mask", "processor_mask"):
        if f"out/{where}{name}" in case.arrays:
            ours = getattr(output, name)
            latents = valid.repeat_interleave(ours.shape[1] // valid.shape[1], 1)
            assert torch.equal(ours[latents].long(), case.tensor(f"out/{where}{name}")[:, 0][latents])


@torch.no_grad()
def evaluation_metrics(case: Case, outputs: list[Output]) -> dict[str, float]:
    """What the official evaluation epoch reports."""
    block = case.info["evaluation"]["eval_block_size"] or 1
    logits = torch.cat([output.logits[:, -block:] for output in outputs])
    steps = torch.cat([output.latent_last_steps[:, -block:] for output in outputs])
    if "in/targets" in case.arrays:
        targets = case.tensor("in/targets").flatten(0, 1).gather(1, steps.clamp(min=0))
        lengths = case.tensor("in/input_lengths").flatten(0, 1).gather(1, steps.clamp(min=0))
    else:  # only the token after the last input
        events = case.tensor("in/events").flatten(0, 1)
        targets = events.gather(1, (steps + 1).clamp(min=0))
        lengths = case.tensor("in/input_length").flatten(0, 1)[:, None]
    scored = (steps >= 0) & (targets != 0)
    loss = cross_entropy(logits, targets)[0][scored]
    metrics = {
        "eval_loss": loss.mean().item(),
        "eval_loss_bits": loss.mean().item() / np.log(2),
        "eval_accuracy": (logits.argmax(-1) == targets)[scored].to(loss.dtype).mean().item(),
        "eval_num_examples": len(loss),
        "eval_n_batches": len(outputs),
    }
    edges = [0, *(2**power for power in range(9, 18)), float("inf")]
    place = (lengths - 1).clamp(min=0)[scored]
    for low, high in itertools.pairwise(edges):
        inside = loss[(place >= low) & (place < high)]
        metrics[f"eval_sequence_{low}_{high}_num_examples"] = len(inside)
        metrics[f"eval_sequence_{low}_{high}_loss"] = inside.mean().item() if len(inside) else 0.0
    return metrics
