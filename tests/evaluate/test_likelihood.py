import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from perceivers.data.batch import model_tokens
from perceivers.data.tokens import StoreWriter, TokenSplit, TokenStore
from perceivers.evaluate import likelihood
from perceivers.evaluate.likelihood import Likelihood, score
from perceivers.models.build import build
from perceivers.models.ecp_config import ECPConfig
from perceivers.models.perceiver_ar_config import MLPQueries, PerceiverARConfig, TablePositions

LENGTHS = (1, 2, 3, 5, 7, 11, 13, 29)
"""Ids in the documents; two more with SOS and EOS."""

CONFIG = PerceiverARConfig(
    vocab_size=16, max_seq_len=11, num_latents=5, dim=14, depth=2, heads=7, cross_heads=2, zero_logits=False
)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> TokenSplit:
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "store"
    with StoreWriter(path, tokenizer="ids", vocab_size=13) as writer:
        for length in LENGTHS:
            writer.append("test", rng.integers(13, size=length), name=f"document {length}")
    return TokenStore.open(path).split("test")


def fresh(config: PerceiverARConfig = CONFIG) -> nn.Module:
    torch.manual_seed(0)
    return build(config).double().eval()


def by_hand(model: nn.Module, split: TokenSplit, stride: int) -> tuple[list[list[float]], list[list[bool]]]:
    """Nats and hits of every token after the SOS: one token, one forward pass over its window."""
    config = model.config
    nats, hits = [], []
    for document in range(len(split)):
        tokens = torch.from_numpy(model_tokens(split[document]))[None]
        length = tokens.shape[1]
        nats.append([])
        hits.append([])
        for target in range(1, length):
            stop = length - (length - 1 - target) // stride * stride  # windows are counted from the end
            start = max(0, stop - 1 - config.max_seq_len)
            inputs = tokens[:, start : stop - 1]
            positions = torch.arange(start + 1, stop)[None, :, None]
            latents = min(config.num_targets, inputs.shape[1])
            with torch.no_grad():
                scores = model(inputs, positions=positions, num_latents=latents)[0, target - stop]
            nats[-1].append(-float(scores.log_softmax(-1)[tokens[0, target]]))
            hits[-1].append(int(scores.argmax()) == int(tokens[0, target]))
    return nats, hits


def run(model: nn.Module, split: TokenSplit, **options: int) -> Likelihood:
    return score(model, split, precision="float32", **options)


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_every_token_as_in_a_loop(split: TokenSplit, stride: int) -> None:
    model = fresh()
    result = run(model, split, stride=stride)
    nats, hits = by_hand(model, split, stride)
    assert result.names == [f"document {length}" for length in LENGTHS]
    assert result.tokens.tolist() == [length + 1 for length in LENGTHS]  # the EOS is scored, the SOS is not
    np.testing.assert_allclose(result.nats, [sum(values) for values in nats], rtol=1e-9)
    assert result.correct.tolist() == [sum(values) for values in hits]
    total = sum(map(sum, nats)) / sum(map(len, nats))
    assert result.nats_per_token == pytest.approx(total)
    assert result.bits_per_token == pytest.approx(total / math.log(2))
    assert result.perplexity == pytest.approx(math.exp(total))
    assert result.accuracy == pytest.approx(sum(map(sum, hits)) / sum(map(len, hits)))
    assert (result.stride, result.max_seq_len, result.least_context) == (stride, 11, 11 - stride)


ECP = ECPConfig(vocab_size=16, max_seq_len=11, segment_len=3, dim=14, depth=2, heads=7, widening=2)
LATENTS = replace(ECP, pattern="double", num_latents=5)


