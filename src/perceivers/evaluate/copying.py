"""How much of the mirrored half of copy sequences a model gets right."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from perceivers.arguments import checked_numbers
from perceivers.data.batch import collate, model_tokens
from perceivers.data.blocks import evaluation_block, num_blocks
from perceivers.data.synthetic import mirrored_ids
from perceivers.device import autocast
from perceivers.evaluate.prediction import cross_entropy, is_right, predict
from perceivers.models.perceiver_ar_config import PerceiverARConfig


@dataclass(frozen=True)
class Copying:
    """Scores of the mirrored half and the EOS: all that can be known."""

    length: int
    """Tokens of a sequence, SOS and EOS included."""
    sequences: int
    perfect: int
    """Sequences without a mistake."""
    tokens: int
    correct: int
    """Tokens whose most likely prediction is right."""
    nats: float

    @property
    def accuracy(self) -> float:
        """Share of tokens that are right."""
        return self.correct / self.tokens

    @property
    def nats_per_token(self) -> float:
        """Mean over tokens."""
        return self.nats / self.tokens


@checked_numbers(seed=0)
def score_copying(
    model: nn.Module,
    length: int,
    *,
    count: int,
    split: str,
    seed: int = 0,
    batch_tokens: int = 32_768,
    precision: str = "auto",
    progress: bool = False,
) -> Copying:
    """Score `count` fresh sequences in windows whose last `num_latents` tokens count, until the middle is reached.

    Args:
        model: A Perceiver AR.
        length: Tokens of a sequence, SOS and EOS included; even.
        count: Sequences.
        split: "validation" or "test": never those of training.
        seed: Other sequences.
        batch_tokens: Input tokens a forward pass.
        precision: As in training.
        progress: Show a bar with ETA.

    Raises:
        ValueError: The model's input is shorter than the sequences.
    """
    config: PerceiverARConfig = model.config  # pyright: ignore[reportAssignmentType]
    if length - 1 > config.max_seq_len:
        raise ValueError(
            f"sequences of {length} tokens have {length - 1} inputs, this model takes {config.max_seq_len}: "
            f"choose a length of at most {config.max_seq_len + 1}"
        )
    half, rows = length // 2, max(1, batch_tokens // length)
    right, nats = np.ones((count, half), dtype=bool), 0.0
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    bar = tqdm(total=count, unit="sequence", disable=not progress, desc="copying")
    with torch.no_grad(), autocast(device, precision), bar:
        for first in range(0, count, rows):
            chosen = range(first, min(first + rows, count))
            tokens = [model_tokens(mirrored_ids(length, seed=seed, split=split, index=i)) for i in chosen]
            for start, stop, targets in _windows(length, config.num_latents):
                places = np.arange(start + 1, stop + 1)[:, None]
                batch = collate([row[start:stop] for row in tokens], [places] * len(tokens)).to(device)
                logits, (labels, *_) = predict(model, batch, num_latents=config.num_latents)
                logits, labels = logits[:, -targets:], labels[:, -targets:]
                nats += float(cross_entropy(logits, labels)[0].sum())
                hits = is_right(logits, labels).cpu().numpy()
                end = stop - half
                right[chosen.start : chosen.stop, end - targets : end] = hits
            bar.update(len(chosen))
    model.train(was_training)
    return Copying(
        length=length,
        sequences=count,
        perfect=int(right.all(1).sum()),
        tokens=right.size,
        correct=int(right.sum()),
        nats=nats,
    )


def _windows(length: int, num_latents: int) -> list[tuple[int, int, int]]:
    """Start, stop and scored last targets of the windows over the last `length // 2` targets."""
    stride = min(num_latents, length // 2)
    last = num_blocks(length, stride=stride) - 1
    wanted = -(-(length // 2) // stride)
    windows = []
    for index in range(last - wanted + 1, last + 1):
        block = evaluation_block(length, index, max_len=length - 1, stride=stride)
        targets = min(block.num_targets, block.stop - length // 2)
        windows.append((block.start, block.stop, targets))
    return windows
