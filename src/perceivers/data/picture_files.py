"""Pictures in files: .png, .jpg and whatever else pillow reads, with classes by folder."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from perceivers.data.sources import Document, check_unpacked
from perceivers.data.splits import split_named
from perceivers.picture_reading import PictureReading

__all__ = ["PICTURE_ENDINGS", "Picture", "files_as_pictures", "fitted", "without_class"]

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
PICTURE_ENDINGS += (".pbm", ".pnm", ".jfif", ".jpe", ".avif", ".jp2")

PLAIN = PictureReading()
GREY_MODES, COLOUR_MODES = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
BYTES_A_PIXEL = 12
"""Memory that a pixel takes while a picture is brought to its size."""
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that exchange rows and columns


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture, not yet read."""

    name: str
    """Its path inside what the user gave, or its place in an array."""
    split: str | None
    """Its split, where its place says it."""
    label: str | int | None
    """Its class, where that is known."""
    size: tuple[int, int]
    """Rows and columns."""
    grey: bool
    """One channel; otherwise three."""
    read: Callable[[], UInt8[np.ndarray, "rows columns channels"]]
    """Its pixels; raises ValueError if they cannot be read."""


def files_as_pictures(
    documents: Sequence[Document], *, progress: bool = False
) -> tuple[list[Picture], list[tuple[str, str]]]:
    """Look at the beginning of every file.

    The class of a picture is the topmost folder in which it lies, below those that all have in common and below
    train, validation and test; where some pictures lie in no such folder, there are no classes.

    Args:
        documents: Picture files.
        progress: Show a bar with the time left, on a terminal.

    Returns:
        Pictures; and names of files that are none, with the reason.

    Raises:
        ImportError: pillow is not installed.
    """
    _pillow()
    pictures, skipped = [], []
    classes = _classes(documents)
    bar = tqdm(documents, desc="looking", unit="picture", disable=None if progress else True)
    for document, label in zip(bar, classes, strict=True):
        try:
            size, grey = _look(document)
        except ValueError as error:
            skipped.append((document.name, str(error)))
            continue
        read = _Reader(document, grey)
        pictures.append(Picture(name=document.name, split=document.split, label=label, size=size, grey=grey, read=read))
    return pictures, skipped


def fitted(
    pixels: UInt8[np.ndarray, "rows columns channels"],
    size: tuple[int, int],
    *,
    channels: int,
    reading: PictureReading = PLAIN,
) -> UInt8[np.ndarray, "rows2 columns2 channels2"]:
    """A picture resized so that it just covers `size`, and its middle; its proportions stay.

    Args:
        pixels: One or three channels.
        size: Rows and columns.
        channels: Three repeat a single one; a single one of three is their brightness.
        reading: May choose another part of the picture, and another way to resize it.
    """
    if reading.fit == "crop":
        pixels = _middle(pixels, reading.crop)
    if pixels.shape[:2] != size:
        image_module, operations = _pillow()
        image = image_module.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        how = image_module.Resampling[reading.resample.upper()]
        if reading.fit == "cover":
            image = operations.fit(image, (size[1], size[0]), method=how)
        else:
            image = image.resize((size[1], size[0]), resample=how)
        pixels = np.asarray(image).reshape(*size, -1)
    if pixels.shape[-1] == channels:
        return pixels
    return brightness(pixels) if channels == 1 else pixels.repeat(channels, axis=-1)


