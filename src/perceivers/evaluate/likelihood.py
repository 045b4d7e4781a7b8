"""How likely a model finds held-out documents: every token scored once, with as much context as the model takes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn
from tqdm import tqdm

from perceivers.arguments import checked_numbers
from perceivers.data.batch import NUM_SPECIAL, TokenBatch, collate, model_tokens
from perceivers.data.blocks import Block, evaluation_blocks
from perceivers.data.tokens import TokenSplit
from perceivers.device import autocast
from perceivers.evaluate.prediction import cross_entropy, is_right, predict
from perceivers.models.ecp_config import ECPConfig
from perceivers.models.perceiver_ar_config import PerceiverARConfig

BUCKETS = (0, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
"""Lower edges of the position buckets (official `_eval_epoch`)."""


@dataclass(frozen=True)
class Likelihood:
    """Scores of a split, a document each. EOS is scored, SOS is not."""

    names: list[str]
    nats: Float[np.ndarray, " documents"]
    correct: Int[np.ndarray, " documents"]
    tokens: Int[np.ndarray, " documents"]
    buckets: dict[int, tuple[float, int]]
    """Nats and tokens by the lower edge of the token's position in its document."""
    stride: int
    """Tokens that each window scores: its last ones."""
    max_seq_len: int
    """Longest window, in tokens."""
    least_context: int
    """Tokens before each scored one that count for its prediction, or all of its document: more for most of them."""

    @property
    def nats_per_token(self) -> float:
        """Mean over tokens of all documents."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def bits_per_token(self) -> float:
        """The same in bits."""
        return self.nats_per_token / math.log(2)

    @property
    def perplexity(self) -> float:
        """Equally likely choices a token; inf where a float can't hold so many."""
        try:
            return math.exp(self.nats_per_token)
        except OverflowError:
            return math.inf

    @property
    def accuracy(self) -> float:
        """Share of tokens whose most likely prediction is right."""
        return float(self.correct.sum() / self.tokens.sum())


