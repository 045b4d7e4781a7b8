"""Pictures and films, channels last, cut in pieces and put together again.

Letters: b batch, t frames, h rows, w columns, c channels.
"""

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def same_padding(size: int, *, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """What XLA's and TensorFlow's SAME adds before and after an axis, so that it leaves ceil(size / stride) steps.

    PyTorch's padding is equal on both sides; here the odd one comes after.
    """
    steps = -(-size // stride)
    total = max((steps - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def pad_same(
    x: Float[Tensor, "b c h w"],
    *,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    value: float = 0.0,
) -> Float[Tensor, "b c h2 w2"]:
    """Pad channels-first pictures for a convolution or a pooling without padding of its own."""
    rows, columns = (
        same_padding(size, kernel=k, stride=s, dilation=d)
        for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    )
    return F.pad(x, (*columns, *rows), value=value)


def space_to_depth(
    x: Float[Tensor, "b *grid c"], *, patch: int, time_patch: int = 1
) -> Float[Tensor, "b *smaller_grid more_channels"]:
    """Cut pictures [b, h, w, c] or films [b, t, h, w, c] in patches, whose values become channels."""
    if x.ndim == 4:
        return rearrange(x, "b (h dh) (w dw) c -> b h w (dh dw c)", dh=patch, dw=patch)
    return rearrange(x, "b (t dt) (h dh) (w dw) c -> b t h w (dt dh dw c)", dt=time_patch, dh=patch, dw=patch)


def depth_to_space(
    x: Float[Tensor, "b *grid c"], *, patch: int, time_patch: int = 1
) -> Float[Tensor, "b *larger_grid fewer_channels"]:
    """Undo `space_to_depth`."""
    if x.ndim == 4:
        return rearrange(x, "b h w (dh dw c) -> b (h dh) (w dw) c", dh=patch, dw=patch)
    return rearrange(x, "b t h w (dt dh dw c) -> b (t dt) (h dh) (w dw) c", dt=time_patch, dh=patch, dw=patch)


def neighbourhoods(
    x: Float[Tensor, "b h w c"],
    *,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    padded: bool = True,
) -> Float[Tensor, "b h2 w2 kc"]:
    """The window around each pixel as its channels, row by row, its channels last; zeros beyond the border.

    Args:
        x: Pictures.
        kernel: Rows and columns of a window.
        stride: Between windows.
        dilation: Between the pixels of a window.
        padded: As many windows as steps fit in the picture; without it only windows that lie inside.
    """
    channels, first = x.shape[-1], x.movedim(-1, 1)
    if padded:
        first = pad_same(first, kernel=kernel, stride=stride, dilation=dilation)
    rows = (first.shape[2] - (kernel[0] - 1) * dilation[0] - 1) // stride[0] + 1
    windows = F.unfold(first, kernel, dilation=dilation, stride=stride)
    return rearrange(windows, "b (c k) (h w) -> b h w (k c)", c=channels, h=rows)