def _middle(
    pixels: UInt8[np.ndarray, "rows columns channels"], shares: tuple[float, float]
) -> UInt8[np.ndarray, "rows2 columns2 channels"]:
    """The middle of a picture, as large as `shares` of its shorter side; rounded as transformers does."""
    shorter = min(pixels.shape[:2])
    kept = [max(1, int(share * shorter)) for share in shares]
    top, left = ((size - part) // 2 for size, part in zip(pixels.shape, kept, strict=False))
    return pixels[top : top + kept[0], left : left + kept[1]]


def brightness(pixels: UInt8[np.ndarray, "*shape 3"]) -> UInt8[np.ndarray, "*shape 1"]:
    """Pictures without their colours: ITU-R 601-2, rounded as Pillow does."""
    weighed = pixels.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
    return ((weighed + 0x8000) >> 16).astype(np.uint8)[..., None]


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("pictures need pillow: pip install 'perceivers[images]'") from error
    return Image, ImageOps


def without_class(documents: Sequence[Document]) -> list[str]:
    """A note where there are no classes, because pictures lie beside folders that look like some."""
    folders = [PurePosixPath(document.name).parts[:-1] for document in documents]
    depth = _class_depth(folders)
    outside = [document.name for document, parts in zip(documents, folders, strict=True) if len(parts) <= depth]
    deeper = sorted({parts[depth] for parts in folders if len(parts) > depth})
    if not outside or len(deeper) < 2:
        return []
    shown = f"{', '.join(deeper[:6])}{', ...' if len(deeper) > 6 else ''}"
    return [f"there are no classes: {outside[0]} lies in no folder of a class, others do ({shown})"]


def _classes(documents: Sequence[Document]) -> list[str | None]:
    folders = [PurePosixPath(document.name).parts[:-1] for document in documents]
    depth = _class_depth(folders)
    if any(len(parts) <= depth for parts in folders):
        return [None] * len(documents)
    return [parts[depth] for parts in folders]


def _class_depth(folders: Sequence[Sequence[str]]) -> int:
    """Above which folder names are common to all or splits; there they are classes, or some picture lies in none."""
    depth = 0
    while all(len(parts) > depth for parts in folders):
        names = {parts[depth] for parts in folders}
        splits = {split_named(name) for name in names}
        if len(names) > 1 and (None in splits or len(splits) == 1):  # a class can be called "train"
            break
        depth += 1
    return depth


def _look(document: Document) -> tuple[tuple[int, int], bool]:
    """Rows and columns of a picture as it is shown, and whether it is grey.

    Raises:
        ValueError: It is no picture, or has pixels of another kind.
    """
    with (
        _decoding(),
        _pillow()[0].open(document.file if document.member is None else BytesIO(document.read())) as image,
    ):
        check_unpacked(image.width * image.height * BYTES_A_PIXEL, document.unpacked_mb)
        if image.mode not in GREY_MODES + COLOUR_MODES:
            raise ValueError(f"pixels of mode {image.mode!r}, which need more than 8 bits; convert it to 8 bits")
        columns, rows = image.size
        if _orientation(image) in TURNED:
            if image.format == "TIFF":  # which Pillow turns by itself, some of its releases not before it is decoded
                columns, rows = _pillow()[1].exif_transpose(image).size
            else:
                columns, rows = rows, columns
        return (rows, columns), image.mode in GREY_MODES


def _orientation(image: Any) -> int:
    """How a picture is to be turned, as EXIF numbers it, as far as it is known before the pixels are decoded."""
    if image.format == "PNG" and "exif" not in image.info and _ends_with_exif(image.fp):
        image.load()  # reads what lies behind the pixels, where some tools write it
    return image.getexif().get(ORIENTATION, 1) if "exif" in image.info or image.format == "TIFF" else 1


def _ends_with_exif(file: Any) -> bool:
    """Whether one of a PNG file's chunks is EXIF; the file is left where it is."""
    place, found = file.tell(), False
    file.seek(len(b"\x89PNG\r\n\x1a\n"))
    while not found and len(head := file.read(8)) == 8:
        found = head[4:] == b"eXIf"
        file.seek(int.from_bytes(head[:4]) + 4, 1)
    file.seek(place)
    return found


@dataclass(frozen=True)
class _Reader:
    """Reads one file."""

    document: Document
    grey: bool

    def __call__(self) -> UInt8[np.ndarray, "rows columns channels"]:
        image_module, operations = _pillow()
        with _decoding(), image_module.open(BytesIO(self.document.read())) as image:
            # Transparent pixels have whatever colour the file gives them.
            upright = image if _orientation(image) == 1 else operations.exif_transpose(image)
            upright = upright.convert("L" if self.grey else "RGB")
            return np.asarray(upright).reshape(upright.height, upright.width, -1)


class _decoding:
    """What a decoder finds wrong becomes a ValueError; what it only warns of is nobody's concern.

    Pillow's own limit of pixels is off meanwhile: `_look` knows the user's.
    """

    def __enter__(self) -> None:
        self.quiet = warnings.catch_warnings()
        self.quiet.__enter__()
        warnings.simplefilter("ignore")
        self.limit, _pillow()[0].MAX_IMAGE_PIXELS = _pillow()[0].MAX_IMAGE_PIXELS, None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        _pillow()[0].MAX_IMAGE_PIXELS = self.limit
        self.quiet.__exit__(kind, error, trace)
        if isinstance(error, Exception) and not isinstance(error, ValueError):  # decoders raise all sorts of things
            raise ValueError(f"cannot be read as a picture ({error})") from error
