"""Linear layers that are also fast for one row when compiled, where all the work is to read the weights."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear`, with the product of one row that compiles best for a CPU."""

    def forward(self, input: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """The usual product with the weights, plus the bias where there is one."""
        one_row = input.numel() == self.in_features and input.device.type == "cpu" and not torch.is_grad_enabled()
        if one_row and torch.compiler.is_compiling():  # F.linear would be called, and read weights at half the speed
            product = _read_once(self.weight, input)
            product = product if self.bias is None else product + self.bias
            return product.to(input.dtype).view(*input.shape[:-1], -1)
        return F.linear(input, self.weight, self.bias)


class Int8Linear(nn.Module):
    """A linear layer whose weights are kept as 8-bit integers, with a float scale for each output; for inference.

    Weights are rounded to the nearest of 255 steps between plus and minus their output's largest magnitude. One row
    reads a quarter of float32's bytes; more rows are multiplied with the weights as they were before rounding, nearly.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        wide = linear.weight.detach().float()  # float16 has no 1e-12
        largest = wide.abs().amax(1, keepdim=True).clamp(min=1e-12)
        self.register_buffer("weight", (wide / largest * 127).round().to(torch.int8))
        self.register_buffer("scale", (largest[:, 0] / 127).to(linear.weight.dtype))
        # Zeros where there is none, as one vector is little beside a matrix.
        bias = self.scale.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach().clone()
        self.register_buffer("bias", bias)

    def forward(self, input: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """The product with the rounded weights, plus the bias."""
        # PyTorch's 8-bit product reads beyond rows whose length is no multiple of 16.
        if input.numel() == self.weight.shape[1] and input.device.type == "cpu" and self.weight.shape[1] % 16 == 0:
            if torch.compiler.is_compiling():
                product = _read_once(self.weight, input)
            else:
                row = input.reshape(1, -1).bfloat16()
                product = torch.ops.aten._weight_int8pack_mm(
                    row, self.weight, torch.ones_like(self.scale, dtype=row.dtype)
                )[0]
            return torch.addcmul(self.bias, product.to(self.bias.dtype), self.scale).view(*input.shape[:-1], -1)
        return F.linear(input, self.weight.to(input.dtype) * self.scale[:, None], self.bias)


def _read_once(weight: Shaped[Tensor, "outputs inputs"], row: Float[Tensor, "*ones inputs"]) -> Tensor:
    """Product with one row as a sum, which the compiler makes one pass over the weights at the speed of memory."""
    # `as_strided` makes the row a buffer: what comes before, such as a norm, would be computed again for every output.
    row = row.float().contiguous().as_strided((weight.shape[1],), (1,))
    return (weight.float() * row).sum(-1)