def usual_stride(config: PerceiverARConfig | ECPConfig) -> int:
    """Tokens that a window scores if nothing else is said: all that it predicts.

    Where every position predicts the first ones have no context; of ECP the second half of a window is scored, so
    that at least half of the window lies before each token.
    """
    if isinstance(config, ECPConfig) and config.pattern == "ecp":
        return max(1, config.max_seq_len // 2)
    return config.num_targets


Window = tuple[int, Block]
"""A document's index, and one of its blocks."""


@checked_numbers(stride=-math.inf)  # its range is the model's
def score(
    model: nn.Module,
    split: TokenSplit,
    *,
    stride: int | None = None,
    batch_tokens: int = 32_768,
    max_tokens: int | None = None,
    precision: str = "auto",
    progress: bool = False,
) -> Likelihood:
    """Score the documents of `split` in windows whose last `stride` tokens count (block evaluation, as the reference).

    Args:
        model: A Perceiver AR, or an ECP of any pattern.
        split: Documents.
        stride: Tokens scored a window, at most as many as it predicts; None for `usual_stride`. Fewer is slower, and
            gives each token more context, and more latents before it.
        batch_tokens: Input tokens a forward pass.
        max_tokens: Score about this many only, in windows spread evenly over the split.
        precision: As in training.
        progress: Show a bar with ETA.

    Raises:
        ValueError: The stride is out of range, or the split holds ids that the model doesn't know.
    """
    config: PerceiverARConfig | ECPConfig = model.config  # pyright: ignore[reportAssignmentType]
    stride = usual_stride(config) if stride is None else stride
    if not 0 < stride <= config.num_targets:
        latents = "tokens of the model's input" if config.num_targets == config.max_seq_len else "latents"
        raise ValueError(f"stride={stride} must lie in 1..{config.num_targets}, the number of {latents}")
    context, predicted = config.max_seq_len - stride, config.num_targets
    if isinstance(config, ECPConfig) and config.pattern == "ecp":
        # Its predictions are the same however many are asked for.
        context, predicted = min(context, config.reach), stride
    windows = _windows(split, config, stride)
    if max_tokens is not None and len(windows) > (wanted := max(1, max_tokens // stride)):
        windows = [windows[i] for i in np.linspace(0, len(windows) - 1, wanted).round().astype(int)]

    sums = _Sums(len(split))
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    bar = tqdm(
        total=sum(w.num_targets for _, w in windows), unit="token", disable=not progress, desc=f"scoring {split.name}"
    )
    with torch.no_grad(), autocast(device, precision), bar:
        for group in _batches(windows, batch_tokens):
            batch = _batch(split, group, config.vocab_size)
            logits, (labels, *_) = predict(model, batch.to(device), num_latents=predicted)
            losses = cross_entropy(logits, labels)[0].cpu().numpy()
            hits = is_right(logits, labels).cpu().numpy()
            for row, (document, block) in enumerate(group):
                sums.add(document, block, losses[row, -block.num_targets :], hits[row, -block.num_targets :])
            bar.update(sum(block.num_targets for _, block in group))
    model.train(was_training)
    seen = sums.tokens > 0
    return Likelihood(
        names=[name for name, kept in zip(split.names, seen, strict=True) if kept],
        nats=sums.nats[seen],
        correct=sums.correct[seen],
        tokens=sums.tokens[seen],
        buckets={edge: (nats, count) for edge, (nats, count) in sums.buckets.items() if count},
        stride=stride,
        max_seq_len=config.max_seq_len,
        least_context=context,
    )


class _Sums:
    """Sums by document and by position."""

    def __init__(self, documents: int) -> None:
        self.nats = np.zeros(documents)
        self.tokens, self.correct = np.zeros(documents, np.int64), np.zeros(documents, np.int64)
        self.buckets: dict[int, tuple[float, int]] = dict.fromkeys(BUCKETS, (0.0, 0))

    def add(self, document: int, block: Block, losses: np.ndarray, hits: np.ndarray) -> None:
        """Note the scores of a block's last targets."""
        self.nats[document] += losses.sum(dtype=np.float64)
        self.correct[document] += hits.sum()
        self.tokens[document] += len(losses)
        # The bucket of a target is that of its last input, counted from 0 (official `_eval_epoch`).
        last_inputs = np.arange(block.stop - 1 - len(losses), block.stop - 1)
        which = np.searchsorted(BUCKETS, last_inputs, side="right") - 1
        for bucket in np.unique(which):
            nats, count = self.buckets[BUCKETS[bucket]]
            chosen = losses[which == bucket]
            self.buckets[BUCKETS[bucket]] = (nats + float(chosen.sum(dtype=np.float64)), count + len(chosen))


def _windows(split: TokenSplit, config: PerceiverARConfig | ECPConfig, stride: int) -> list[Window]:
    """All blocks of all documents."""
    return [
        (document, block)
        for document, length in enumerate(split.lengths)
        for block in evaluation_blocks(int(length) + 2, max_len=config.max_seq_len, stride=stride)
    ]


def _batches(windows: list[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Groups of windows of similar length, so that little is padded."""
    by_length = sorted(windows, key=lambda window: window[1].start - window[1].stop)
    group: list[Window] = []
    for window in by_length:
        longest = group[0][1].stop - group[0][1].start if group else 0
        if group and longest * (len(group) + 1) > batch_tokens:
            yield group
            group = []
        group.append(window)
    if group:
        yield group


def _batch(split: TokenSplit, group: list[Window], vocab_size: int) -> TokenBatch:
    tokens = [model_tokens(split[document], start=block.start, stop=block.stop) for document, block in group]
    positions = [np.arange(block.start + 1, block.stop + 1)[:, None] for _, block in group]
    batch = collate(tokens, positions)
    if (highest := int(batch.tokens.max())) >= vocab_size:
        raise ValueError(
            f"split {split.name!r} holds id {highest - NUM_SPECIAL}; this model knows ids up to "
            f"{vocab_size - NUM_SPECIAL - 1}: score data of the kind that it was trained on"
        )
    return batch
