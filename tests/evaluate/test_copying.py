import numpy as np
import pytest
import torch
from torch import Tensor, nn

from perceivers.evaluate.copying import _windows, score_copying
from perceivers.models.build import build
from perceivers.models.perceiver_ar_config import PerceiverARConfig

LENGTH = 22


class Oracle(nn.Module):
    """Knows that a token at position p is mirrored at length + 1 - p; else says EOS. Wrong at the positions `wrong`."""

    def __init__(self, config: PerceiverARConfig, wrong: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.config, self.wrong = config, wrong
        self.device_of = nn.Parameter(torch.zeros(1))

    def forward(
        self, tokens: Tensor, *, positions: Tensor, lengths: Tensor | None = None, num_latents: int = 1
    ) -> Tensor:
        assert not self.training
        logits = torch.zeros(len(tokens), num_latents, self.config.vocab_size)
        columns = range(tokens.shape[1] - num_latents, tokens.shape[1])
        for latent, column in enumerate(columns):
            place = int(positions[0, column, 0]) + 1  # of the target, counted from 1
            mirror = LENGTH + 1 - place
            answer = tokens[:, mirror - 1] if 1 < mirror <= LENGTH // 2 else torch.ones(len(tokens), dtype=torch.long)
            if place in self.wrong:
                answer = (answer + 1) % self.config.vocab_size
            logits[range(len(tokens)), latent, answer] = 20.0
        return logits


@pytest.mark.parametrize("num_latents", [1, 2, 3, 5, 7, 11, 13, 22])
def test_every_mirrored_token_is_scored_once(num_latents: int) -> None:
    seen = np.zeros(LENGTH, int)
    for start, stop, targets in _windows(LENGTH, num_latents):
        assert start == 0
        seen[stop - targets : stop] += 1
    assert seen.tolist() == [0] * 11 + [1] * 11


@pytest.mark.parametrize("num_latents", [3, 11, 22])
def test_who_knows_the_rule_is_right(num_latents: int) -> None:
    config = PerceiverARConfig(max_seq_len=LENGTH, num_latents=num_latents, dim=4, heads=1, cross_heads=1)
    result = score_copying(Oracle(config).train(), LENGTH, count=5, split="test", precision="float32", batch_tokens=50)
    assert (result.accuracy, result.perfect, result.tokens, result.sequences) == (1.0, 5, 5 * 11, 5)
    assert result.nats_per_token < 1e-5


def test_mistakes_are_counted() -> None:
    config = PerceiverARConfig(max_seq_len=LENGTH, num_latents=4, dim=4, heads=1, cross_heads=1)
    result = score_copying(Oracle(config, wrong=(12, 17)), LENGTH, count=3, split="test", precision="float32")
    assert (result.correct, result.tokens, result.perfect) == (3 * 9, 3 * 11, 0)
    assert result.nats_per_token == pytest.approx(2 / 11 * 20, rel=1e-3)


def test_fresh_model_guesses() -> None:
    config = PerceiverARConfig(max_seq_len=LENGTH, num_latents=4, dim=8, depth=1, heads=2, cross_heads=2)
    model = build(config).train()
    result = score_copying(model, LENGTH, count=2, split="validation", precision="float32", progress=True)
    assert result.nats_per_token == pytest.approx(np.log(259), rel=1e-4)
    assert model.training


def test_longer_than_the_model() -> None:
    config = PerceiverARConfig(max_seq_len=LENGTH - 2, num_latents=4, dim=8, depth=1, heads=2, cross_heads=2)
    with pytest.raises(ValueError, match="have 21 inputs, this model takes 20: choose a length of at most 21"):
        score_copying(build(config), LENGTH, count=1, split="test")
