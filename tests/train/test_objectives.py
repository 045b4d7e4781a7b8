import math

import pytest
import torch
from torch import nn

from perceivers.data.batch import TokenBatch
from perceivers.evaluate.prediction import cross_entropy, predict
from perceivers.models.build import build
from perceivers.models.perceiver_ar_config import PerceiverARConfig
from perceivers.train.config import ObjectiveConfig
from perceivers.train.objectives import next_token

PLAIN = ObjectiveConfig(z_loss=0.0)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    config = PerceiverARConfig(
        vocab_size=13, max_seq_len=11, num_latents=5, dim=14, depth=1, heads=7, cross_heads=2, zero_logits=False
    )
    return build(config).double().eval()


@pytest.fixture
def batch() -> TokenBatch:
    tokens = torch.tensor([[2, 7, 5, 9, 11, 3, 1], [2, 4, 1, 0, 0, 0, 0]])
    positions = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 0, 0, 0, 0]])[..., None]
    return TokenBatch(tokens, positions, torch.tensor([7, 3]))


def test_sums_are_over_real_tokens(model: nn.Module, batch: TokenBatch) -> None:
    loss = next_token(model, batch, PLAIN, num_latents=5)
    logits, (labels, mask) = predict(model, batch, num_latents=5)
    nats = -logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    assert int(loss.count) == 5 + 2
    torch.testing.assert_close(loss.nats, nats[mask].sum())
    torch.testing.assert_close(loss.sum, loss.nats)
    assert int(loss.correct) == int((logits.argmax(-1) == labels)[mask].sum())


def test_padding_has_no_gradient(model: nn.Module, batch: TokenBatch) -> None:
    next_token(model, batch, PLAIN, num_latents=5).sum.backward()
    gradient = model.token_embedding.weight.grad  # pyright: ignore
    assert gradient.abs().sum(1).bool().nonzero().flatten().tolist() == [2, 3, 4, 5, 7, 9, 11]


def test_what_is_minimised_is_told_apart_from_nats(model: nn.Module, batch: TokenBatch) -> None:
    plain = next_token(model, batch, PLAIN, num_latents=5)
    full = next_token(model, batch, ObjectiveConfig(z_loss=0.01, label_smoothing=0.2), num_latents=5)
    torch.testing.assert_close(full.nats, plain.nats)
    logits, (labels, mask) = predict(model, batch, num_latents=5)
    expected, z = cross_entropy(logits[mask], labels[mask], z_loss=0.01, label_smoothing=0.2)
    torch.testing.assert_close(full.sum, expected.sum())
    torch.testing.assert_close(full.z, z.sum())
    assert abs(float(full.sum.detach() - full.nats.detach())) > 0.01


def test_losses_add_up(model: nn.Module, batch: TokenBatch) -> None:
    loss = next_token(model, batch, ObjectiveConfig(), num_latents=5)
    both = loss.detach() + loss.detach()
    for name in ("sum", "nats", "z", "correct", "count"):
        assert not getattr(both, name).requires_grad
        assert torch.equal(getattr(both, name), 2 * getattr(loss, name).detach())


def test_a_fresh_model_finds_all_tokens_equally_likely(batch: TokenBatch) -> None:
    fresh = build(PerceiverARConfig(vocab_size=13, max_seq_len=11, num_latents=5, dim=14, heads=7, cross_heads=2))
    loss = next_token(fresh, batch, PLAIN, num_latents=5)
    assert float(loss.nats) == pytest.approx(7 * math.log(13))
