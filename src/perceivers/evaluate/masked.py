"""How likely a model finds bytes that are hidden in held-out text, and how likely an n-gram finds the same bytes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn
from tqdm import tqdm

from perceivers.arguments import checked_numbers
from perceivers.data.masked_config import MaskedTextConfig
from perceivers.data.masked_text import MaskedBatch, Window, masked_batches
from perceivers.data.tokens import TokenSplit
from perceivers.device import autocast
from perceivers.evaluate.bootstrap import mean_with_interval
from perceivers.evaluate.ngram import KneserNey
from perceivers.evaluate.prediction import cross_entropy, is_right
from perceivers.generate.fill import text_length

__all__ = ["MaskedScore", "MaskedSums", "masked_logits", "score_masked", "score_masked_ngram"]


@dataclass(frozen=True)
class MaskedScore:
    """Scores of the masked bytes of a split, a document each."""

    names: list[str]
    nats: Float[np.ndarray, " documents"]
    masked: Int[np.ndarray, " documents"]
    """Masked bytes."""
    correct: Int[np.ndarray, " documents"] | None = None
    """Masked bytes whose most likely prediction is right; None where nobody looked."""

    @property
    def bits_per_byte(self) -> float:
        """Mean over the masked bytes of all documents."""
        return float(self.nats.sum() / self.masked.sum()) / math.log(2)

    @property
    def accuracy(self) -> float | None:
        """Share of the masked bytes whose most likely prediction is right."""
        return None if self.correct is None else float(self.correct.sum() / self.masked.sum())

    def numbers(self) -> dict[str, Any]:
        """The same as plain values, with what 95 in 100 resamplings of the documents say."""
        interval = mean_with_interval(self.nats / math.log(2), self.masked)
        return {
            "documents": len(self.names),
            "masked_bytes": int(self.masked.sum()),
            "bits_per_masked_byte": self.bits_per_byte,
            "bits_per_masked_byte_95": interval.ends,
            "accuracy": self.accuracy,
        }


def masked_logits(model: nn.Module, batch: MaskedBatch) -> Float[torch.Tensor, "masked vocab"]:
    """What a masked language model predicts for the holes of a batch, row by row.

    As in the reference: padding is neither read nor asked for.
    """
    real = batch.real
    return model(batch.tokens, mask=real, query_mask=real)[batch.masked]


@checked_numbers(seed=0)
@torch.no_grad()
def score_masked(
    model: nn.Module,
    split: TokenSplit,
    config: MaskedTextConfig,
    *,
    precision: str = "auto",
    batch_size: int | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> MaskedScore:
    """Score what is hidden in `split`; every model with the same input length gets the same holes.

    Args:
        model: A masked language model of bytes.
        split: Documents of bytes.
        config: What is masked.
        precision: As in training.
        batch_size: Windows a forward pass; None for the config's.
        max_tokens: Read about so many bytes only, in windows spread evenly over the split.
        seed: Of the holes.
        progress: Show a bar with ETA.

    Raises:
        ValueError: The model reads something else.
    """
    seq_len, device = text_length(model), next(model.parameters()).device
    sums = MaskedSums(split)
    was_training = model.training
    model.eval()
    total = split.num_tokens if max_tokens is None else min(max_tokens, split.num_tokens)
    bar = tqdm(total=total, unit="byte", unit_scale=True, disable=not progress, desc=f"scoring {split.name}")
    batches = masked_batches(split, config, seq_len=seq_len, batch_size=batch_size, max_tokens=max_tokens, seed=seed)
    with autocast(device, precision), bar:
        for windows, batch in batches:
            batch = batch.to(device)
            logits, labels = masked_logits(model, batch), batch.labels[batch.masked]
            nats = cross_entropy(logits, labels)[0].cpu().numpy()
            hits = is_right(logits, labels).cpu().numpy()
            for window, part in _parts(windows, batch):
                sums.add(window.document, nats[part], hits[part])
            bar.update(int(batch.lengths.sum()))
    model.train(was_training)
    return sums.score(correct=True)


@checked_numbers(seed=0)
def score_masked_ngram(
    ngram: KneserNey,
    split: TokenSplit,
    config: MaskedTextConfig,
    *,
    seq_len: int,
    max_tokens: int | None = None,
    seed: int = 0,
) -> MaskedScore:
    """Score the bytes that `score_masked` hides with an n-gram, which sees the true bytes to their left and none else.

    Args:
        ngram: Of bytes.
        split: Documents of bytes.
        config: What is masked.
        seq_len: Bytes that the masked language model reads.
        max_tokens: As in `score_masked`.
        seed: Of the holes.
    """
    sums = MaskedSums(split)
    document, nats = -1, np.empty(0)
    for windows, batch in masked_batches(split, config, seq_len=seq_len, max_tokens=max_tokens, seed=seed):
        for window, masked in zip(windows, batch.masked.numpy(), strict=True):
            if window.document != document:
                document = window.document
                nats = ngram.nats(np.asarray(split[document], np.int32))
            chosen = nats[window.start : window.stop][masked[: window.stop - window.start]]
            sums.add(document, chosen, np.zeros(len(chosen), bool))
    return sums.score(correct=False)


def _parts(windows: list[Window], batch: MaskedBatch) -> Iterator[tuple[Window, slice]]:
    """Which of the batch's masked bytes are whose."""
    stop = 0
    for window, count in zip(windows, batch.masked.sum(1).tolist(), strict=True):
        yield window, slice(stop, stop + count)
        stop += count


class MaskedSums:
    """Sums by document."""

    def __init__(self, split: TokenSplit) -> None:
        self.names = split.names
        self.nats = np.zeros(len(split))
        self.masked, self.correct = np.zeros(len(split), np.int64), np.zeros(len(split), np.int64)

    def add(self, document: int, nats: np.ndarray, hits: np.ndarray) -> None:
        """Note the scores of some masked bytes."""
        self.nats[document] += nats.sum(dtype=np.float64)
        self.masked[document] += len(nats)
        self.correct[document] += hits.sum()

    def score(self, *, correct: bool) -> MaskedScore:
        """Of the documents that were seen."""
        seen = self.masked > 0
        return MaskedScore(
            names=[name for name, kept in zip(self.names, seen, strict=True) if kept],
            nats=self.nats[seen],
            masked=self.masked[seen],
            correct=self.correct[seen] if correct else None,
        )
