"""What two n-grams make of hidden bytes that see what a masked language model sees: the bytes on both sides."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Integer
from numpy import ndarray

from perceivers.arguments import checked_numbers
from perceivers.data.masked_config import MaskedTextConfig
from perceivers.data.masked_text import Window, masked_batches
from perceivers.data.text import BYTES_VOCAB_SIZE
from perceivers.data.tokens import TokenSplit
from perceivers.evaluate.masked import MaskedScore, MaskedSums
from perceivers.evaluate.ngram import KneserNey

__all__ = ["TwoSided", "score_two_sided"]

NEWTON_STEPS = 10


@dataclass(frozen=True, eq=False)
class TwoSided:
    """One n-gram reads towards a byte, another one backwards; the logarithms of what they say are added with weights.

    With weights 1, 1 and -1 that is p(byte | left) p(byte | right) / p(byte), which is right where both sides tell
    different things. Hidden bytes, and those outside of the window that the masked language model reads, are not seen.
    """

    left: KneserNey
    right: KneserNey
    weights: Float[ndarray, "3"]
    """Of the left, of the right, and of how frequent each byte is."""

    @classmethod
    def fit(cls, documents: Sequence[Integer[ndarray, " _"]], *, order: int) -> "TwoSided":
        """Count the n-grams of documents of bytes, and those of the documents read backwards."""
        left = KneserNey.fit(documents, order=order, vocab_size=BYTES_VOCAB_SIZE)
        right = KneserNey.fit([ids[::-1] for ids in documents], order=order, vocab_size=BYTES_VOCAB_SIZE)
        return cls(left, right, np.array([1.0, 1.0, -1.0]))

    def weighted(self, split: TokenSplit, config: MaskedTextConfig, *, seq_len: int, max_tokens: int) -> "TwoSided":
        """The same n-grams with the weights that find the hidden bytes of about `max_tokens` of `split` likeliest.

        By Newton's method; the problem is convex.
        """
        held_out = list(_windows(split, config, seq_len=seq_len, max_tokens=max_tokens))
        parts = np.concatenate([self._parts(ids, hidden) for _, ids, hidden in held_out])
        labels = np.concatenate([ids[hidden] for _, ids, hidden in held_out])
        weights = self.weights
        for _ in range(NEWTON_STEPS):
            log_p = _normalised(parts @ weights)
            mean = np.einsum("hbk,hb->hk", parts, np.exp(log_p))
            slope = (parts[np.arange(len(labels)), labels] - mean).mean(0)
            bend = np.einsum("hbk,hbl,hb->kl", parts, parts, np.exp(log_p)) / len(labels) - mean.T @ mean / len(labels)
            weights = weights + np.linalg.solve(bend + 1e-6 * np.eye(3), slope)
        return TwoSided(self.left, self.right, weights)

    def log_probabilities(
        self, ids: Integer[ndarray, " window"], hidden: Bool[ndarray, " window"]
    ) -> Float[ndarray, "holes 256"]:
        """Of each byte at each hidden place of a window."""
        return _normalised(self._parts(ids, hidden) @ self.weights)

    def _parts(self, ids: Integer[ndarray, " window"], hidden: Bool[ndarray, " window"]) -> Float[ndarray, "h 256 3"]:
        """Log probabilities of each byte at the hidden places: by the left, by the right, and by frequency."""
        places = np.flatnonzero(hidden)
        back = len(ids) - 1 - places
        sides = (
            self.left.distributions(ids, places, _run(hidden)[places]),
            self.right.distributions(ids[::-1], back, _run(hidden[::-1])[back]),
            self.left.distributions(ids, places, np.zeros_like(places)),
        )
        return np.log(np.stack([side[:, :BYTES_VOCAB_SIZE] for side in sides], axis=-1))


@checked_numbers(seed=0)
def score_two_sided(
    ngrams: TwoSided,
    split: TokenSplit,
    config: MaskedTextConfig,
    *,
    seq_len: int,
    max_tokens: int | None = None,
    seed: int = 0,
) -> MaskedScore:
    """Score the bytes that `score_masked` hides; arguments as there."""
    sums = MaskedSums(split)
    for document, ids, hidden in _windows(split, config, seq_len=seq_len, max_tokens=max_tokens, seed=seed):
        log_p, labels = ngrams.log_probabilities(ids, hidden), ids[hidden]
        sums.add(document, -log_p[np.arange(len(labels)), labels], log_p.argmax(1) == labels)
    return sums.score(correct=True)


def _windows(
    split: TokenSplit, config: MaskedTextConfig, *, seq_len: int, max_tokens: int | None, seed: int = 0
) -> Iterator[tuple[int, Int[ndarray, " window"], Bool[ndarray, " window"]]]:
    """Number of the document, bytes, and what is hidden of them, for each window with hidden bytes."""
    for windows, batch in masked_batches(split, config, seq_len=seq_len, max_tokens=max_tokens, seed=seed):
        for window, masked in zip(windows, batch.masked.numpy(), strict=True):
            ids = _bytes(split, window)
            if (hidden := masked[: len(ids)]).any():
                yield window.document, ids, hidden


def _bytes(split: TokenSplit, window: Window) -> Int[ndarray, " window"]:
    return np.asarray(split[window.document][window.start : window.stop], dtype=np.int64)


def _run(hidden: Bool[ndarray, " window"]) -> Int[ndarray, " window"]:
    """How many places before each one are not hidden, back to the nearest hidden one or the start."""
    places = np.arange(len(hidden))
    last = np.maximum.accumulate(np.where(hidden, places, -1))
    return places - 1 - np.concatenate([[-1], last[:-1]])


def _normalised(scores: Float[ndarray, "holes bytes"]) -> Float[ndarray, "holes bytes"]:
    """Logarithms that sum to 1 when exponentiated."""
    scores = scores - scores.max(1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(1, keepdims=True))
