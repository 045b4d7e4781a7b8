"""What a token of one modality holds, for each kind of input. Imports no torch."""

from typing import Literal

from perceivers.records import not_negative, record

Shape = tuple[int, ...]


def positive(record: object, *names: str) -> None:
    """Check that the fields called `names` are at least 1, all axes of a shape included."""
    for name in names:
        value = getattr(record, name)
        if any(size < 1 for size in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"{name}={value} must be at least 1")


def picture_axes(shape: Shape) -> tuple[int, int, int]:
    """Frames (1 for a picture), rows and columns of (rows, columns, channels) or (frames, rows, columns, channels)."""
    if len(shape) not in (3, 4):
        raise ValueError(
            f"shape={shape} has {len(shape)} axes; give (rows, columns, channels) for pictures or "
            "(frames, rows, columns, channels) for films"
        )
    frames, rows, columns = (1, *shape[:2]) if len(shape) == 3 else shape[:3]
    return frames, rows, columns


def _strided(shape: Shape, stride: int, time_stride: int = 1) -> Shape:
    """Grid of every `stride`-th row and column and every `time_stride`-th frame."""
    frames, rows, columns = picture_axes(shape)
    grid = (-(-rows // stride), -(-columns // stride))
    return grid if len(shape) == 3 else (-(-frames // time_stride), *grid)


def check_patches(shape: Shape, patch: int, time_patch: int = 1) -> None:
    """Check that patches fill a picture or film exactly."""
    frames, rows, columns = picture_axes(shape)
    for name, size, piece in (("frames", frames, time_patch), ("rows", rows, patch), ("columns", columns, patch)):
        if size % piece:
            raise ValueError(
                f"{size} {name} are {size // piece} patches of {piece} and {size % piece} more; crop or pad the input "
                f"to {size - size % piece or piece} or {size - size % piece + piece}, or choose another patch"
            )


@record
class PixelFeatures:
    """Pixels as they are."""

    kind: Literal["pixels"] = "pixels"
    shape: Shape = (224, 224, 3)
    """Rows, columns, channels; with frames in front for films."""
    stride: int = 1
    """Take every so many rows and columns."""
    time_stride: int = 1
    """Take every so many frames."""

    def __post_init__(self) -> None:
        positive(self, "shape", "stride", "time_stride")
        picture_axes(self.shape)

    @property
    def grid(self) -> Shape:
        """Tokens along each axis."""
        return _strided(self.shape, self.stride, self.time_stride)

    @property
    def dim(self) -> int:
        """Channels of a token."""
        return self.shape[-1]


@record
class PatchFeatures:
    """Patches in space and time, whose values are channels, then perhaps a linear layer."""

    kind: Literal["patches"] = "patches"
    shape: Shape = (224, 224, 3)
    """Rows, columns, channels; with frames in front for films."""
    patch: int = 4
    """Rows and columns of a patch."""
    time_patch: int = 1
    """Frames of a patch; where all frames are one patch the time axis disappears."""
    channels: int | None = None
    """Channels after a linear layer; None for no such layer."""
    normalize: bool = False
    """Bring the values of each patch to mean 0 and variance 1 first: how bright it is, and how rich in contrast, does
    not count then."""

    def __post_init__(self) -> None:
        positive(self, "shape", "patch", "time_patch")
        if self.channels is not None:
            positive(self, "channels")
        check_patches(self.shape, self.patch, self.time_patch)

    @property
    def grid(self) -> Shape:
        """Tokens along each axis."""
        grid = _strided(self.shape, self.patch, self.time_patch)
        return grid[1:] if len(grid) == 3 and grid[0] == 1 else grid

    @property
    def patch_dim(self) -> int:
        """Values of a patch."""
        return self.patch**2 * self.shape[-1] * (self.time_patch if len(self.shape) == 4 else 1)

    @property
    def dim(self) -> int:
        """Channels of a token."""
        return self.patch_dim if self.channels is None else self.channels


@record
class Conv1x1Features:
    """A linear layer on each pixel, or on every few."""

    kind: Literal["conv1x1"] = "conv1x1"
    shape: Shape = (224, 224, 3)
    """Rows, columns, channels; with frames in front for films."""
    channels: int = 256
    """Channels after the layer."""
    stride: int = 1
    """Take every so many rows and columns."""

    def __post_init__(self) -> None:
        positive(self, "shape", "channels", "stride")
        picture_axes(self.shape)

    @property
    def grid(self) -> Shape:
        """Tokens along each axis."""
        return _strided(self.shape, self.stride)

    @property
    def dim(self) -> int:
        """Channels of a token."""
        return self.channels


@record
class ConvFeatures:
    """Stages of convolution (7 x 7, stride 2), batch norm, ReLU and max-pooling (3 x 3, stride 2), frame by frame."""

    kind: Literal["conv"] = "conv"
    shape: Shape = (224, 224, 3)
    """Rows, columns, channels; with frames in front for films."""
    channels: int = 64
    """Channels after each convolution."""
    stages: int = 1
    """Stages, each of which leaves a quarter of the rows and columns."""
    batch_norm: bool = True
    """Normalise after the convolutions; running averages are used in evaluation."""
    padding: Literal["same", "convolutions"] = "same"
    """Where zeros are added: "same" as XLA does, 224 rows become 112 and then 56. "convolutions" as in transformers:
    3 pixels all around before a convolution and none before pooling, 224 rows become 112 and then 55."""

    def __post_init__(self) -> None:
        positive(self, "shape", "channels", "stages")
        if min(self.grid) < 1:
            raise ValueError(f"shape={self.shape} leaves nothing after {self.stages} stages; take larger pictures")

    @property
    def grid(self) -> Shape:
        """Tokens along each axis."""
        shape = self.shape
        for _ in range(self.stages):
            shape = (*_strided(shape, 2), shape[-1])
            if self.padding == "same":
                shape = (*_strided(shape, 2), shape[-1])
            else:  # windows of 3 that lie inside
                shape = (*shape[:-3], (shape[-3] - 1) // 2, (shape[-2] - 1) // 2, shape[-1])
        return shape[:-1]

    @property
    def dim(self) -> int:
        """Channels of a token."""
        return self.channels


@record
class FlowFeatures:
    """Two frames: the 3 x 3 pixels around each pixel in both, then a linear layer."""

    kind: Literal["flow"] = "flow"
    shape: Shape = (2, 368, 496, 3)
    """Frames (2), rows, columns, channels."""
    channels: int = 64
    """Channels after the linear layer."""

    def __post_init__(self) -> None:
        positive(self, "shape", "channels")
        if len(self.shape) != 4 or self.shape[0] != 2:
            raise ValueError(f"shape={self.shape} must be (2, rows, columns, channels): flow leads from frame to frame")

    @property
    def grid(self) -> Shape:
        """Tokens along each axis."""
        return self.shape[1:3]

    @property
    def patch_dim(self) -> int:
        """Values around a pixel, in both frames."""
        return 2 * 9 * self.shape[-1]

    @property
    def dim(self) -> int:
        """Channels of a token."""
        return self.channels


@record
class AudioFeatures:
    """Raw samples, some to a token."""

    kind: Literal["audio"] = "audio"
    samples: int = 30720
    """Samples of each channel."""
    samples_per_patch: int = 16
    """Samples of a token."""
    channels: int = 1
    """Channels of the recording."""
    tokens: Literal["moments", "numbers"] = "moments"
    """What `samples_per_patch` counts: "moments", at which a token has all channels; or, as in the reference,
    "numbers": those of all channels at a moment, then those of the next, so that two channels make twice as many
    tokens."""

    def __post_init__(self) -> None:
        positive(self, "samples", "samples_per_patch", "channels")
        if rest := self.counted % self.samples_per_patch:
            raise ValueError(
                f"{self.counted} samples are {self.counted // self.samples_per_patch} patches of "
                f"{self.samples_per_patch} and {rest} more; cut them to {self.counted - rest}"
            )

    @property
    def counted(self) -> int:
        """Samples, those of all channels where tokens count numbers."""
        return self.samples * (self.channels if self.tokens == "numbers" else 1)

    @property
    def shape(self) -> Shape:
        """Of a recording."""
        return (self.samples, self.channels)

    @property
    def grid(self) -> Shape:
        """Tokens."""
        return (self.counted // self.samples_per_patch,)

    @property
    def dim(self) -> int:
        """Channels of a token."""
        return self.samples_per_patch * (self.channels if self.tokens == "moments" else 1)


@record
class MelFeatures:
    """Log-mel spectrogram of raw samples: one token for each frame and mel band."""

    kind: Literal["mel"] = "mel"
    samples: int = 30720
    """Samples of a recording of one channel."""
    sample_rate: int = 48000
    """Samples a second."""
    window: int = 1024
    """Samples of a frame."""
    hop: int = 480
    """Samples from one frame to the next."""
    bands: int = 128
    """Mel bands, from 0 to half the sample rate."""

    def __post_init__(self) -> None:
        positive(self, "samples", "sample_rate", "window", "hop", "bands")
        if self.samples < self.window:
            raise ValueError(f"{self.samples} samples are fewer than one window of {self.window}; shorten the window")

    @property
    def shape(self) -> Shape:
        """Of a recording."""
        return (self.samples, 1)

    @property
    def grid(self) -> Shape:
        """Frames that lie inside the recording, and bands."""
        return ((self.samples - self.window) // self.hop + 1, self.bands)

    @property
    def dim(self) -> int:
        """Channels of a token."""
        return 1


@record
class TokenFeatures:
    """Embeddings of token ids; the table is there for tied outputs too."""

    kind: Literal["tokens"] = "tokens"
    vocab_size: int = 262
    """Token ids: for bytes PAD 0, BOS 1, EOS 2, MASK 3, CLS 4, SEP 5, bytes from 6."""
    seq_len: int = 2048
    """Length of every input, padding included."""
    dim: int = 768
    """Channels of a token."""
    init_std: float = 1.0
    """Of the first embeddings. Positions that are added to them start at a size of their own."""
    window: int = 1
    """Tokens whose embeddings a convolution puts together, the token itself in their middle; 1 for no convolution."""

    def __post_init__(self) -> None:
        positive(self, "vocab_size", "seq_len", "dim", "window")
        not_negative(self, "init_std")
        if self.window % 2 == 0:
            raise ValueError(f"window={self.window} must be odd: as many tokens before each token as after it")

    @property
    def shape(self) -> Shape:
        """Of a row of ids."""
        return (self.seq_len,)

    @property
    def grid(self) -> Shape:
        """Tokens."""
        return (self.seq_len,)


@record
class PointFeatures:
    """Points that carry their coordinates, in -1..1, as their first channels, and features in the others."""

    kind: Literal["points"] = "points"
    points: int = 2048
    """Points of an input."""
    axes: int = 3
    """Coordinates of a point."""
    channels: int = 0
    """Features of a point."""

    def __post_init__(self) -> None:
        positive(self, "points", "axes")
        if self.channels < 0:
            raise ValueError(f"channels={self.channels} must be at least 0")

    @property
    def shape(self) -> Shape:
        """Of a cloud of points."""
        return (self.points, self.axes + self.channels)

    @property
    def grid(self) -> Shape:
        """Tokens."""
        return (self.points,)

    @property
    def dim(self) -> int:
        """Channels of a token."""
        return self.channels


@record
class VectorFeatures:
    """One vector, such as a one-hot label, as one token; or several, which are tokens as they are."""

    kind: Literal["vector"] = "vector"
    dim: int = 700
    """Channels."""
    vectors: int | None = None
    """Vectors of an input; None for one, without an axis of vectors."""

    def __post_init__(self) -> None:
        positive(self, "dim", *(["vectors"] if self.vectors is not None else []))

    @property
    def shape(self) -> Shape:
        """Of a vector, or of several."""
        return (self.dim,) if self.vectors is None else (self.vectors, self.dim)

    @property
    def grid(self) -> Shape:
        """Tokens."""
        return (self.vectors or 1,)


Features = (
    PixelFeatures
    | PatchFeatures
    | Conv1x1Features
    | ConvFeatures
    | FlowFeatures
    | AudioFeatures
    | MelFeatures
    | TokenFeatures
    | PointFeatures
    | VectorFeatures
)
