import torch
from torch import nn

from perceivers.nn.initial import plain_layer, scaled_linears, truncated_normal


def test_truncated_normal_is_cut_at_two() -> None:
    torch.manual_seed(0)
    x = torch.empty(200, 101)
    truncated_normal(x, std=0.5)
    assert x.abs().max() <= 1
    assert abs(x.std().item() - 0.5 * 0.8796) < 0.01


def test_scaled_linears_keep_the_variance() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(53, 211), nn.LayerNorm(211))
    scaled_linears(module)
    assert abs(module[0].weight.std().item() - 53**-0.5) < 0.005
    assert module[0].bias.abs().max() == 0
    assert (module[1].weight == 1).all()


def test_plain_layers_count_their_inputs() -> None:
    torch.manual_seed(0)
    for layer, inputs in (
        (nn.Linear(53, 211), 53),
        (nn.Conv2d(5, 101, 7, bias=False), 5 * 49),
        (nn.ConvTranspose2d(11, 101, 4), 11 * 16),
    ):
        plain_layer(layer)
        assert abs(layer.weight.std().item() / (0.8796 * inputs**-0.5) - 1) < 0.03
        assert layer.bias is None or layer.bias.abs().max() == 0
