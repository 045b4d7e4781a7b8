"""The part of `perceivers predict` that is about pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from perceivers.cli.console import table
from perceivers.cli.flags import CONFIG, read_config
from perceivers.data.picture_config import PictureConfig
from perceivers.models.input_config import InputConfig
from perceivers.models.perceiver_config import PerceiverIOConfig

if TYPE_CHECKING:
    import numpy as np

    from perceivers.cli.predict import PredictFlags
    from perceivers.generate.loaded import Loaded


def predict_classes(flags: "PredictFlags", loaded: "Loaded") -> list[dict[str, Any]]:
    """The likeliest classes of each picture."""
    from perceivers.evaluate.naming import class_probabilities, read_pictures
    from perceivers.train.data_record import data_record

    if flags.out is not None:
        raise ValueError(f"--out is for motion, {flags.run} names classes: leave it out")
    record = data_record(Path(flags.run)) or {}
    names, pixels = read_pictures(list(map(Path, flags.inputs)), _shape(flags.run, loaded, record), split=flags.split)
    probabilities = class_probabilities(loaded.model, pixels, _config(flags.run))
    classes = record.get("classes") or [str(number) for number in range(probabilities.shape[1])]
    best = (-probabilities).argsort(-1)[:, : min(flags.top, len(classes))]
    return [
        {
            "picture": name,
            "classes": [{"class": classes[index], "probability": float(row[index])} for index in order],
        }
        for name, row, order in zip(names, probabilities, best.tolist(), strict=True)
    ]


def _shape(run: str, loaded: "Loaded", record: dict[str, Any]) -> tuple[int, int, int]:
    """Rows, columns and channels of the pictures that a model reads."""
    match loaded.config:
        case PerceiverIOConfig(input=InputConfig(features=features)) if len(features.shape) == 3:
            rows, columns, channels = features.shape
        case _ if "shape" in record:
            rows, columns, channels = record["shape"]
        case _:
            raise ValueError(
                f"{run} does not say the shape of its pictures, as a run directory with its data.json does"
            )
    return rows, columns, channels


def _config(run: str) -> PictureConfig:
    """How a run's pictures were changed; plain ones where there is no record of it."""
    path = Path(run) / CONFIG
    data = read_config(path).data if path.is_file() else None
    return data if isinstance(data, PictureConfig) else PictureConfig()


def classes_report(predictions: list[dict[str, Any]]) -> str:
    """A line for each picture: its likeliest classes."""
    rows = [
        (prediction["picture"], *(f"{one['class']} {one['probability']:.1%}" for one in prediction["classes"]))
        for prediction in predictions
    ]
    return table(rows)


def predict_flow(flags: "PredictFlags", loaded: "Loaded") -> list[dict[str, Any]]:
    """The motion between two pictures, in numbers; as a picture in the file that the flags name."""
    if len(flags.inputs) != 2:
        raise ValueError(f"motion needs two pictures, {len(flags.inputs)} are given: name the first and the second")
    if flags.out is not None and flags.out.suffix.lower() != ".png":
        raise ValueError(f"--out {flags.out} must end in .png")
    if flags.split is not None:
        raise ValueError(f"--split is for classes, {flags.run} finds motion: leave it out")
    import numpy as np

    from perceivers.evaluate.naming import motion

    first, second = flags.inputs
    flow = motion(loaded.model, (Path(first), Path(second)))
    length = np.linalg.norm(flow, axis=-1)
    result = {"first": first, "second": second, "rows": flow.shape[0], "columns": flow.shape[1]}
    columns, rows = flow.mean((0, 1)).tolist()
    result |= {"mean_right": columns, "mean_down": rows, "mean_length": float(length.mean())}
    result |= {"longest": float(length.max())}
    if flags.out is not None:
        _write_flow(flow, flags.out)
        result["out"] = str(flags.out)
    return [result]


def _write_flow(flow: "np.ndarray", path: Path) -> None:
    from PIL import Image

    from perceivers.evaluate.flow import flow_picture
    from perceivers.writing import replace_file

    picture = Image.fromarray(flow_picture(flow))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda partial: picture.save(partial, format="PNG"))


def flow_report(predictions: list[dict[str, Any]]) -> str:
    """The numbers for people, in pixels."""
    (result,) = predictions
    words = {"mean_right": "to the right, mean", "mean_down": "down, mean", "mean_length": "length, mean"}
    words |= {"longest": "length, longest"}
    rows = [(text, f"{result[name]:.2f} pixels") for name, text in words.items()]
    lines = [
        f"{result['first']} to {result['second']}: {result['rows']} x {result['columns']}",
        table(rows, right=(1,)),
    ]
    return "\n".join([*lines, *([f"wrote {result['out']}"] if "out" in result else [])])
