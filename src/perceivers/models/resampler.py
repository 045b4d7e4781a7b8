"""Perceiver Resampler (Flamingo, Alayrac et al. 2022, https://arxiv.org/abs/2204.14198, section 2.1 and figure 5).

Learned latents read the features of a picture, or of any number of frames, and become a fixed number of tokens. In each
layer they read the features and themselves at once.

Letters: b batch, t frames, s features of a frame, n latents.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from perceivers.models.perceiver_config import ResamplerConfig
from perceivers.nn.blocks import CrossAttentionBlock
from perceivers.nn.checks import check_kind, check_tensor
from perceivers.nn.initial import scaled_linears, truncated_normal
from perceivers.nn.masks import AttentionMask


class PerceiverResampler(nn.Module):
    """Tokens from frames.

    Differs from the paper: it does not say how features are normalised; here features and latents share a layer norm
    before the keys and values.
    """

    def __init__(self, config: ResamplerConfig) -> None:
        super().__init__()
        self.config = config
        self.latents = nn.Parameter(torch.empty(config.num_latents, config.dim))
        self.frame_positions = nn.Parameter(torch.empty(config.frames, config.dim))
        self.layers = nn.ModuleList(
            CrossAttentionBlock(
                config.dim,
                config.dim,
                heads=config.heads,
                inner_dim=config.dim if config.qk_dim is None else config.qk_dim,
                widening=config.widening,
                activation=config.activation,
                backend=config.backend,
            )
            for _ in range(config.depth)
        )
        scaled_linears(self)
        for table in (self.latents, self.frame_positions):
            truncated_normal(table, std=config.init_std)

    def forward(
        self, features: Float[Tensor, "b t s dim"], *, mask: Bool[Tensor, "_ _"] | None = None
    ) -> Float[Tensor, "b n dim"]:
        """The tokens.

        Args:
            features: Of each frame; a picture is one frame.
            mask: Real frames [b, t]; None where all are.

        Raises:
            ValueError: Features of another width or kind, or a mask of another shape or kind.
        """
        batch, frames, size, dim = check_tensor("features", features, "real numbers", (None, None, None, None)).shape
        if dim != self.config.dim:
            raise ValueError(f"features have {dim} channels, but this resampler reads {self.config.dim}; project them")
        if mask is not None:
            check_kind("mask", mask, "truth values")
        if mask is not None and mask.shape != (batch, frames):
            raise ValueError(f"mask has shape {list(mask.shape)}, but there are {[batch, frames]} frames")
        context = (features + self.positions(frames)[:, None]).flatten(1, 2)
        latents = self.latents.expand(batch, -1, -1)
        keys = None
        if mask is not None:
            own = mask.new_ones(batch, len(self.latents))
            keys = torch.cat([mask.repeat_interleave(size, 1), own], 1)
        for layer in self.layers:
            latents = layer(latents, torch.cat([context, latents], 1), mask=AttentionMask(keys=keys))
        return latents

    def positions(self, frames: int) -> Float[Tensor, "t dim"]:
        """One vector a frame: the learned ones, linearly interpolated where there are more frames."""
        table = self.frame_positions
        if frames <= len(table):
            return table[:frames]
        return F.interpolate(table.T[None], size=frames, mode="linear", align_corners=True)[0].T
