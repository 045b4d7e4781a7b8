"""What batches of pictures and of picture pairs are made of; imports no torch."""

from typing import Literal

from perceivers.records import record

__all__ = ["PictureConfig", "WarpConfig"]


@record
class PictureConfig:
    """How the pictures of a store become batches: each once an epoch, in random order.

    In training a picture is moved, turned, resized and mirrored about its centre, in one go, by bilinear
    interpolation; what comes in from outside repeats its border. In evaluation it stays as it is.
    """

    kind: Literal["pictures"] = "pictures"
    batch_size: int = 64
    """Pictures a step, over all devices together."""
    shift: int = 0
    """Training: moved by a random whole number of pixels, at most this many, along each axis."""
    rotate: float = 0.0
    """Training: turned by a random angle, at most so many degrees either way."""
    scale: float = 0.0
    """Training: made larger or smaller by a random factor, from 1 - scale to 1 + scale."""
    flip: bool = False
    """Training: mirrored left to right, every second picture at random."""
    permutation: int | None = None
    """Seed of one fixed order of all pixels, the same for every picture in training and evaluation: a model can then
    see nothing but what it learns about places. None: pixels stay where they are."""
    mean: tuple[float, ...] = (0.5,)
    """Is subtracted from pixels in 0..1, in evaluation too: one number for all channels, or one for each."""
    std: tuple[float, ...] = (0.5,)
    """They are then divided by it; 0.5 and 0.5 make -1..1."""
    hidden: float = 0.0
    """Share of a picture's pixels that a model must reconstruct without seeing them, drawn anew each time."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1 picture")
        if self.shift < 0:
            raise ValueError(f"shift={self.shift} must be 0 or more pixels; 0 is off")
        if not 0 <= self.rotate <= 180:
            raise ValueError(f"rotate={self.rotate} must lie in 0..180 degrees; 0 is off")
        if not 0 <= self.scale < 1:
            raise ValueError(f"scale={self.scale} must be a share from 0 to below 1; 0 is off, 0.1 is 0.9 to 1.1")
        if self.permutation is not None and self.permutation < 0:
            raise ValueError(f"permutation={self.permutation} must be a seed, 0 or more; None is off")
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(f"mean={self.mean} and std={self.std} must have one number for all channels, or one each")
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std} must be above 0")
        if not 0 <= self.hidden < 1:
            raise ValueError(f"hidden={self.hidden} must be a share from 0 to below 1; 0 is off")

    @property
    def moves(self) -> bool:
        """Whether training changes where things are in a picture."""
        return bool(self.shift or self.rotate or self.scale or self.flip)


@record
class WarpConfig:
    """Pairs of frames whose optical flow is known: crops of photos, and the same crops smoothly warped.

    A pair's flow is the sum of a translation, of a turn with a change of size, and of a random displacement that
    varies from place to place, mixed at random.
    """

    kind: Literal["warps"] = "warps"
    batch_size: int = 8
    """Pairs a step, over all devices together."""
    shape: tuple[int, int] = (64, 96)
    """Rows and columns of a frame."""
    mean: float = 3.0
    """Mean length of the flow, in pixels; a pair's own is drawn from half to one and a half times as much."""
    spacing: int = 24
    """Pixels between the points whose displacement is random, at least: more makes smoother flow."""
    flip: bool = True
    """Training: pairs are mirrored left to right, every second at random."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1 pair")
        if len(self.shape) != 2 or min(self.shape) < 2:
            raise ValueError(f"shape={self.shape} must be rows and columns of a frame, each at least 2")
        if self.spacing < 2:
            raise ValueError(f"spacing={self.spacing} must be at least 2 pixels")
        if not 0 < self.mean <= self.spacing / 6:
            raise ValueError(
                f"mean={self.mean} must lie above 0 and within a sixth of spacing={self.spacing}, "
                "or the flow would fold over itself; take a larger spacing"
            )
