"""A decoder as one would write it by hand, with room for all keys and values set aside at the start.

What a Perceiver AR's sampling has to be compared with: packages may take longer than they must. As wide and as deep as
the models beside it; rotary positions, PyTorch's fused attention, no dropout, random weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layer(nn.Module):
    """Attention to all that is kept, and a feed-forward of four times the width."""

    def __init__(self, dim: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads, self.norms = heads, nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.kept = torch.randn(2, 1, heads, context, dim // heads)  # keys and values

    def forward(self, x: Tensor, turns: Tensor, start: int) -> Tensor:
        """Read the tokens from position `start` on."""
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        end = start + x.shape[1]
        self.kept[0, :, :, start:end], self.kept[1, :, :, start:end] = turned(k, turns), v
        kept = self.kept[:, :, :, :end]
        read = F.scaled_dot_product_attention(turned(q, turns), kept[0], kept[1], is_causal=start == 0)
        x = x + self.out(read.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class PlainDecoder(nn.Module):
    """Logits of what follows; reads many tokens at once at the start, and one after the other later."""

    def __init__(self, *, context: int, dim: int, depth: int, heads: int, vocab_size: int = 259) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(vocab_size, dim), nn.LayerNorm(dim)
        self.layers = nn.ModuleList([Layer(dim, heads, context) for _ in range(depth)])
        frequencies = 10_000 ** -(torch.arange(0, dim // heads, 2) * heads / dim)
        angles = torch.arange(context)[:, None] * frequencies
        self.turns = torch.polar(torch.ones_like(angles), angles)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, start: int = 0) -> Tensor:
        """Logits [1, tokens, vocab] of what follows each of `tokens`, which stand from `start` on.

        Later than at the start, one token at a time.
        """
        x, turns = self.embedding(tokens), self.turns[start : start + tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, turns, start)
        return self.norm(x) @ self.embedding.weight.T


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """Rotary positions: pairs of channels as complex numbers."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turns).flatten(-2)
