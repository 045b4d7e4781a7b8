"""preprocessor_config.json and the class names of a Perceiver in `transformers`.

Checked against `PerceiverImageProcessor` of transformers, see tests/parity/test_huggingface.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from perceivers.convert.huggingface_config import FLOW_SCALE
from perceivers.hub import PREPROCESSOR
from perceivers.models.feature_config import Conv1x1Features, ConvFeatures, PixelFeatures
from perceivers.models.input_config import InputConfig
from perceivers.models.output_config import ClassHead, GridHead, QueryOutputConfig
from perceivers.models.perceiver_config import PerceiverIOConfig
from perceivers.picture_reading import PictureReading
from perceivers.records import parse_json

__all__ = ["class_names", "entries_of_reading", "picture_size", "processor_of_reading", "reading_from_huggingface"]

PROCESSORS = ("PerceiverImageProcessor", "PerceiverImageProcessorFast", "PerceiverImageProcessorPil")
OLD_PROCESSORS = ("PerceiverFeatureExtractor",)
FLOW_PIXELS = "flow_pixels"
"""Entry of a config.json written here: what makes that model's flow pixels, where it is not the official factor."""
PIXELS = 20 / 100
"""What the official notebook multiplies optical flow with, which makes it pixels."""

_DEFAULTS: dict[str, Any] = {
    "do_center_crop": True,
    "crop_size": 256,
    "do_resize": True,
    "size": 224,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": (0.485, 0.456, 0.406),
    "image_std": (0.229, 0.224, 0.225),
}
_RESAMPLE: tuple[Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"], ...] = (
    "nearest",
    "lanczos",
    "bilinear",
    "bicubic",
    "box",
    "hamming",
)
"""By Pillow's numbers."""


def reading_from_huggingface(
    directory: Path, values: Mapping[str, Any], *, flow_scale: float = FLOW_SCALE
) -> PictureReading:
    """How the model in `directory` wants pictures, and its class names.

    As in transformers: what preprocessor_config.json leaves out, or the file as a whole, is the processor's default.

    Args:
        directory: Of the model.
        values: What its config.json holds.
        flow_scale: What the model multiplies optical flow with.

    Raises:
        ValueError: The file is damaged, or asks for what this package does not do; says which entry.
    """
    names = class_names(values)
    if "PerceiverForOpticalFlow" in (values.get("architectures") or ()):
        pixels = float(values.get(FLOW_PIXELS, PIXELS / FLOW_SCALE))
        return PictureReading(classes=names, flow_pixels=pixels * FLOW_SCALE / flow_scale)
    if not any("ImageClassification" in name for name in values.get("architectures") or ()):
        return PictureReading(classes=names)
    try:
        return _reading(_entries(directory), names)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{directory / PREPROCESSOR}: {error}") from error


def entries_of_reading(reading: PictureReading, config: PerceiverIOConfig) -> dict[str, Any]:
    """What config.json says of classes and of flow: names, and what makes flow pixels, which transformers hands on."""
    match config.output:
        case QueryOutputConfig(head=ClassHead(classes=None), channels=int(count)):
            if reading.classes is not None and len(reading.classes) == count:
                names = list(enumerate(reading.classes))
                return {"id2label": {str(i): name for i, name in names}, "label2id": {name: i for i, name in names}}
        case QueryOutputConfig(head=GridHead()):
            return {FLOW_PIXELS: reading.flow_pixels}
    return {}


