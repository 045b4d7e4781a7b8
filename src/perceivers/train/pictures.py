"""What a run takes over from the model that it starts from: its numbers of classes, its scale of pixels and of flow."""

from pathlib import Path

import yaml

from perceivers.data.picture_config import PictureConfig
from perceivers.data.picture_store import PictureStore
from perceivers.generate.loaded import picture_reading
from perceivers.models.config import ModelConfig
from perceivers.models.output_config import GridHead, QueryOutputConfig
from perceivers.models.perceiver_config import PerceiverIOConfig
from perceivers.picture_reading import PictureReading
from perceivers.records import from_dict
from perceivers.train.config import CrossEntropy, TrainConfig
from perceivers.train.data import Store
from perceivers.train.data_record import data_record


def numbered_as_before(
    config: TrainConfig, store: Store | None, *, init: Path | None, resumed: Path | None
) -> Store | None:
    """The store, its classes numbered as those of the model that training starts from, by their names.

    Where no classes are learned, the store as it is.

    Raises:
        ValueError: The store has classes that this model has not.
    """
    if not isinstance(store, PictureStore) or not _names_classes(config):
        return store
    source = resumed or init
    return store if source is None else store.renumbered(known_classes(source))


def known_classes(source: Path) -> tuple[str, ...] | None:
    """Names of the classes of a run or saved model; None where it names none, or nobody wrote them down."""
    reading = picture_reading(source) if (source / "config.json").is_file() else None
    if reading is not None and reading.classes is not None:
        return reading.classes
    settings = source / "config.yaml"
    if settings.is_file() and not _names_classes(from_dict(TrainConfig, yaml.safe_load(settings.read_text("utf-8")))):
        return None
    names = (data_record(source) or {}).get("classes")
    return None if names is None else tuple(names)


def _names_classes(config: TrainConfig) -> bool:
    return isinstance(config.data, PictureConfig) and isinstance(config.objective, CrossEntropy)


def check_scale(config: TrainConfig, init: Path, initial: ModelConfig) -> None:
    """Check that training scales and orders pixels, and scales flow, as the model that it starts from had them.

    Raises:
        ValueError: It does not; says what to set.
    """
    reading = picture_reading(init)
    if reading is None:
        return
    data = config.data
    if isinstance(data, PictureConfig) and (data.mean, data.std) != (reading.mean, reading.std):
        mean, std = (" ".join(map(str, numbers)) for numbers in (reading.mean, reading.std))
        raise ValueError(
            f"{init} reads pixels less {mean}, over {std}; the data is scaled otherwise: "
            f"add --data.mean {mean} --data.std {std}"
        )
    if isinstance(data, PictureConfig) and reading.permutation not in (None, data.permutation):
        raise ValueError(
            f"{init} reads pixels in the order of seed {reading.permutation}, the data gives them in that of "
            f"{data.permutation}: add --data.permutation {reading.permutation}"
        )
    ours, theirs = _flow_scale(config.model), _flow_scale(initial)
    if ours and theirs and abs(ours - (wanted := theirs * reading.flow_pixels)) > 1e-9:
        raise ValueError(
            f"{init} gives flow that is pixels when its scale is {wanted:g}, this model's is {ours:g}: "
            f"add --model.output.head.scale {wanted:g}"
        )


def _flow_scale(config: ModelConfig) -> float | None:
    match config:
        case PerceiverIOConfig(output=QueryOutputConfig(head=GridHead(scale=scale))):
            return scale
    return None


def reading_of(config: TrainConfig, classes: tuple[str, ...] | None) -> PictureReading | None:
    """What a saved model says of its pictures; None where it reads none."""
    if not isinstance(config.data, PictureConfig):
        return None
    classes = classes if _names_classes(config) else None
    return PictureReading(
        classes=classes, mean=config.data.mean, std=config.data.std, permutation=config.data.permutation
    )
