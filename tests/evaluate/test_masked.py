import math

import numpy as np
import pytest
import torch
from torch import nn

from perceivers.data.masked_config import MaskedTextConfig
from perceivers.data.masked_text import masked_batches
from perceivers.data.tokens import TokenSplit
from perceivers.evaluate.masked import MaskedScore, score_masked, score_masked_ngram
from perceivers.evaluate.ngram import KneserNey
from perceivers.models.feature_config import TokenFeatures
from perceivers.models.input_config import InputConfig, LearnedPositions
from perceivers.models.output_config import GridQueries, QueryOutputConfig, TiedHead
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig
from perceivers.models.perceiver_io import PerceiverIO, build_perceiver_io

ENCODER = EncoderConfig(num_latents=3, dim=10, blocks=1, depth=1, heads=5)
CONFIG = MaskedTextConfig(batch_size=2)


def language_model(*, seq_len: int = 13, vocab_size: int = 262) -> PerceiverIO:
    torch.manual_seed(1)
    positions = LearnedPositions(channels=6)
    return build_perceiver_io(
        PerceiverIOConfig(
            input=InputConfig(
                features=TokenFeatures(vocab_size=vocab_size, seq_len=seq_len, dim=6),
                positions=positions,
                combine="add",
            ),
            encoder=ENCODER,
            output=QueryOutputConfig(
                queries=GridQueries(shape=(seq_len,), positions=positions),
                channels=None,
                head=TiedHead(vocab_size=vocab_size),
                heads=2,
            ),
        )
    )


def split_of(*texts: str) -> TokenSplit:
    data = [np.frombuffer(text.encode(), np.uint8).astype(np.uint16) for text in texts]
    offsets = np.cumsum([0, *map(len, data)])
    return TokenSplit("test", np.concatenate(data), offsets, [f"document {i}" for i in range(len(texts))])


SPLIT = split_of("The quick brown fox jumps over the lazy dog. ", "And so on.", "Again and again!")


def test_scores_are_the_cross_entropy_of_the_holes_by_document() -> None:
    model = language_model()
    score = score_masked(model, SPLIT, CONFIG, precision="float32")
    nats, counts, hits = np.zeros(3), np.zeros(3, int), np.zeros(3, int)
    for windows, batch in masked_batches(SPLIT, CONFIG, seq_len=13, batch_size=1):
        real = torch.arange(13) < batch.lengths[:, None]
        logits = model(batch.tokens, mask=real, query_mask=real).log_softmax(-1)
        for place in batch.masked[0].nonzero()[:, 0].tolist():
            label = int(batch.labels[0, place])
            nats[windows[0].document] -= logits[0, place, label].item()
            counts[windows[0].document] += 1
            hits[windows[0].document] += logits[0, place].argmax().item() == label
    np.testing.assert_allclose(score.nats, nats, rtol=1e-5)
    assert score.masked.tolist() == counts.tolist()
    assert score.correct is not None
    assert score.correct.tolist() == hits.tolist()
    assert score.names == SPLIT.names
    assert score.bits_per_byte == pytest.approx(nats.sum() / counts.sum() / math.log(2), rel=1e-5)


def test_batches_change_nothing_and_the_model_trains_on() -> None:
    model = language_model().train()
    score = score_masked(model, SPLIT, CONFIG, precision="float32")
    other = score_masked(model, SPLIT, CONFIG, precision="float32", batch_size=5)
    np.testing.assert_allclose(score.nats, other.nats, rtol=1e-5)
    assert model.training
    some = score_masked(model, SPLIT, CONFIG, precision="float32", max_tokens=20)
    assert 0 < some.masked.sum() < score.masked.sum()
    assert score_masked(model, SPLIT, CONFIG, precision="float32", seed=1).nats.tolist() != score.nats.tolist()


def test_a_model_that_sees_the_answer_needs_no_bits() -> None:
    class Oracle(nn.Module):
        """Knows that the text is nothing but a's."""

        def __init__(self) -> None:
            super().__init__()
            self.config = language_model().config
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, tokens: torch.Tensor, **masks: torch.Tensor | None) -> torch.Tensor:
            del masks
            return 50.0 * nn.functional.one_hot(torch.full_like(tokens, 6 + ord("a")), 262)

    score = score_masked(Oracle(), split_of("a" * 20, "a" * 7), CONFIG, precision="float32")
    assert score.bits_per_byte == pytest.approx(0, abs=1e-6)
    assert score.accuracy == 1.0
    half = score_masked(Oracle(), split_of("ab" * 10), MaskedTextConfig(share=0.9, unit="bytes"), precision="float32")
    assert 0.2 < (half.accuracy or 0) < 0.8


def test_an_ngram_is_scored_on_the_same_bytes() -> None:
    documents = [np.asarray(ids, np.int32) for ids in SPLIT]
    ngram = KneserNey.fit(documents, order=3, vocab_size=256)
    model, trigram = (
        score_masked(language_model(), SPLIT, CONFIG, precision="float32"),
        score_masked_ngram(ngram, SPLIT, CONFIG, seq_len=13),
    )
    assert trigram.masked.tolist() == model.masked.tolist()
    assert trigram.accuracy is None
    everything = [ngram.nats(ids) for ids in documents]
    expected = np.zeros(3)
    for windows, batch in masked_batches(SPLIT, CONFIG, seq_len=13):
        for window, masked in zip(windows, batch.masked.numpy(), strict=True):
            for place in np.flatnonzero(masked):
                expected[window.document] += everything[window.document][window.start + place]
    np.testing.assert_allclose(trigram.nats, expected)


def test_numbers_are_plain_values() -> None:
    score = MaskedScore(["a", "b"], np.array([3.0, 1.0]) * math.log(2), np.array([2, 2]), np.array([1, 0]))
    numbers = score.numbers()
    assert numbers["bits_per_masked_byte"] == pytest.approx(1.0)
    assert numbers["bits_per_masked_byte_95"] == pytest.approx([0.5, 1.5])
    assert (numbers["documents"], numbers["masked_bytes"], numbers["accuracy"]) == (2, 4, 0.25)