@pytest.mark.parametrize(
    ("config", "stride", "usual", "context"),
    [
        (ECP, None, 5, 6),
        (ECP, 11, 5, 0),
        (ECP, 3, 5, 6),
        (replace(ECP, depth=1), 4, 5, 3),
        (LATENTS, None, 5, 6),
        (LATENTS, 3, 5, 8),
        (replace(LATENTS, pattern="ssplit"), 5, 5, 6),
        (replace(LATENTS, pattern="perceiver_ar"), 5, 5, 6),
        (replace(LATENTS, pattern="compressed", compressed_len=3), 4, 5, 7),
    ],
)
def test_ecp_scores_every_token_once(
    split: TokenSplit, config: ECPConfig, stride: int | None, usual: int, context: int
) -> None:
    """Of pattern ecp the second half of each window, if nothing is said; of latents all."""
    torch.manual_seed(0)
    model = build(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    result = score(model, split, stride=stride, precision="float32")
    assert (likelihood.usual_stride(config), result.stride) == (usual, stride or usual)
    assert result.least_context == context
    assert result.tokens.tolist() == [length + 1 for length in LENGTHS]
    nats, hits = by_hand(model, split, stride or usual)
    np.testing.assert_allclose(result.nats, [sum(values) for values in nats], rtol=1e-9)
    assert result.correct.tolist() == [sum(values) for values in hits]


def test_the_least_context_of_ecp_is_what_reaches_a_prediction() -> None:
    """Another token so far before a position changes its prediction, at the beginning of a segment as well."""
    torch.manual_seed(0)
    model = build(ECP).double().eval()
    torch.nn.init.normal_(model.logits.weight)
    tokens = torch.arange(3, 14)[None]
    for place in range(ECP.reach, 11):
        other = tokens.clone()
        other[0, place - ECP.reach] = 15
        assert (model(tokens) - model(other))[0, place].abs().max() > 1e-6


def test_a_stride_beyond_the_input(split: TokenSplit) -> None:
    with pytest.raises(ValueError, match=r"stride=12 must lie in 1\.\.11, the number of tokens of the model's input"):
        run(build(ECP), split, stride=12)


def test_stride_one_is_prediction_one_by_one(split: TokenSplit) -> None:
    model = fresh()
    expected = []
    for document in range(len(split)):
        tokens = torch.from_numpy(model_tokens(split[document]))[None]
        total = 0.0
        for target in range(1, tokens.shape[1]):
            start = max(0, target - 11)
            positions = torch.arange(start + 1, target + 1)[None, :, None]
            with torch.no_grad():
                logits = model(tokens[:, start:target], positions=positions, num_latents=min(5, target - start))
            total -= float(logits[0, -1].log_softmax(-1)[tokens[0, target]])
        expected.append(total)
    np.testing.assert_allclose(run(model, split, stride=1).nats, expected, rtol=1e-9)


def test_the_default_stride_is_all_latents(split: TokenSplit) -> None:
    model = fresh()
    default, given = run(model, split), run(model, split, stride=5)
    assert default.stride == 5
    assert np.array_equal(default.nats, given.nats)


@pytest.mark.parametrize("batch_tokens", [1, 13, 47, 10_000])
def test_batches_do_not_matter(split: TokenSplit, batch_tokens: int) -> None:
    model = fresh()
    expected = run(model, split, stride=3)
    result = run(model, split, stride=3, batch_tokens=batch_tokens)
    np.testing.assert_allclose(result.nats, expected.nats, rtol=1e-9)
    assert result.tokens.tolist() == expected.tokens.tolist()


def test_batches_are_as_large_as_allowed(split: TokenSplit) -> None:
    windows = likelihood._windows(split, CONFIG, 3)
    groups = list(likelihood._batches(windows, 47))
    assert sorted(window for group in groups for window in group) == sorted(windows)
    sizes = [(len(group), max(block.stop - block.start for _, block in group)) for group in groups]
    assert all(rows * longest <= 47 for rows, longest in sizes)
    assert max(rows for rows, _ in sizes) > 3


def test_positions_are_told_apart(split: TokenSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "BUCKETS", (0, 7, 17, 1000))
    model = fresh()
    nats, _ = by_hand(model, split, 3)
    expected = dict.fromkeys((0, 7, 17), (0.0, 0))
    for values in nats:
        for place, value in enumerate(values):  # of the last input, from 0
            edge = 17 if place >= 17 else 7 if place >= 7 else 0
            expected[edge] = (expected[edge][0] + value, expected[edge][1] + 1)
    buckets = run(model, split, stride=3).buckets
    assert buckets.keys() == expected.keys()
    for edge, (total, count) in expected.items():
        assert buckets[edge] == (pytest.approx(total), count)


def test_fewer_latents_than_a_document_has_are_enough(split: TokenSplit) -> None:
    config = PerceiverARConfig(
        vocab_size=16, max_seq_len=11, num_latents=1, dim=14, depth=1, heads=7, cross_heads=2, zero_logits=False
    )
    model = fresh(config)
    nats, _ = by_hand(model, split, 1)
    np.testing.assert_allclose(run(model, split).nats, [sum(values) for values in nats], rtol=1e-9)


def test_other_positions_and_queries(split: TokenSplit) -> None:
    config = PerceiverARConfig(
        vocab_size=16,
        max_seq_len=11,
        num_latents=5,
        dim=14,
        depth=1,
        heads=7,
        cross_heads=2,
        zero_logits=False,
        positions=TablePositions(sizes=(31,)),
        queries=MLPQueries(),
    )
    model = fresh(config)
    nats, _ = by_hand(model, split, 5)
    np.testing.assert_allclose(run(model, split).nats, [sum(values) for values in nats], rtol=1e-9)


def test_a_part_of_the_tokens(split: TokenSplit) -> None:
    model = fresh()
    whole = run(model, split, stride=2)
    some = run(model, split, stride=2, max_tokens=20)
    assert 16 <= some.tokens.sum() <= 20
    assert some.names[0] == "document 1"
    assert some.names[-1] == "document 29"
    assert len(some.names) < len(LENGTHS)
    assert np.array_equal(some.nats, run(model, split, stride=2, max_tokens=20).nats)
    assert run(model, split, stride=2, max_tokens=1).tokens.sum() in (1, 2)
    assert np.array_equal(run(model, split, stride=2, max_tokens=10_000).nats, whole.nats)


@pytest.mark.parametrize("stride", [0, -1, 6])
def test_a_stride_out_of_range(split: TokenSplit, stride: int) -> None:
    with pytest.raises(ValueError, match=rf"stride={stride} must lie in 1\.\.5, the number of latents"):
        run(fresh(), split, stride=stride)


def test_ids_that_the_model_does_not_know(split: TokenSplit) -> None:
    config = PerceiverARConfig(vocab_size=13, max_seq_len=11, num_latents=5, dim=14, depth=1, heads=7, cross_heads=2)
    with pytest.raises(ValueError, match=r"split 'test' holds id 1\d; this model knows ids up to 9"):
        run(fresh(config), split)


def test_documents_beyond_a_table(split: TokenSplit) -> None:
    config = PerceiverARConfig(
        vocab_size=16,
        max_seq_len=11,
        num_latents=5,
        dim=14,
        depth=1,
        heads=7,
        cross_heads=2,
        positions=TablePositions(),
    )
    with pytest.raises(ValueError, match="position"):
        run(fresh(config), split)


def test_training_goes_on_afterwards(split: TokenSplit) -> None:
    config = PerceiverARConfig(
        vocab_size=16, max_seq_len=11, num_latents=5, dim=14, heads=7, cross_heads=2, dropout=0.5, prefix_dropout=0.5
    )
    model = fresh(config)
    evaluated = run(model, split)
    assert not model.training
    model.train()
    assert np.array_equal(run(model, split).nats, evaluated.nats)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_progress(split: TokenSplit, capsys: pytest.CaptureFixture[str]) -> None:
    score(fresh(), split, progress=True)
    assert "scoring test: 100%" in capsys.readouterr().err
    run(fresh(), split)
    assert capsys.readouterr().err == ""
