"""What tokens of one modality hold: each module turns an input into a grid of features, channels last.

Letters: b batch, t frames, h rows, w columns, c channels.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from perceivers.models.feature_config import (
    AudioFeatures,
    Conv1x1Features,
    ConvFeatures,
    Features,
    FlowFeatures,
    MelFeatures,
    PatchFeatures,
    PixelFeatures,
    PointFeatures,
    TokenFeatures,
    VectorFeatures,
)
from perceivers.models.mel import LogMel
from perceivers.nn.images import neighbourhoods, pad_same, space_to_depth
from perceivers.nn.initial import plain_layer, truncated_normal
from perceivers.nn.linear import Linear


def build_features(config: Features) -> nn.Module:
    """The module that `config` describes."""
    match config:
        case PixelFeatures():
            return Pixels(config.stride, config.time_stride)
        case PatchFeatures():
            return Patches(config)
        case Conv1x1Features():
            return Conv1x1(config)
        case ConvFeatures():
            return ConvStages(config)
        case FlowFeatures():
            return FramePairs(config)
        case AudioFeatures():
            return AudioPatches(config)
        case MelFeatures():
            return LogMel(sample_rate=config.sample_rate, window=config.window, hop=config.hop, bands=config.bands)
        case TokenFeatures():
            return TokenEmbedding(config)
        case PointFeatures():
            return PointChannels(config.axes)
        case VectorFeatures():
            return Vectors(config)


class Pixels(nn.Module):
    """Every `stride`-th pixel of every `time_stride`-th frame."""

    def __init__(self, stride: int, time_stride: int = 1) -> None:
        super().__init__()
        self.stride, self.time_stride = stride, time_stride

    def forward(self, x: Float[Tensor, "b *grid c"]) -> Float[Tensor, "b *smaller_grid c"]:
        """Leave the others out."""
        if x.ndim == 5:
            x = x[:, :: self.time_stride]
        return x[..., :: self.stride, :: self.stride, :]


class Patches(nn.Module):
    """Patches in space and time, and perhaps a linear layer."""

    def __init__(self, config: PatchFeatures) -> None:
        super().__init__()
        self.config = config
        self.linear = None if config.channels is None else Linear(config.patch_dim, config.channels)
        if self.linear is not None:
            plain_layer(self.linear)

    def forward(self, x: Float[Tensor, "b *grid c"]) -> Float[Tensor, "b *smaller_grid dim"]:
        """Cut."""
        x = space_to_depth(x, patch=self.config.patch, time_patch=self.config.time_patch)
        # As in the reference: one patch of time is no axis.
        if x.ndim == 5 and x.shape[1] == 1:
            x = x[:, 0]
        if self.config.normalize:
            x = F.layer_norm(x, x.shape[-1:])
        return x if self.linear is None else self.linear(x)


class Conv1x1(nn.Module):
    """A linear layer on every `stride`-th pixel."""

    def __init__(self, config: Conv1x1Features) -> None:
        super().__init__()
        self.pixels = Pixels(config.stride)
        self.linear = Linear(config.shape[-1], config.channels)
        plain_layer(self.linear)

    def forward(self, x: Float[Tensor, "b *grid c"]) -> Float[Tensor, "b *smaller_grid dim"]:
        """Project pixels."""
        return self.linear(self.pixels(x))


class ConvStages(nn.Module):
    """Convolution, batch norm, ReLU, max-pooling; frame by frame.

    Differs from the reference in training: running averages are not debiased, and take the unbiased variance.
    """

    def __init__(self, config: ConvFeatures) -> None:
        super().__init__()
        self.padding = config.padding
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        for stage in range(config.stages):
            inputs = config.shape[-1] if stage == 0 else config.channels
            conv = nn.Conv2d(inputs, config.channels, 7, stride=2, bias=False)
            plain_layer(conv)
            self.convs.append(conv)
            self.norms.append(nn.BatchNorm2d(config.channels) if config.batch_norm else nn.Identity())

    def forward(self, x: Float[Tensor, "b *grid c"]) -> Float[Tensor, "b *smaller_grid dim"]:
        """A quarter of the rows and columns for each stage."""
        batch = x.shape[:-3]
        x = x.flatten(0, -4).movedim(-1, 1)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            same = self.padding == "same"
            x = norm(conv(pad_same(x, kernel=(7, 7), stride=(2, 2)) if same else F.pad(x, (3, 3, 3, 3)))).relu()
            # Padding is below everything that ReLU leaves.
            x = F.max_pool2d(pad_same(x, kernel=(3, 3), stride=(2, 2), value=-torch.inf) if same else x, 3, stride=2)
        return x.movedim(1, -1).unflatten(0, batch)


class FramePairs(nn.Module):
    """The 3 x 3 pixels around each pixel in two frames, projected."""

    def __init__(self, config: FlowFeatures) -> None:
        super().__init__()
        self.linear = Linear(config.patch_dim, config.channels)
        plain_layer(self.linear)

    def forward(self, x: Float[Tensor, "b 2 h w c"]) -> Float[Tensor, "b h w dim"]:
        """Neighbourhoods of the first frame, then those of the second, projected."""
        around = neighbourhoods(x.flatten(0, 1), kernel=(3, 3))
        return self.linear(rearrange(around, "(b t) h w c -> b h w (t c)", t=2))


class AudioPatches(nn.Module):
    """So many samples in a row."""

    def __init__(self, config: AudioFeatures) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Float[Tensor, "b samples c"]) -> Float[Tensor, "b patches dim"]:
        """Cut; channels of one moment stand beside each other, in one token where it counts moments."""
        return x.reshape(len(x), *self.config.grid, self.config.dim)


class TokenEmbedding(nn.Module):
    """A vector for each token, perhaps of those around it too; beyond the ends stand zeros."""

    def __init__(self, config: TokenFeatures) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(config.vocab_size, config.dim))
        truncated_normal(self.table, std=config.init_std)
        self.conv = None
        if config.window > 1:
            self.conv = nn.Conv1d(config.dim, config.dim, config.window, padding=config.window // 2)
            plain_layer(self.conv)

    def forward(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b n dim"]:
        """Look up.

        Raises:
            ValueError: A token is not in the vocabulary (on a GPU, PyTorch stops with an assertion of its own).
        """
        try:
            embedded = F.embedding(tokens, self.table)
        except IndexError as error:
            raise ValueError(
                f"token ids reach from {tokens.min().item()} to {tokens.max().item()}, but the model has "
                f"0 to {len(self.table) - 1}; was the text encoded for this model?"
            ) from error
        return embedded if self.conv is None else self.conv(embedded.mT).mT


class PointChannels(nn.Module):
    """What points hold besides their coordinates."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n dim"]:
        """The channels after the coordinates."""
        return x[..., self.axes :]


class Vectors(nn.Module):
    """One vector as a sequence of one, or several as they are."""

    def __init__(self, config: VectorFeatures) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Float[Tensor, "b *n c"]) -> Float[Tensor, "b n c"]:
        """Add the axis that a single vector has not."""
        return x[:, None] if self.config.vectors is None else x
