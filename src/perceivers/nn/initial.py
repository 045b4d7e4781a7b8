"""First weights as Haiku draws them; Perceiver, Perceiver IO and their kin start from these."""

import torch
from torch import Tensor, nn

# The standard deviation of a unit normal cut at two.
CUT_STD = 0.87962566103423978


@torch.no_grad()
def truncated_normal(tensor: Tensor, *, std: float) -> Tensor:
    """Fill with a normal of `std`, cut at two of them; a tensor without numbers stays as it is."""
    # trunc_normal_ looks at what it has drawn, which a tensor on the device "meta" does not have.
    return tensor if tensor.is_meta else nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)


def variance_scaling(tensor: Tensor, inputs: int) -> Tensor:
    """Fill with a normal cut at two standard deviations, whose variance is then 1 / `inputs`."""
    return truncated_normal(tensor, std=inputs**-0.5 / CUT_STD)


@torch.no_grad()
def scaled_linears(module: nn.Module) -> None:
    """Every linear layer inside: variance 1 / inputs after the cut, biases 0 (attention and feed-forward layers)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            variance_scaling(layer.weight, layer.in_features)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@torch.no_grad()
def plain_layer(layer: nn.Linear | nn.modules.conv._ConvNd) -> None:
    """One layer by Haiku's default: variance 1 / inputs before the cut, biases 0 (projections and convolutions)."""
    inputs = layer.weight[0].numel() if not getattr(layer, "transposed", False) else layer.weight[:, 0].numel()
    truncated_normal(layer.weight, std=inputs**-0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
