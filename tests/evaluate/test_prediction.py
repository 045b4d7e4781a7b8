from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from perceivers.data.batch import TokenBatch
from perceivers.evaluate.prediction import cross_entropy, predict
from perceivers.models.build import build
from perceivers.models.perceiver_ar_config import PerceiverARConfig


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    config = PerceiverARConfig(
        vocab_size=13, max_seq_len=11, num_latents=5, dim=14, depth=2, heads=7, cross_heads=2, zero_logits=False
    )
    return build(config).double().eval()


def ragged(*lengths: int) -> TokenBatch:
    """Rows of random tokens."""
    tokens = torch.randint(3, 13, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    positions = (torch.arange(1, max(lengths) + 1) * real)[..., None]
    return TokenBatch(tokens * real, positions, torch.tensor(lengths))


def test_every_latent_predicts_the_next_token(model: nn.Module) -> None:
    batch = ragged(8)
    logits, (labels, mask, _) = predict(model, batch, num_latents=3)
    assert labels.tolist() == [batch.tokens[0, -3:].tolist()]
    assert mask.tolist() == [[True, True, True]]
    expected = model(batch.tokens[:, :-1], positions=batch.positions[:, :-1], num_latents=3)
    assert torch.equal(logits, expected)


def test_a_row_of_a_ragged_batch_is_that_row_alone(model: nn.Module) -> None:
    lengths = (12, 2, 7, 4, 9)
    batch = ragged(*lengths)
    logits, (labels, mask, _) = predict(model, batch, num_latents=5)
    assert mask.sum(1).tolist() == [5, 1, 5, 3, 5]
    for row, length in enumerate(lengths):
        alone = TokenBatch(
            batch.tokens[row : row + 1, :length], batch.positions[row : row + 1, :length], batch.lengths[row : row + 1]
        )
        expected, targets = predict(model, alone, num_latents=5)
        assert torch.equal(labels[row][mask[row]], targets.labels[0])
        torch.testing.assert_close(logits[row][mask[row]], expected[0], rtol=1e-9, atol=1e-12)


def test_targets_and_weights_of_their_own(model: nn.Module) -> None:
    batch = ragged(8, 5)
    wanted, counted = batch.tokens.clone(), torch.arange(16.0).reshape(2, 8)
    wanted[0, 7], wanted[1, 4] = 11, 12
    asked = replace(batch, targets=wanted, weights=counted).to("cpu")
    logits, (labels, mask, weights) = predict(model, asked, num_latents=3)
    torch.testing.assert_close(logits, predict(model, batch, num_latents=3)[0])  # the inputs are what they were
    assert mask.all()
    assert labels.tolist() == [[*batch.tokens[0, 5:7].tolist(), 11], [*batch.tokens[1, 2:4].tolist(), 12]]
    assert weights is not None
    assert weights.tolist() == [[5, 6, 7], [10, 11, 12]]


def test_no_more_latents_than_inputs(model: nn.Module) -> None:
    logits, (labels, mask, _) = predict(model, ragged(3, 2), num_latents=5)
    assert logits.shape == (2, 2, 13)
    assert mask.tolist() == [[True, True], [False, True]]
    assert labels.shape == (2, 2)


def test_cost_of_a_prediction() -> None:
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(15).view(3, 5) % 7
    loss, z = cross_entropy(logits, labels)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(3, 5)
    torch.testing.assert_close(loss, expected)
    assert not z.any()


def test_z_loss_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]]).log()
    loss, z = cross_entropy(logits, torch.tensor([2]), z_loss=0.5)
    log_z = torch.tensor(6.0).log()
    torch.testing.assert_close(z, (0.5 * log_z**2)[None])
    torch.testing.assert_close(loss, (log_z - torch.tensor(3.0).log() + 0.5 * log_z**2)[None])


def test_smoothed_targets() -> None:
    """The distance (KL divergence) to a target with 0.7 on the label and 0.1 on each of three others."""
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0])
    target = torch.full((5, 4), 0.1).double().scatter(1, labels[:, None], 0.7)
    loss, _ = cross_entropy(logits, labels, label_smoothing=0.3)
    torch.testing.assert_close(loss, F.kl_div(logits.log_softmax(-1), target, reduction="none").sum(-1))
    perfect, _ = cross_entropy(target.log(), labels, label_smoothing=0.3)
    torch.testing.assert_close(perfect, torch.zeros(5).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "kept"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_half_precision_is_not_summed_in(given: torch.dtype, kept: torch.dtype) -> None:
    loss, z = cross_entropy(torch.zeros(3, 7, dtype=given), torch.zeros(3, dtype=torch.long), z_loss=0.1)
    assert loss.dtype == z.dtype == kept
    torch.testing.assert_close(loss - z, torch.full((3,), 7.0, dtype=kept).log())
