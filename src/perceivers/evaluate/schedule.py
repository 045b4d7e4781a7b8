"""What the sampler's dial costs: held-out tokens scored as `CachedPerceiverAR` would predict them.

From one rebuild to the next it makes `num_latents - refill + 1` predictions, the first by `refill` latents, the last by
all of them, and the input, which grows meanwhile, ends at `max_seq_len` tokens. Neither keys nor latents see what comes
after them, so these are the last predictions of one full pass over that input: block evaluation with this stride.

    max_seq_len 8, num_latents 5, refill 3

    inputs               i  i  i  i  i  i  i  i
    latents that predict                3  4  5
    scored tokens                          s  s  s
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from tqdm import tqdm

from perceivers.arguments import checked_numbers
from perceivers.data.batch import PAD, TokenBatch
from perceivers.device import autocast
from perceivers.evaluate.prediction import cross_entropy, predict
from perceivers.generate.decode import Predictor
from perceivers.generate.sampling import log_probabilities
from perceivers.models.cached import why_not_cached
from perceivers.models.perceiver_ar_config import PerceiverARConfig

Window = tuple[int, int]
"""A row, and the column of its first input."""


def predictions_a_rebuild(num_latents: int, refill: int) -> int:
    """Tokens that the sampler draws from one rebuild to the next.

    Raises:
        ValueError: `refill` is out of range.
    """
    if not 0 < refill <= num_latents:
        raise ValueError(f"refill={refill} must lie in 1..{num_latents}, the number of latents")
    return num_latents - refill + 1


@checked_numbers()
def score_schedule(
    model: nn.Module,
    rows: TokenBatch,
    *,
    refill: int,
    num_latents: int | None = None,
    phases: Sequence[int] | None = None,
    batch_tokens: int = 32_768,
    precision: str = "auto",
    progress: bool = False,
) -> Float[np.ndarray, "rows targets"]:
    """Nats of the tokens that follow the first `max_seq_len` of each row, as the sampler would predict them.

    Args:
        model: A Perceiver AR.
        rows: More than `max_seq_len` tokens each, equally many; with the positions that they have in their documents.
        refill: Latents to rebuild. As many as `num_latents` rebuilds all of them for each token, which the sampler
            does not do: the best that this number of latents gives.
        num_latents: Latents that may be there before they are rebuilt; None for as many as in training.
        phases: Tokens of each row that are taken as drawn since the last rebuild, before the first scored one; less
            than `predictions_a_rebuild`. None for 0: latents have just been rebuilt.
        batch_tokens: Input tokens a forward pass.
        precision: As in training.
        progress: Show a bar with ETA.

    Raises:
        ValueError: Numbers that don't fit each other, or a model whose keys and values can't be kept.
    """
    config: PerceiverARConfig = model.config  # pyright: ignore[reportAssignmentType]
    num_latents = config.num_latents if num_latents is None else num_latents
    stride = predictions_a_rebuild(num_latents, refill)
    phases = [0] * len(rows.tokens) if phases is None else phases
    _check(config, rows, num_latents, stride, phases)
    targets = rows.tokens.shape[1] - config.max_seq_len
    windows = _windows(phases, stride, targets)
    nats = np.empty((len(rows.tokens), targets))
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    bar = tqdm(total=len(windows), unit="window", disable=not progress, desc=f"{refill} of {num_latents} latents")
    with torch.no_grad(), autocast(device, precision), bar:
        for group, batch in _batches(rows, windows, stride, config.max_seq_len, batch_tokens):
            logits, (labels, *_) = predict(model, batch.to(device), num_latents=num_latents)
            losses = cross_entropy(logits[:, -stride:], labels[:, -stride:])[0].cpu().numpy()
            for (row, start), values in zip(group, losses, strict=True):
                first = start - stride + 1  # scored target; may lie before the row's first, as the last after its last
                kept = slice(max(first, 0), min(first + stride, targets))
                nats[row, kept] = values[kept.start - first : kept.stop - first]
            bar.update(len(group))
    model.train(was_training)
    return nats


@checked_numbers(max_tokens=0)
def forced_log_probs(
    predictor: Predictor, prompt: Sequence[int], tokens: Sequence[int], *, max_tokens: int | None = None
) -> Float[np.ndarray, " tokens"]:
    """Log-probabilities, in nats, that a sampler gives `tokens` after `prompt`: it is fed them in place of its own.

    Args:
        predictor: A sampler's model.
        prompt: Model ids, SOS first.
        tokens: Model ids that follow.
        max_tokens: What the sampler is told will come, which decides how much of a long prompt it reads; None for as
            many as there are.
    """
    found: list[float] = []
    logits = None
    for place, token in enumerate(tokens):
        if logits is None:
            logits = predictor.start([list(prompt)], max_tokens=len(tokens) if max_tokens is None else max_tokens)
        else:
            logits = predictor.feed(torch.tensor([tokens[place - 1]], device=logits.device))
        found.append(float(log_probabilities(logits, torch.tensor([token], device=logits.device))))
    return np.array(found, np.float64)


def _check(config: PerceiverARConfig, rows: TokenBatch, num_latents: int, stride: int, phases: Sequence[int]) -> None:
    if not 0 < num_latents <= config.max_seq_len:
        raise ValueError(f"num_latents={num_latents} must lie in 1..{config.max_seq_len}, the length of the input")
    if stride > 1 and (reason := why_not_cached(config)) is not None:
        raise ValueError(
            f"the sampler rebuilds this model's latents at every token: {reason}: ask for refill={num_latents}"
        )
    seq_len = rows.tokens.shape[1]
    if seq_len <= config.max_seq_len or bool((rows.lengths < seq_len).any()):
        raise ValueError(
            f"rows of {int(rows.lengths.min())} to {seq_len} tokens: all need equally many, more than the "
            f"{config.max_seq_len} of the model's input"
        )
    if len(phases) != len(rows.tokens) or not all(0 <= phase < stride for phase in phases):
        raise ValueError(f"phases={list(phases)} must be one of 0..{stride - 1} for each of {len(rows.tokens)} rows")


def _windows(phases: Sequence[int], stride: int, targets: int) -> list[Window]:
    """Inputs from one rebuild to the next; target i of a row is the last of those that start at column i."""
    return [
        (row, start)
        for row, phase in enumerate(phases)
        for start in range(stride - 1 - phase, targets + stride - 1, stride)
    ]


def _batches(
    rows: TokenBatch, windows: list[Window], stride: int, max_seq_len: int, batch_tokens: int
) -> Iterator[tuple[list[Window], TokenBatch]]:
    # The last window may end after its row. No prediction sees what comes later, so anything may stand there.
    tokens = torch.nn.functional.pad(rows.tokens, (0, stride - 1), value=PAD)
    positions = torch.cat([rows.positions, rows.positions[:, -1:].expand(-1, stride - 1, -1)], 1)
    size = max(1, batch_tokens // max_seq_len)
    for at in range(0, len(windows), size):
        group = windows[at : at + size]
        ends = [(row, slice(start, start + max_seq_len + 1)) for row, start in group]
        yield (
            group,
            TokenBatch(
                torch.stack([tokens[row, part] for row, part in ends]),
                torch.stack([positions[row, part] for row, part in ends]),
                torch.full((len(group),), max_seq_len + 1),
            ),
        )
