import numpy as np
import pytest

from perceivers.data.masked_config import MaskedTextConfig
from perceivers.data.tokens import TokenSplit
from perceivers.evaluate.masked import score_masked_ngram
from perceivers.evaluate.ngram import KneserNey
from perceivers.evaluate.two_sided import TwoSided, score_two_sided

CONFIG = MaskedTextConfig(batch_size=2, unit="bytes")
LETTERS = np.frombuffer(b"abcdef", np.uint8).astype(np.int32)


def split_of(*documents: np.ndarray) -> TokenSplit:
    offsets = np.cumsum([0, *map(len, documents)])
    names = [f"document {i}" for i in range(len(documents))]
    return TokenSplit("test", np.concatenate(documents).astype(np.uint16), offsets, names)


def text(length: int, *, seed: int) -> np.ndarray:
    """Random letters, and between each two of them their sum: one side alone says nothing."""
    letters = np.random.default_rng(seed).integers(6, size=length)
    letters[1:-1:2] = (letters[0:-2:2] + letters[2::2]) % 6
    return LETTERS[letters]


TRAIN = [text(701, seed=seed) for seed in range(5)]


def hidden_at(*places: int, length: int = 11) -> np.ndarray:
    return np.isin(np.arange(length), places)


def test_probabilities_of_a_hidden_byte_sum_to_one() -> None:
    ngrams = TwoSided.fit(TRAIN, order=3)
    log_p = ngrams.log_probabilities(text(11, seed=9).astype(np.int64), hidden_at(0, 4, 5, 10))
    assert log_p.shape == (4, 256)
    np.testing.assert_allclose(np.exp(log_p).sum(1), 1)


def test_by_hand() -> None:
    ngrams, ids, hidden = TwoSided.fit(TRAIN, order=3), text(11, seed=9).astype(np.int64), hidden_at(2, 5)
    left = KneserNey.fit(TRAIN, order=3, vocab_size=256)
    right = KneserNey.fit([ids[::-1] for ids in TRAIN], order=3, vocab_size=256)
    nothing = KneserNey(left.levels[:1], 256).probabilities(ids[:0])
    # Between the hidden ones two bytes are seen, beyond them as many as the order takes.
    expected = left.probabilities(ids[3:5]) * right.probabilities(ids[6:][::-1]) / nothing
    expected = expected[:256] / expected[:256].sum()
    got = np.exp(ngrams.log_probabilities(ids, hidden))[1]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_hidden_bytes_are_not_seen() -> None:
    ngrams, ids = TwoSided.fit(TRAIN, order=4), text(11, seed=9).astype(np.int64)
    other = ids.copy()
    other[[4, 5, 6]] = ord("z")
    first, second = (ngrams.log_probabilities(which, hidden_at(4, 5, 6)) for which in (ids, other))
    np.testing.assert_array_equal(first, second)


def test_both_sides_say_more_than_one() -> None:
    held_out, config = split_of(text(501, seed=20), text(307, seed=21)), MaskedTextConfig(batch_size=2, unit="bytes")
    left = KneserNey.fit(TRAIN, order=3, vocab_size=256)
    by_left = score_masked_ngram(left, held_out, config, seq_len=31)
    both = TwoSided.fit(TRAIN, order=3).weighted(split_of(text(997, seed=22)), config, seq_len=31, max_tokens=997)
    by_both = score_two_sided(both, held_out, config, seq_len=31)
    assert by_both.masked.tolist() == by_left.masked.tolist()
    assert by_both.names == by_left.names
    assert by_both.accuracy is not None
    assert by_both.bits_per_byte < by_left.bits_per_byte - 0.05


def test_weights_are_the_best_on_the_documents_that_choose_them() -> None:
    ngrams, held_out = TwoSided.fit(TRAIN, order=3), split_of(text(997, seed=22))
    best = ngrams.weighted(held_out, CONFIG, seq_len=31, max_tokens=997)

    def bits(weights: np.ndarray) -> float:
        changed = TwoSided(ngrams.left, ngrams.right, weights)
        return score_two_sided(changed, held_out, CONFIG, seq_len=31).bits_per_byte

    least = bits(best.weights)
    for change in 0.1 * np.concatenate([np.eye(3), -np.eye(3)]):
        assert least < bits(best.weights + change)
    assert least == pytest.approx(bits(best.weights + 1e-4), abs=1e-4)
