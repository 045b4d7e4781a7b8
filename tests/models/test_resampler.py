import pytest
import torch
from torch import nn

from perceivers.models.perceiver_config import ResamplerConfig
from perceivers.models.resampler import PerceiverResampler


def resampler(**options) -> PerceiverResampler:
    torch.manual_seed(0)
    config = ResamplerConfig(**({"dim": 10, "num_latents": 3, "depth": 2, "heads": 5, "frames": 4} | options))
    model = PerceiverResampler(config).eval()
    for table in (model.latents, model.frame_positions):
        nn.init.normal_(table)
    return model


@pytest.mark.parametrize("frames", [1, 3, 4, 7])
def test_any_number_of_frames_become_as_many_tokens(frames: int) -> None:
    features = torch.randn(2, frames, 11, 10)
    tokens = resampler()(features)
    assert tokens.shape == (2, 3, 10)
    torch.testing.assert_close(resampler()(features[1:])[0], tokens[1])


def test_positions_are_learned_or_between_learned_ones() -> None:
    model = resampler()
    assert torch.equal(model.positions(3), model.frame_positions[:3])
    between = model.positions(7)
    torch.testing.assert_close(between[::2], model.frame_positions)
    torch.testing.assert_close(between[1], (model.frame_positions[0] + model.frame_positions[1]) / 2)


def test_order_matters_between_frames_only() -> None:
    model, features = resampler(), torch.randn(2, 3, 11, 10)
    tokens = model(features)
    torch.testing.assert_close(model(features[:, :, torch.randperm(11)]), tokens)
    assert not torch.allclose(model(features.flip(1)), tokens)


def test_frames_that_are_padding_change_nothing() -> None:
    model, features = resampler(), torch.randn(2, 3, 11, 10)
    mask = torch.tensor([[True, True, False]]).expand(2, -1)
    torch.testing.assert_close(model(features, mask=mask), model(features[:, :2]))


def test_every_parameter_gets_a_gradient() -> None:
    model = resampler(frames=3, qk_dim=5).train()
    model(torch.randn(2, 3, 11, 10)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_features_that_do_not_fit_say_why() -> None:
    with pytest.raises(ValueError, match="features have 9 channels, but this resampler reads 10"):
        resampler()(torch.randn(2, 3, 11, 9))
    with pytest.raises(ValueError, match=r"mask has shape \[2, 4\], but there are \[2, 3\] frames"):
        resampler()(torch.randn(2, 3, 11, 10), mask=torch.ones(2, 4, dtype=torch.bool))
