"""What a Perceiver reads: features of one modality and their positions, or several modalities. Imports no torch."""

import math
from typing import Literal

from perceivers.models.feature_config import Features, PointFeatures, Shape, positive
from perceivers.records import not_negative, record


@record
class FourierPositions:
    """Sines and cosines of the coordinates, which reach from -1 to 1 along each axis."""

    kind: Literal["fourier"] = "fourier"
    bands: int = 64
    """Frequencies an axis."""
    max_resolution: Shape | None = None
    """Samples an axis that the highest frequency can tell apart; None = the grid's."""
    cosines: bool = True
    """Sines and cosines, or sines alone."""
    coordinates: bool = True
    """Put the coordinates themselves in front."""
    spacing: Literal["float64", "float32"] = "float64"
    """What coordinates and frequencies are spaced in before they are rounded to float32. As in transformers: "float32"
    leaves some an ulp off, which the sine of a high frequency shows: up to 1e-3 for 30720 samples."""
    project_dim: int | None = None
    """Channels after a linear layer; None for no such layer."""
    layers: int = 0
    """Residual linear layers after it."""

    def __post_init__(self) -> None:
        positive(self, "bands", *(["project_dim"] if self.project_dim is not None else []))
        if self.max_resolution is not None:
            positive(self, "max_resolution")

    def dim(self, axes: int) -> int:
        """Channels of the positions of a grid of `axes` axes."""
        raw = axes * (int(self.coordinates) + self.bands * (1 + int(self.cosines)))
        return raw if self.project_dim is None else self.project_dim

    def check(self, axes: int) -> None:
        """Check that there is a resolution for each axis."""
        if self.max_resolution is not None and len(self.max_resolution) != axes:
            raise ValueError(
                f"max_resolution={self.max_resolution} is for {len(self.max_resolution)} axes, the grid has {axes}"
            )


@record
class LearnedPositions:
    """A learned vector for each point of the grid, which fixes the grid."""

    kind: Literal["learned"] = "learned"
    channels: int = 128
    """Channels of the vectors."""
    init_std: float = 0.02
    """Of the first vectors."""
    project_dim: int | None = None
    """Channels after a linear layer; None for no such layer."""
    layers: int = 0
    """Residual linear layers after it."""

    def __post_init__(self) -> None:
        positive(self, "channels", *(["project_dim"] if self.project_dim is not None else []))
        not_negative(self, "init_std", "layers")

    def dim(self, axes: int) -> int:
        """Channels of the positions, whatever the number of `axes`."""
        return self.channels if self.project_dim is None else self.project_dim

    def check(self, axes: int) -> None:
        """Any number of axes will do."""


@record
class InputConfig:
    """One modality: features and positions."""

    kind: Literal["input"] = "input"
    features: Features
    """What a token holds."""
    positions: FourierPositions | LearnedPositions | None = None
    """Where it is; None where that does not matter."""
    combine: Literal["concat", "add"] = "concat"
    """Positions are further channels, or are added."""

    def __post_init__(self) -> None:
        axes = self.axes
        if isinstance(self.features, PointFeatures):
            if not isinstance(self.positions, FourierPositions) or self.positions.max_resolution is None:
                raise ValueError("points have no grid: give them FourierPositions with a max_resolution for each axis")
            if self.combine != "concat":
                raise ValueError(f"combine={self.combine!r}: positions of points are further channels, 'concat'")
        if self.positions is None:
            return
        self.positions.check(axes)
        if self.combine == "add" and (width := self.positions.dim(axes)) != self.features.dim:
            raise ValueError(
                f"positions of {width} channels can't be added to features of {self.features.dim}; "
                "set project_dim, or combine='concat'"
            )

    @property
    def axes(self) -> int:
        """Axes of a position."""
        return self.features.axes if isinstance(self.features, PointFeatures) else len(self.features.grid)

    @property
    def tokens(self) -> int:
        """Tokens of an input."""
        return math.prod(self.features.grid)

    @property
    def dim(self) -> int:
        """Channels of a token with its position."""
        if self.positions is None or self.combine == "add":
            return self.features.dim
        return self.features.dim + self.positions.dim(self.axes)


@record
class Modality:
    """A named part of a multimodal input."""

    name: str
    """Under this name it is given."""
    input: InputConfig
    """What it is."""
    mask_share: float | None = None
    """Share of its tokens that are hidden behind a learned token, in evaluation too; None for no such token."""

    def __post_init__(self) -> None:
        if self.mask_share is not None and not 0 <= self.mask_share <= 1:
            raise ValueError(f"mask_share={self.mask_share} of {self.name} must lie in [0, 1]")


def check_names(names: list[str]) -> None:
    """Check that there are modalities, each once."""
    if not names:
        raise ValueError("there are no modalities; give at least one")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"modality {twice[0]!r} is there {names.count(twice[0])} times; give each a name of its own")


@record
class MultimodalInputConfig:
    """Several modalities as one sequence, made equally wide by learned vectors, which also tell them apart."""

    kind: Literal["multimodal"] = "multimodal"
    modalities: tuple[Modality, ...]
    """They stand in the order of their names."""
    padding: int = 4
    """Learned channels of the widest modality; others get more."""

    def __post_init__(self) -> None:
        check_names([modality.name for modality in self.modalities])
        positive(self, "padding")

    @property
    def tokens(self) -> int:
        """Tokens of all modalities."""
        return sum(modality.input.tokens for modality in self.modalities)

    @property
    def dim(self) -> int:
        """Channels of a token."""
        return max(modality.input.dim for modality in self.modalities) + self.padding
