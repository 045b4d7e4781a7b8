"""The Perceiver's encoder (Jaegle et al. 2021, https://arxiv.org/abs/2103.03206), which Perceiver IO shares.

Learned latents read an input of any length through cross-attends, and each other in blocks of self-attention layers.
Cross-attends and blocks may have the same weights, so that the model is a recurrent network over its own depth.

Letters: b batch, n latents, m tokens of the input.
"""

from collections import deque
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from perceivers.models.perceiver_config import EncoderConfig, weight_set
from perceivers.nn.blocks import CrossAttentionBlock, SelfAttentionBlock
from perceivers.nn.checks import check_tensor
from perceivers.nn.initial import scaled_linears, truncated_normal
from perceivers.nn.masks import AttentionMask


class Encoder(nn.Module):
    """Latents that have read an input.

    Source: `PerceiverEncoder` of perceiver.py (official Perceiver IO), which reads the input once.

    Args:
        config: See there.
        input_dim: Channels of the input's tokens.
    """

    def __init__(self, config: EncoderConfig, input_dim: int) -> None:
        super().__init__()
        self.config, self.input_dim = config, input_dim
        self.latents = nn.Parameter(torch.empty(config.num_latents, config.dim))
        truncated_normal(self.latents, std=config.init_std)
        cross_sets = 1 + weight_set(config.cross_attends - 1, config.cross_sharing)
        block_sets = 1 + weight_set(config.blocks - 1, config.block_sharing)
        self.cross_attends = nn.ModuleList(cross_attend(config, input_dim) for _ in range(cross_sets))
        self.blocks = nn.ModuleList(
            nn.ModuleList(self_attend(config) for _ in range(config.depth)) for _ in range(block_sets)
        )
        scaled_linears(self)

    def forward(
        self, tokens: Float[Tensor, "b m input_dim"], *, mask: Bool[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n dim"]:
        """The latents after everything; `mask` says which tokens may be read.

        Raises:
            ValueError: Tokens or a mask of another shape or kind.
        """
        return deque(self.steps(tokens, mask=mask), maxlen=1).pop()[1]

    def steps(
        self, tokens: Float[Tensor, "b m input_dim"], *, mask: Bool[Tensor, "b m"] | None = None
    ) -> Iterator[tuple[str, Float[Tensor, "b n dim"]]]:
        """The latents after each cross-attend, named "cross_attend", and each block, named "block"."""
        config = self.config
        check_tensor("tokens", tokens, "real numbers", (None, None, self.input_dim))
        if mask is not None:
            check_tensor("mask", mask, "truth values", (len(tokens), tokens.shape[1]))
        latents = self.latents.expand(len(tokens), -1, -1)
        read: dict[int, tuple[Tensor, Tensor]] = {}
        for i in range(config.blocks):
            if i < config.cross_attends:
                own = weight_set(i, config.cross_sharing)
                cross: CrossAttentionBlock = self.cross_attends[own]  # pyright: ignore[reportAssignmentType]
                if own not in read:  # the input stays the same, so equal weights make equal keys and values
                    read[own] = cross.keys_values(tokens, queries=config.num_latents)
                latents = cross.read(latents, *read[own], mask=AttentionMask(keys=mask))
                yield "cross_attend", latents
            layers: nn.ModuleList = self.blocks[weight_set(i, config.block_sharing)]  # pyright: ignore[reportAssignmentType]
            for layer in layers:
                latents = layer(latents, mask=AttentionMask())
            yield "block", latents


def cross_attend(config: EncoderConfig, input_dim: int) -> CrossAttentionBlock:
    """A cross-attend of the encoder that `config` describes."""
    qk_dim, value_dim = config.cross_dims(input_dim)
    return CrossAttentionBlock(
        config.dim,
        input_dim,
        heads=config.cross_heads,
        inner_dim=qk_dim,
        value_dim=value_dim,
        zero_empty=config.empty == "zeros",
        widening=config.cross_widening,
        activation=config.activation,
        dropout=config.dropout,
        query_residual=config.query_residual,
        backend=config.backend,
    )


def self_attend(config: EncoderConfig) -> SelfAttentionBlock:
    """A self-attention layer of the encoder that `config` describes."""
    return SelfAttentionBlock(
        config.dim,
        heads=config.heads,
        inner_dim=config.qk_dim,
        widening=config.widening,
        activation=config.activation,
        dropout=config.dropout,
        backend=config.backend,
    )