def processor_of_reading(reading: PictureReading, config: PerceiverIOConfig) -> dict[str, Any] | None:
    """preprocessor_config.json for a classifier of colour pictures; None for others, or where transformers can't."""
    features = config.input.features if isinstance(config.input, InputConfig) else None
    if not isinstance(features, PixelFeatures | Conv1x1Features | ConvFeatures) or features.shape[2:] != (3,):
        return None
    size = features.shape[:2]
    shares = reading.crop
    if reading.fit == "cover":  # its crop of the shorter side has the proportions of a square alone
        if size[0] != size[1]:
            return None
        shares = (1.0, 1.0)
    sides = {"height": size[0], "width": size[1]}
    return {
        "image_processor_type": PROCESSORS[0],
        "do_center_crop": reading.fit != "stretch",
        "crop_size": {name: round(side / share) for (name, side), share in zip(sides.items(), shares, strict=True)},
        "do_resize": True,
        "size": sides,
        "resample": _RESAMPLE.index(reading.resample),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(reading.mean) * (3 // len(reading.mean)),
        "image_std": list(reading.std) * (3 // len(reading.std)),
    }


def picture_size(directory: Path) -> tuple[int, int] | None:
    """Rows and columns that preprocessor_config.json gives pictures; None where there is no such file.

    Raises:
        ValueError: The file is damaged, or says it in another way.
    """
    if not (directory / PREPROCESSOR).is_file():
        return None
    try:
        return _size(_entries(directory), "size")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{directory / PREPROCESSOR}: {error}") from error


def class_names(values: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names in a config.json's `id2label`, in the order of their numbers; None where there are none.

    What transformers calls classes that nobody named, LABEL_0 and so on, are no names.

    Raises:
        ValueError: They are not numbered 0, 1, ...
    """
    labels = values.get("id2label")
    if not isinstance(labels, Mapping):
        return None
    numbered = {str(number): str(name) for number, name in labels.items()}
    if wrong := sorted(numbered.keys() ^ {str(number) for number in range(len(numbered))}):
        raise ValueError(f"id2label must number its names 0 to {len(numbered) - 1}, each once; look at {wrong[0]!r}")
    names = tuple(numbered[str(number)] for number in range(len(numbered)))
    return None if names == tuple(f"LABEL_{number}" for number in range(len(names))) else names


def _entries(directory: Path) -> dict[str, Any]:
    path = directory / PREPROCESSOR
    if not path.is_file():
        return dict(_DEFAULTS)
    values = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError("it must hold entries by name")
    kind = values.get("image_processor_type") or values.get("feature_extractor_type") or PROCESSORS[0]
    if kind not in PROCESSORS + OLD_PROCESSORS:
        raise ValueError(f"image_processor_type={kind!r} is not one of {', '.join(PROCESSORS + OLD_PROCESSORS)}")
    steps = [name for name, on in values.items() if name.startswith("do_") and on and name not in _DEFAULTS]
    if other := [name for name in steps if name != "do_convert_rgb"]:  # colours are always given
        raise ValueError(f"{other[0]}=true is not done here")
    if unsaid := [name for name in _DEFAULTS if name.startswith("do_") and values.get(name, True) is None]:
        raise ValueError(
            f"{unsaid[0]}=null means one thing or the other, as releases of transformers differ: say which"
        )
    return _DEFAULTS | {name: value for name, value in values.items() if name in _DEFAULTS and value is not None}


def _reading(p: Mapping[str, Any], names: tuple[str, ...] | None) -> PictureReading:
    if not p["do_resize"]:
        raise ValueError("do_resize=false: a model here reads pictures of one size")
    rows, columns = _size(p, "size")
    crop_rows, crop_columns = _size(p, "crop_size")
    if p["do_center_crop"] and (rows > crop_rows or columns > crop_columns):
        raise ValueError(
            f"size={rows} x {columns} is larger than crop_size={crop_rows} x {crop_columns}: that would pad pictures"
        )
    if p["resample"] not in range(len(_RESAMPLE)):
        raise ValueError(f"resample={p['resample']!r} is not one of Pillow's numbers 0 to {len(_RESAMPLE) - 1}")
    # Numbers are (pixel * factor - mean) / std; ours are (pixel / 255 - mean) / std.
    factor = 255 * (p["rescale_factor"] if p["do_rescale"] else 1.0)
    mean, std = (_numbers(p[name]) if p["do_normalize"] else () for name in ("image_mean", "image_std"))
    if p["do_normalize"] and len(mean) != len(std):
        raise ValueError(f"image_mean={mean} and image_std={std} must have as many numbers")
    return PictureReading(
        classes=names,
        mean=tuple(one / factor for one in mean or (0.0,)),
        std=tuple(one / factor for one in std or (1.0,)),
        fit="crop" if p["do_center_crop"] else "stretch",
        crop=(rows / crop_rows, columns / crop_columns) if p["do_center_crop"] else (1.0, 1.0),
        resample=_RESAMPLE[p["resample"]],
    )


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, list | tuple) else (float(value),)


def _size(p: Mapping[str, Any], name: str) -> tuple[int, int]:
    match p[name]:
        case int(side):
            size = (side, side)
        case {"height": int(rows), "width": int(columns)} | [int(rows), int(columns)]:
            size = (rows, columns)
        case other:
            raise ValueError(f"{name}={other!r} must be a number, or height and width")
    if min(size) < 1:
        raise ValueError(f"{name}={size} must be at least 1 x 1")
    return size
