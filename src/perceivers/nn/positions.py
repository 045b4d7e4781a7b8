"""Positions: rotations of queries and keys, and tables that are added to embeddings.

Letters: b batch, n positions, a axes of a position, h heads, d channels of a head, c rotated channels.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def rotary_frequencies(
    channels: int, max_wavelength: int, device: torch.device | None = None
) -> Float[Tensor, " bands"]:
    """Radians a step turns each pair of channels by; float64, made on `device`, as a copy would wait for a GPU.

    As in the reference: exponents run from 0 to exactly 1, so the slowest pair turns by 1 / `max_wavelength`
    (`_make_rotation_matrices`, perceiver_ar_model.py); the usual formula stops one band short of it.
    """
    bands = channels // 2
    # The reference computes (2 / channels) * linspace(0, bands, bands); of one band it is 0 here too.
    return max_wavelength ** -torch.linspace(0, 1, bands, dtype=torch.float64, device=device)


@dataclass(frozen=True)
class Rotation:
    """Turns the first `c` channels of chosen heads by an angle that grows with position (RoFormer, arXiv:2104.09864).

    Neighbouring channels (0, 1), (2, 3), ... form the pairs. Made in at least float32, whatever the model's precision.
    """

    cos: Float[Tensor, "#batch 1 n c"]
    """Of each channel's angle: both channels of a pair have the same."""
    sin: Float[Tensor, "#batch 1 n c"]
    """The same, negative for a pair's first channel."""
    heads: tuple[int, ...] | None = None
    """Heads that turn; None for all."""

    @classmethod
    def at(
        cls,
        positions: Int[Tensor, "#batch n"],
        *,
        channels: int,
        max_wavelength: int,
        heads: tuple[int, ...] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "Rotation":
        """The rotation for `positions`, which may be negative.

        Args:
            positions: In tokens.
            channels: Rotated channels of a head, even.
            max_wavelength: Tokens after which the slowest pair has turned by one radian.
            heads: Heads that turn; None for all.
            dtype: Of the model; angles are float64 and their cosines at least float32.
        """
        return cls.by(
            positions, rotary_frequencies(channels, max_wavelength, positions.device), heads=heads, dtype=dtype
        )

    @classmethod
    def by(
        cls,
        positions: Int[Tensor, "#batch n"],
        frequencies: Float[Tensor, " bands"],
        *,
        heads: tuple[int, ...] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "Rotation":
        """The rotation for `positions` with any `frequencies`: radians a step turns each pair of channels by."""
        angles = positions[:, None, :, None].double() * frequencies
        kept = torch.promote_types(dtype, torch.float32)
        sin = angles.sin()
        signed = torch.stack([-sin, sin], -1).flatten(-2)
        return cls(angles.cos().repeat_interleave(2, -1).to(kept), signed.to(kept), heads)

    def __call__(self, x: Float[Tensor, "batch h n d"]) -> Float[Tensor, "batch h n d"]:
        """Turn `x`."""
        if self.heads is not None:
            turned = self._turn(x[:, list(self.heads)])
            return x.index_copy(1, torch.tensor(self.heads, dtype=torch.long, device=x.device), turned)
        return self._turn(x)

    def columns(self, columns: slice) -> "Rotation":
        """For some of the positions."""
        return Rotation(self.cos[:, :, columns], self.sin[:, :, columns], self.heads)

    def back(self) -> "Rotation":
        """Undoes this one; a rotation's gradient turns so."""
        return Rotation(self.cos, -self.sin, self.heads)

    def _turn(self, x: Tensor) -> Tensor:
        if self.cos.shape[-1] == 0 or x.shape[1] == 0:
            return x
        turned: Tensor = _Turn.apply(x, self.cos, self.sin)  # pyright: ignore[reportAssignmentType]
        return turned


class _Turn(torch.autograd.Function):
    """A rotation, whose gradient turns back; autograd's own would keep both products and fill zeros around them."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        channels = cos.shape[-1]
        if torch.compiler.is_compiling():  # compilers know no complex numbers
            turning = x[..., :channels]
            swapped = turning.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
            turned = (turning * cos).addcmul_(swapped, sin).to(x.dtype)
            return turned if channels == x.shape[-1] else torch.cat([turned, x[..., channels:]], -1)
        out = x.new_empty(x.shape)
        out[..., channels:] = x[..., channels:]
        turning = x[..., :channels].to(cos.dtype, copy=True, memory_format=torch.contiguous_format)
        torch.view_as_complex(turning.unflatten(-1, (-1, 2))).mul_(torch.complex(cos[..., ::2], sin[..., 1::2]))
        out[..., :channels] = turning
        return out

    @staticmethod
    def backward(ctx, grad):
        cos, sin = ctx.saved_tensors
        return _Turn.apply(grad, cos, -sin), None, None


def sinusoidal_table(
    size: int, dim: int, *, min_scale: float = 1.0, max_scale: float = 10_000.0
) -> Float[Tensor, "size dim"]:
    """Sines in the first half of the channels, cosines in the second; an odd last channel stays 0.

    As in the reference: frequencies are spaced over `dim // 2 - 1` steps (`generate_sinusoidal_features`), and the
    table is computed in float64 and kept in float32.
    """
    bands = dim // 2
    step = -math.log(max_scale / min_scale) / max(bands - 1, 1)
    frequencies = min_scale * torch.exp(torch.arange(bands, dtype=torch.float64) * step)
    angles = torch.arange(size, dtype=torch.float64)[:, None] * frequencies
    table = torch.zeros(size, dim)
    table[:, :bands], table[:, bands : 2 * bands] = angles.sin(), angles.cos()
    return table


def fourier_features(
    coordinates: Float[Tensor, "*batch n axes"],
    *,
    bands: int,
    max_resolution: int | tuple[int, ...],
    concat: bool,
    cosines: bool = True,
    spacing: torch.dtype = torch.float64,
) -> Float[Tensor, "*batch n features"]:
    """Sines, then cosines, of linearly spaced frequencies up to Nyquist's for `max_resolution` samples.

    Args:
        coordinates: In -1..1.
        bands: Frequencies an axis.
        max_resolution: Samples of each axis, or of all.
        concat: Put the coordinates themselves in front.
        cosines: Without them only the sines.
        spacing: What frequencies are spaced in before they are rounded.

    Source: `generate_fourier_features` (perceiver_ar_model.py; Perceiver, arXiv:2103.03206, section 3.2).
    """
    axes = coordinates.shape[-1]
    sizes = (max_resolution,) * axes if isinstance(max_resolution, int) else max_resolution
    if len(sizes) != axes:
        raise ValueError(f"max_resolution={sizes} is for {len(sizes)} axes, but positions have {axes}")
    # Rounded once: a linspace in float32 is off by an ulp, which shows at thousands of samples.
    frequencies = torch.stack([torch.linspace(1.0, size / 2, bands, dtype=spacing) for size in sizes])
    # As in the reference: times the frequency first, and pi after.
    angles = math.pi * (coordinates[..., None] * frequencies.to(coordinates)).flatten(-2)
    features = [angles.sin(), angles.cos()] if cosines else [angles.sin()]
    return torch.cat([coordinates, *features] if concat else features, -1)


def linear_coordinates(shape: tuple[int, ...]) -> Float[Tensor, "*shape axes"]:
    """Coordinates of an n-dimensional grid, each axis from -1 to 1, both ends included."""
    axes = [torch.linspace(-1.0, 1.0, size) for size in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def fourier_table(size: int, dim: int) -> Float[Tensor, "size dim"]:
    """Fourier features of `size` evenly spaced positions; `dim` must be even."""
    return fourier_features(linear_coordinates((size,)), bands=dim // 2, max_resolution=size, concat=False)


class PositionTables(nn.Module):
    """One table an axis; the rows of a position's axes are summed.

    Args:
        tables: Rows for positions 0, 1, 2, ... of each axis.
        learned: Train them.
    """

    def __init__(self, tables: list[Float[Tensor, "_ dim"]], *, learned: bool) -> None:
        super().__init__()
        for axis, table in enumerate(tables):
            if learned:
                self.register_parameter(f"axis{axis}", nn.Parameter(table))
            else:
                self.register_buffer(f"axis{axis}", table)

    def table(self, axis: int) -> Float[Tensor, "size dim"]:
        """The table of one axis."""
        return getattr(self, f"axis{axis}")

    def forward(self, positions: Int[Tensor, "batch n axes"]) -> Float[Tensor, "batch n dim"]:
        """Sum of the rows at `positions`, whose axes belong to the first tables.

        Raises:
            ValueError: A position has no row (on a GPU, PyTorch stops with an assertion of its own).
        """
        axes = range(positions.shape[-1])
        try:
            rows = [nn.functional.embedding(positions[..., axis], self.table(axis)) for axis in axes]
        except IndexError as error:
            low, high = positions.flatten(0, 1).amin(0).tolist(), positions.flatten(0, 1).amax(0).tolist()
            last = [len(self.table(axis)) - 1 for axis in axes]
            raise ValueError(
                f"positions reach from {low} to {high}, but the position tables have rows 0 to {last}; "
                "give the model larger tables, or shorter documents"
            ) from error
        return torch.stack(rows).sum(0) if len(rows) > 1 else rows[0]
