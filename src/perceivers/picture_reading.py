"""What is between a picture file and a model's numbers, and what its numbers are called. Imports no torch."""

from typing import Literal

from perceivers.records import record

__all__ = ["PictureReading"]


@record
class PictureReading:
    """How a model wants pictures; the defaults are what training here does."""

    classes: tuple[str, ...] | None = None
    """Names of the classes 0, 1, ...; None where nobody named them."""
    mean: tuple[float, ...] = (0.5,)
    """Is subtracted from pixels in 0..1: one number for all channels, or one for each."""
    std: tuple[float, ...] = (0.5,)
    """They are then divided by it; 0.5 and 0.5 make -1..1."""
    fit: Literal["cover", "crop", "stretch"] = "cover"
    """What of a picture is resized: as much of its middle as has the right proportions, a `crop` of its middle, or all
    of it."""
    crop: tuple[float, float] = (1.0, 1.0)
    """Rows and columns of the crop, as shares of the picture's shorter side."""
    resample: Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"] = "bicubic"
    """How it is resized, in Pillow's words."""
    permutation: int | None = None
    """Seed of the fixed order in which pixels are given; None: each where it is."""
    flow_pixels: float = 1.0
    """What the model's optical flow is multiplied with to be pixels."""

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"mean={self.mean} and std={self.std} must have one number for all channels, or one each")
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std} must be above 0")
        if not all(0 < share <= 1 for share in self.crop):
            raise ValueError(f"crop={self.crop} must be shares of the shorter side, above 0 and at most 1")
        if self.permutation is not None and self.permutation < 0:
            raise ValueError(f"permutation={self.permutation} must be a seed, 0 or more")
        if self.flow_pixels <= 0:
            raise ValueError(f"flow_pixels={self.flow_pixels} must be above 0")
