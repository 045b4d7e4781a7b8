"""Optical flow of pictures larger than a model was made for: overlapping tiles, blended.

Source: `compute_grid_indices` and `compute_optical_flow` of the official optical-flow notebook (Perceiver IO).
"""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn


def tile_origins(size: tuple[int, int], tile: tuple[int, int], *, overlap: int) -> list[tuple[int, int]]:
    """First row and column of each tile, row by row.

    As in the reference: tiles are set `tile - overlap` apart, as many as begin inside the picture, and the last of
    each row and column is moved to the border, where it may coincide with its neighbour and count twice.
    Differs from the reference: a tile before the last that would reach beyond the border, where the official code
    fails, is moved there too.

    Args:
        size: Rows and columns of the picture.
        tile: Rows and columns of a tile.
        overlap: Rows and columns that neighbours share at least.

    Raises:
        ValueError: The picture is smaller than a tile, or tiles overlap entirely.
    """
    if not 0 <= overlap < min(tile):
        raise ValueError(f"overlap={overlap} must lie in 0..{min(tile) - 1} for tiles of {tile[0]} x {tile[1]}")
    if size[0] < tile[0] or size[1] < tile[1]:
        raise ValueError(
            f"pictures of {size[0]} x {size[1]} are smaller than a tile of {tile[0]} x {tile[1]}; enlarge or pad them"
        )
    axes = []
    for length, piece in zip(size, tile, strict=True):
        starts = [min(start, length - piece) for start in range(0, length, piece - overlap)]
        axes.append([*starts[:-1], length - piece])
    return list(itertools.product(*axes))


def tile_weights(tile: tuple[int, int]) -> Float[Tensor, "rows columns"]:
    """How much each pixel of a tile counts: its distance from the nearest border, 1 at the border."""
    rows, columns = (torch.minimum(torch.arange(1, size + 1), torch.arange(size, 0, -1)) for size in tile)
    return torch.minimum(rows[:, None], columns).float()


@torch.no_grad()
def tiled_flow(
    model: nn.Module, frames: Float[Tensor, "b 2 h w c"], *, tile: tuple[int, int], overlap: int = 20
) -> Float[Tensor, "b h w 2"]:
    """Flow from the first frame to the second, in pixels (columns, rows), of pictures of any size.

    Args:
        model: Flow [b, rows, columns, 2] of frames [b, 2, rows, columns, c] of `tile`'s size.
        frames: Values as the model was trained on (for the published one -1..1).
        tile: Rows and columns of the model's pictures.
        overlap: Rows and columns that neighbouring tiles share at least.

    Raises:
        ValueError: The pictures are smaller than a tile, or tiles overlap entirely.
    """
    batch, _, height, width, _ = frames.shape
    rows, columns = tile
    weights = tile_weights(tile).to(frames)[..., None]
    total = frames.new_zeros(batch, height, width, 2)
    weight = frames.new_zeros(height, width, 1)
    for y, x in tile_origins((height, width), tile, overlap=overlap):
        flow = model(frames[:, :, y : y + rows, x : x + columns])
        total[:, y : y + rows, x : x + columns] += flow * weights
        weight[y : y + rows, x : x + columns] += weights
    return total / weight
