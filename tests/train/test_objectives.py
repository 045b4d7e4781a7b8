import math

import pytest
import torch
from torch import nn

from perceivers.data.batch import TokenBatch
from perceivers.evaluate.prediction import cross_entropy, predict
from perceivers.models.build import build
from perceivers.models.perceiver_ar_config import PerceiverARConfig
from perceivers.train import objectives
from perceivers.train.config import CrossEntropy
from perceivers.train.objectives import count_targets, objective_loss

PLAIN = CrossEntropy(z_loss=0.0)


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
    loss = objective_loss(model, batch, PLAIN)
    logits, (labels, mask, _) = predict(model, batch, num_latents=5)
    nats = -logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    assert count_targets(batch, model.config, PLAIN) == 5 + 2
    torch.testing.assert_close(loss.shown["nats"], nats[mask].sum())
    torch.testing.assert_close(loss.sum, loss.shown["nats"])
    assert int(loss.shown["accuracy"]) == int((logits.argmax(-1) == labels)[mask].sum())


def test_padding_has_no_gradient(model: nn.Module, batch: TokenBatch) -> None:
    objective_loss(model, batch, PLAIN).sum.backward()
    gradient = model.token_embedding.weight.grad  # pyright: ignore
    assert gradient.abs().sum(1).bool().nonzero().flatten().tolist() == [2, 3, 4, 5, 7, 9, 11]


def test_what_is_minimised_is_told_apart_from_nats(model: nn.Module, batch: TokenBatch) -> None:
    plain = objective_loss(model, batch, PLAIN)
    full = objective_loss(model, batch, CrossEntropy(z_loss=0.01, label_smoothing=0.2))
    torch.testing.assert_close(full.shown["nats"], plain.shown["nats"])
    logits, (labels, mask, _) = predict(model, batch, num_latents=5)
    expected, z = cross_entropy(logits[mask], labels[mask], z_loss=0.01, label_smoothing=0.2)
    torch.testing.assert_close(full.sum, expected.sum())
    torch.testing.assert_close(full.shown["z_loss"], z.sum())
    assert abs(float(full.sum.detach() - full.shown["nats"].detach())) > 0.01


def test_losses_add_up(model: nn.Module, batch: TokenBatch) -> None:
    loss = objective_loss(model, batch, CrossEntropy())
    both = loss.detach() + loss.detach()
    assert torch.equal(both.sum, 2 * loss.sum.detach())
    assert not both.sum.requires_grad
    for name in ("nats", "z_loss", "accuracy"):
        assert not both.shown[name].requires_grad
        assert torch.equal(both.shown[name], 2 * loss.shown[name].detach())


def test_a_fresh_model_finds_all_tokens_equally_likely(batch: TokenBatch) -> None:
    fresh = build(PerceiverARConfig(vocab_size=13, max_seq_len=11, num_latents=5, dim=14, heads=7, cross_heads=2))
    loss = objective_loss(fresh, batch, PLAIN)
    assert float(loss.shown["nats"]) == pytest.approx(7 * math.log(13))


def test_logits_in_pieces(model: nn.Module, batch: TokenBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers and gradients of all at once, and never more logits than said."""
    results, sizes = [], []
    model.logits.register_forward_hook(lambda _module, _inputs, out: sizes.append(len(out)))  # pyright: ignore
    for most in (1000, 40):
        monkeypatch.setattr(objectives, "MOST_LOGITS", most)
        model.zero_grad()
        loss = objective_loss(model, batch, CrossEntropy(label_smoothing=0.1))
        loss.sum.backward()
        results.append([loss.sum, *loss.shown.values(), *(p.grad for p in model.parameters())])
    assert sizes == [7, 3, 3, 1, 1, 3, 3] or sizes == [7, 3, 3, 1, 3, 3, 1]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
