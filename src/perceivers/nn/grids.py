"""Positions of a grid of any number of axes, as channels.

Letters: n points, a axes.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from perceivers.nn.initial import plain_layer, truncated_normal
from perceivers.nn.linear import Linear
from perceivers.nn.positions import fourier_features


def grid_coordinates(
    shape: tuple[int, ...], like: Float[Tensor, "*any"], *, spacing: torch.dtype = torch.float64
) -> Float[Tensor, "n a"]:
    """Coordinates of all points, row by row, each axis from -1 to 1, both ends included; an axis of one has -1.

    They are made in `spacing` and rounded once.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    axes = [torch.linspace(-1.0, 1.0, size, dtype=spacing, device=like.device) for size in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2).to(dtype)


def point_coordinates(
    points: Int[Tensor, " n"], shape: tuple[int, ...], like: Float[Tensor, "*any"]
) -> Float[Tensor, "n a"]:
    """Coordinates of chosen points of the grid.

    As in the reference: point i of an axis of size s is at -1 + 2 i / s, so that the last one is short of 1 and chosen
    points are not quite where `grid_coordinates` has them (`decoder_query`, perceiver.py).
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    indices = torch.stack(torch.unravel_index(points, shape), -1)
    sizes = torch.tensor(shape, device=points.device)
    return -1 + 2 * indices.to(dtype) / sizes


class FourierGrid(nn.Module):
    """Fourier features of a grid's coordinates, or of coordinates that are given.

    Args:
        shape: Points an axis.
        bands: Frequencies an axis.
        max_resolution: Samples an axis, for the highest frequency; None for `shape`.
        cosines: Sines and cosines, or sines alone.
        coordinates: Put the coordinates themselves in front.
        spacing: What coordinates and frequencies are spaced in before they are rounded.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        bands: int,
        max_resolution: tuple[int, ...] | None = None,
        cosines: bool = True,
        coordinates: bool = True,
        spacing: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.spacing = spacing
        self.shape, self.bands, self.cosines, self.coordinates = shape, bands, cosines, coordinates
        self.max_resolution = shape if max_resolution is None else max_resolution
        axes = len(self.max_resolution)
        self.dim = axes * (int(coordinates) + bands * (1 + int(cosines)))

    def forward(
        self,
        like: Float[Tensor, "batch *any"],
        *,
        points: Int[Tensor, " n"] | None = None,
        coordinates: Float[Tensor, "batch n a"] | None = None,
    ) -> Float[Tensor, "batch n dim"]:
        """Features of all points, of chosen `points`, or of `coordinates` in -1..1, for each row of `like`."""
        if coordinates is not None:
            wide = coordinates.to(torch.promote_types(coordinates.dtype, torch.float32))
            features = self._features(wide, self.max_resolution, concat=self.coordinates)
        elif points is not None:
            place = point_coordinates(points, self.shape, like)
            features = self._features(place, self.max_resolution, concat=self.coordinates)
        else:
            features = self._of_all(like)
        return features.to(like.dtype).expand(len(like), -1, -1)

    def _of_all(self, like: Tensor) -> Float[Tensor, "n dim"]:
        """Features of all points, each axis computed once and repeated along the others."""
        parts: list[list[Tensor]] = []
        for axis, (size, resolution) in enumerate(zip(self.shape, self.max_resolution, strict=True)):
            place = grid_coordinates((size,), like, spacing=self.spacing)
            waves = self._features(place, (resolution,), concat=False)
            along = [size if i == axis else 1 for i in range(len(self.shape))]
            columns = [place] * self.coordinates + list(waves.split(self.bands, -1))
            parts.append([column.view(*along, -1).expand(*self.shape, -1) for column in columns])
        # Coordinates of all axes, then sines of all, then cosines.
        return torch.cat([column for same in zip(*parts, strict=True) for column in same], -1).flatten(0, -2)

    def _features(self, place: Tensor, max_resolution: tuple[int, ...], *, concat: bool) -> Tensor:
        how = {"bands": self.bands, "cosines": self.cosines, "spacing": self.spacing}
        return fourier_features(place, max_resolution=max_resolution, concat=concat, **how)


class LearnedGrid(nn.Module):
    """A learned vector for each point of a grid, row by row.

    Args:
        shape: Points an axis.
        dim: Channels.
        std: Of the first vectors.
    """

    def __init__(self, shape: tuple[int, ...], dim: int, *, std: float) -> None:
        super().__init__()
        self.dim = dim
        self.table = nn.Parameter(torch.empty(math.prod(shape), dim))
        truncated_normal(self.table, std=std)

    def forward(
        self,
        like: Float[Tensor, "batch *any"],
        *,
        points: Int[Tensor, " n"] | None = None,
        coordinates: Float[Tensor, "batch n a"] | None = None,
    ) -> Float[Tensor, "batch n dim"]:
        """The vectors of all points, or of chosen `points`, for each row of `like`.

        Differs from the reference: it ignores `points` and given coordinates here.

        Raises:
            ValueError: Coordinates are given: a table has none.
        """
        if coordinates is not None:
            raise ValueError("positions were given, but this model learned a table of them; leave them out")
        rows = self.table if points is None else self.table[points]
        return rows.expand(len(like), -1, -1)


class ProjectedGrid(nn.Module):
    """Positions, a linear layer, and residual linear layers with ReLU after all but the last.

    Args:
        base: What makes the positions.
        project_dim: Channels after the linear layer; None for no such layer.
        layers: Residual layers.
    """

    def __init__(self, base: FourierGrid | LearnedGrid, *, project_dim: int | None, layers: int) -> None:
        super().__init__()
        self.base = base
        self.dim = base.dim if project_dim is None else project_dim
        self.project = None if project_dim is None else Linear(base.dim, project_dim)
        self.layers = nn.ModuleList(Linear(self.dim, self.dim) for _ in range(layers))
        for layer in [self.project, *self.layers]:
            if isinstance(layer, Linear):
                plain_layer(layer)

    def forward(
        self,
        like: Float[Tensor, "batch *any"],
        *,
        points: Int[Tensor, " n"] | None = None,
        coordinates: Float[Tensor, "batch n a"] | None = None,
    ) -> Float[Tensor, "batch n dim"]:
        """As those of `base`."""
        x = self.base(like, points=points, coordinates=coordinates)
        if self.project is not None:
            x = self.project(x)
        for i, layer in enumerate(self.layers):
            x = x + layer(x)
            if i < len(self.layers) - 1:
                x = x.relu()
        return x
