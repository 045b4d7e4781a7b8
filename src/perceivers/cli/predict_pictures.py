"""The part of `perceivers predict` that is about pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from perceivers.cli.console import failed, note, table
from perceivers.cli.flags import CONFIG, read_config
from perceivers.data.picture_config import PictureConfig
from perceivers.models.input_config import InputConfig
from perceivers.models.perceiver_config import PerceiverIOConfig
from perceivers.picture_reading import PictureReading

if TYPE_CHECKING:
    import numpy as np

    from perceivers.cli.predict import PredictFlags
    from perceivers.generate.loaded import Loaded


def predict_classes(flags: "PredictFlags", loaded: "Loaded") -> tuple[list[dict[str, Any]], int]:
    """The likeliest classes of each picture; an `error` for each that can't be read, and how many these are."""
    from perceivers.evaluate.naming import class_probabilities, read_pictures, said
    from perceivers.train.data_record import data_record

    if flags.out is not None:
        raise ValueError(f"--out is for motion, {flags.run} names classes: leave it out")
    record = data_record(Path(flags.run)) or {}
    reading = loaded.pictures or PictureReading()
    shape = _shape(flags.run, loaded, record)
    given = read_pictures(list(map(Path, flags.inputs)), shape, split=flags.split, reading=reading)
    if given.changed is not None:
        note(given.changed)
    for name, reason in given.failed:
        failed(said(name, reason))
    errors: list[dict[str, Any]] = [{"picture": name, "error": reason} for name, reason in given.failed]
    if not given.names:
        return errors, len(errors)
    probabilities = class_probabilities(loaded.model, given.pixels, picture_config(flags.run, loaded))
    named = list(reading.classes or record.get("classes") or ())
    classes = named + [str(number) for number in range(len(named), probabilities.shape[1])]
    best = (-probabilities).argsort(-1)[:, : flags.top]
    predictions = [
        {
            "picture": name,
            "classes": [{"class": classes[index], "probability": float(row[index])} for index in order],
        }
        for name, row, order in zip(given.names, probabilities, best.tolist(), strict=True)
    ]
    return predictions + errors, len(errors)


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


def picture_config(run: str, loaded: "Loaded") -> PictureConfig:
    """How a run's pictures were changed; of a saved model, how it wants them scaled and ordered."""
    path = Path(run) / CONFIG
    data = read_config(path).data if path.is_file() else None
    if isinstance(data, PictureConfig):
        return data
    reading = loaded.pictures or PictureReading()
    return PictureConfig(mean=reading.mean, std=reading.std, permutation=reading.permutation)


def classes_report(predictions: list[dict[str, Any]]) -> str:
    """A line for each picture: its likeliest classes."""
    rows = [
        (prediction["picture"], *(f"{one['class']} {one['probability']:.1%}" for one in prediction["classes"]))
        for prediction in predictions
        if "error" not in prediction
    ]
    return table(rows) if rows else ""


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
    from perceivers.writing import check_file

    if flags.out is not None:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        check_file(flags.out)
    first, second = flags.inputs
    reading = loaded.pictures or PictureReading()
    flow = motion(loaded.model, (Path(first), Path(second))) * reading.flow_pixels
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
