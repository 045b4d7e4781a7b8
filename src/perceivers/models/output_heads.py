"""What results of queries become: logits, samples, pictures, films.

Letters: b batch, q queries, t frames, h rows, w columns, c channels.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perceivers.models.output_config import (
    AudioHead,
    ClassHead,
    GridHead,
    Head,
    LinearHead,
    PatchHead,
    TiedHead,
    UpsampleHead,
)
from perceivers.nn.images import depth_to_space
from perceivers.nn.initial import plain_layer
from perceivers.nn.linear import Linear


def build_head(config: Head | None, dim: int) -> nn.Module | None:
    """The module that `config` describes, for results of `dim` channels; None for no head."""
    match config:
        case None:
            return None
        case ClassHead(classes=classes):
            return OneResult(dim, classes)
        case LinearHead(channels=channels):
            return plain_linear(dim, channels)
        case AudioHead(samples_per_patch=samples):
            return ToSamples(dim, samples)
        case GridHead(shape=shape, scale=scale):
            return ToGrid(shape, scale)
        case PatchHead():
            return ToPatches(config)
        case UpsampleHead(time_factor=1):
            return UpsampledPictures(config, dim)
        case UpsampleHead():
            return UpsampledFilm(config, dim)
        case TiedHead(vocab_size=vocab_size):
            return TiedLogits(vocab_size)


def plain_linear(inputs: int, outputs: int) -> Linear:
    """A linear layer with Haiku's default weights."""
    layer = Linear(inputs, outputs)
    plain_layer(layer)
    return layer


class OneResult(nn.Module):
    """The first query's result, perhaps after a linear layer."""

    def __init__(self, dim: int, classes: int | None) -> None:
        super().__init__()
        self.linear = None if classes is None else plain_linear(dim, classes)

    def forward(self, x: Float[Tensor, "b q c"]) -> Float[Tensor, "b classes"]:
        """Logits, say."""
        return x[:, 0] if self.linear is None else self.linear(x[:, 0])


class ToSamples(nn.Module):
    """Samples of patches in a row."""

    def __init__(self, dim: int, samples_per_patch: int) -> None:
        super().__init__()
        self.linear = plain_linear(dim, samples_per_patch)

    def forward(self, x: Float[Tensor, "b q c"]) -> Float[Tensor, "b samples"]:
        """A recording."""
        return self.linear(x).flatten(1)


class ToGrid(nn.Module):
    """Results as a grid, scaled."""

    def __init__(self, shape: tuple[int, ...], scale: float = 1.0) -> None:
        super().__init__()
        self.shape, self.scale = shape, scale

    def forward(self, x: Float[Tensor, "b q c"]) -> Float[Tensor, "b *grid c"]:
        """A picture, say."""
        return as_grid(x, self.shape) * self.scale


class ToPatches(nn.Module):
    """Results whose channels are patches."""

    def __init__(self, config: PatchHead) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Float[Tensor, "b q c"]) -> Float[Tensor, "b *grid pixel"]:
        """A picture or film."""
        config = self.config
        patches = as_grid(x, config.shape)
        return depth_to_space(patches, patch=config.patch, time_patch=config.time_patch)


class UpsampledPictures(nn.Module):
    """Four times the rows and columns, frame by frame."""

    def __init__(self, config: UpsampleHead, dim: int) -> None:
        super().__init__()
        self.shape = config.shape
        middle = 2 * config.channels
        self.convs = nn.ModuleList(
            nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
            for inputs, outputs in ((dim, middle), (middle, config.channels))
        )
        for conv in self.convs:
            plain_layer(conv)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Float[Tensor, "b q c"]) -> Float[Tensor, "b *grid channels"]:
        """Pictures or films."""
        x = as_grid(x, self.shape)
        batch = x.shape[:-3]
        x = x.flatten(0, -4).movedim(-1, 1)
        x = self.convs[1](self.convs[0](x).relu())
        return x.movedim(1, -1).unflatten(0, batch)


class UpsampledFilm(nn.Module):
    """Transposed convolutions over time, rows and columns; an axis doubles until it is large enough."""

    def __init__(self, config: UpsampleHead, dim: int) -> None:
        super().__init__()
        self.shape = config.shape
        time_stages, stages = config.time_factor.bit_length() - 1, config.factor.bit_length() - 1
        count = max(time_stages, stages)
        self.convs = nn.ModuleList()
        for i in range(count):
            channels = config.channels * 2 ** (count - 1 - i)
            time_stride, stride = 1 + int(i < time_stages), 1 + int(i < stages)
            conv = nn.ConvTranspose3d(dim, channels, 4, stride=(time_stride, stride, stride), padding=1)
            plain_layer(conv)
            self.convs.append(conv)
            dim = channels

    def forward(self, x: Float[Tensor, "b q c"]) -> Float[Tensor, "b *grid channels"]:
        """A film."""
        x = as_grid(x, self.shape).movedim(-1, 1)
        for i, conv in enumerate(self.convs):
            # SAME with kernel 4 and stride 1 pads 2 before and 1 after; PyTorch's result has one step more at the end.
            strides: tuple[int, int, int] = conv.stride  # pyright: ignore[reportAssignmentType]
            wanted = [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
            x = conv(x)[:, :, : wanted[0], : wanted[1], : wanted[2]]
            if i < len(self.convs) - 1:
                x = x.relu()
        return x.movedim(1, -1)


class TiedLogits(nn.Module):
    """Logits of tokens from the table that embeds them."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, x: Float[Tensor, "b q c"], table: Float[Tensor, "vocab c"] | None) -> Float[Tensor, "b q vocab"]:
        """Products with the table's rows, plus the bias."""
        if table is None:
            raise ValueError("a tied head needs an input with an embedding table (TokenFeatures)")
        return nn.functional.linear(x, table, self.bias)


def as_grid(x: Float[Tensor, "b q c"], shape: tuple[int, ...]) -> Float[Tensor, "b *grid c"]:
    """Results of all points of a grid in its shape.

    Raises:
        ValueError: There are fewer or more.
    """
    if x.shape[1] != torch.Size(shape).numel():
        raise ValueError(
            f"{x.shape[1]} results do not fill a grid of {list(shape)}, which has {torch.Size(shape).numel()}; "
            "decode all points, or use a head without a shape"
        )
    return x.unflatten(1, shape)
