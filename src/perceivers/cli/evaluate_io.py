"""Scores of models that do not predict the next token: masked bytes, classes, hidden pixels, optical flow."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perceivers.cli.console import counted, table
from perceivers.cli.flags import CONFIG, read_config
from perceivers.cli.predict_pictures import picture_config
from perceivers.data.masked_config import MaskedTextConfig
from perceivers.data.picture_config import PictureConfig, WarpConfig
from perceivers.models.perceiver_config import PerceiverIOConfig
from perceivers.train.config import Reconstruction, TrainConfig

if TYPE_CHECKING:
    from perceivers.cli.evaluate import EvaluateFlags
    from perceivers.generate.loaded import Loaded
    from perceivers.train.data import Store

FLOW_PAIRS = 512
"""Pairs of frames that are scored."""


def score_run(flags: "EvaluateFlags", loaded: "Loaded") -> dict[str, Any]:
    """Scores of a run on a split of its store, or of another."""
    from perceivers.train.data import open_store
    from perceivers.train.data_record import recorded_store

    if flags.stride is not None:
        raise ValueError(f"--stride has no meaning for a model that reads {loaded.tokenizer!r}: leave it out")
    store = recorded_store(Path(flags.run)) if flags.data is None else open_store(flags.data)
    store = _by_name(flags.run, loaded, store)
    config = _config(flags.run, loaded)
    common = {"run": flags.run, "data": str(store.path), "fingerprint": store.fingerprint}
    common["split"] = store.split(flags.split).name
    return common | _scores(flags, loaded, config, store)


def _by_name(run: str, loaded: "Loaded", store: "Store") -> "Store":
    """The store with classes numbered as the model numbers them, by their names, where both have names."""
    from perceivers.data.picture_store import PictureStore
    from perceivers.train.pictures import known_classes

    if not isinstance(store, PictureStore):
        return store
    return store.renumbered((loaded.pictures.classes if loaded.pictures else None) or known_classes(Path(run)))


def _config(run: str, loaded: "Loaded") -> TrainConfig:
    """How a run was trained; for a model without such a record, plain data of its kind."""
    path = Path(run) / CONFIG
    if path.is_file():
        return read_config(path)
    pictures = picture_config(run, loaded)
    match loaded.config:
        case PerceiverIOConfig(frames=(rows, columns, _)):
            frames = WarpConfig(shape=(rows, columns))
        case _:
            frames = WarpConfig()
    plain = {"masked_bytes": MaskedTextConfig(), "pictures": pictures, "frames": frames}
    return TrainConfig(model=loaded.config, data=plain[loaded.tokenizer])


def _scores(flags: "EvaluateFlags", loaded: "Loaded", config: TrainConfig, store: "Store") -> dict[str, Any]:
    from perceivers.data.picture_store import PictureStore
    from perceivers.data.tokens import TokenStore
    from perceivers.train.data import check_picture_store, masked_text_length, reads_grey

    how: dict[str, Any] = {"precision": flags.precision, "progress": not flags.json}
    match config.data, store:
        case MaskedTextConfig() as data, TokenStore():
            masked_text_length(loaded.config, store)
            return _masked(loaded, store, data, flags.split, how)
        case PictureConfig() as data, PictureStore():
            rebuilds = isinstance(config.objective, Reconstruction)
            check_picture_store(store, loaded.config, has_classes=not rebuilds)
            return (_reconstruction if rebuilds else _classes)(loaded, store, data, flags.split, how)
        case WarpConfig() as data, PictureStore():
            how["grey"] = reads_grey(loaded.config, data, store)
            return _flow(loaded, store, data, flags.split, how)
    raise ValueError(f"{store.path} holds {store.tokenizer!r}, {flags.run} reads {loaded.tokenizer!r}: name a store")


def _masked(loaded: "Loaded", store: Any, data: MaskedTextConfig, split: str, how: dict[str, Any]) -> dict[str, Any]:
    from perceivers.evaluate.masked import score_masked

    return score_masked(loaded.model, store.split(split), data, **how).numbers()


def _classes(loaded: "Loaded", store: Any, data: PictureConfig, split: str, how: dict[str, Any]) -> dict[str, Any]:
    from perceivers.evaluate.classification import score_classes

    score = score_classes(loaded.model, store.split(split), data, **how)
    return {
        "pictures": score.pictures,
        "accuracy": score.accuracy,
        "accuracy_standard_error": score.standard_error,
        "nats_per_picture": score.nats_per_picture,
    }


def _reconstruction(
    loaded: "Loaded", store: Any, data: PictureConfig, split: str, how: dict[str, Any]
) -> dict[str, Any]:
    from perceivers.evaluate.reconstruction import position_decodability, score_reconstruction

    score = score_reconstruction(loaded.model, store.split(split), data, **how)
    places = position_decodability(loaded.model, store.split(split))
    return {
        "pictures": score.pictures,
        "squared_error": score.squared_error,
        "squared_error_of_the_mean": score.mean_squared_error,
        **{f"{place}_r2": value for place, value in places.items()},
    }


def _flow(loaded: "Loaded", store: Any, data: WarpConfig, split: str, how: dict[str, Any]) -> dict[str, Any]:
    from perceivers.evaluate.flow import LucasKanade, score_flow

    unit = loaded.pictures.flow_pixels if loaded.pictures else 1.0
    score = score_flow(loaded.model, store.split(split), data, count=FLOW_PAIRS, unit=unit, **how)
    result = {
        "photos": score.photos,
        "pairs": score.pairs,
        "end_point_error": score.end_point_error,
        "end_point_error_95": score.interval.ends,
        "zero_flow": score.zero_flow,
    }
    if find_spec("skimage"):
        untrained = score_flow(LucasKanade(), store.split(split), data, count=FLOW_PAIRS, **how)
        result["lucas_kanade"] = untrained.end_point_error
    return result


COUNTS = {
    "documents": "document",
    "masked_bytes": "masked byte",
    "photos": "photo",
    "pairs": "pair",
    "pictures": "picture",
}
"""What was scored, one of each in words."""

WORDS = {
    "bits_per_masked_byte": "bits a masked byte",
    "accuracy": "right",
    "nats_per_picture": "nats a picture",
    "squared_error": "squared error a hidden number, pixels in -1..1",
    "squared_error_of_the_mean": "of each pixel's mean",
    "row_r2": "a pixel's row in its learned position, R squared",
    "row_in_group_r2": "its row, by a map for each group of pixels, from the group's mean",
    "column_r2": "a pixel's column",
    "column_in_group_r2": "its column, by a map for each group of pixels",
    "end_point_error": "end-point error, pixels",
    "zero_flow": "of no flow at all",
    "lucas_kanade": "of scikit-image's optical_flow_ilk, which learned nothing",
}
"""Results in words, in the order in which they are shown."""


def report(result: dict[str, Any]) -> str:
    """The same for people."""
    what = ", ".join(counted(result[name], words) for name, words in COUNTS.items() if name in result)
    rows = [(words, f"{result[name]:.4f}", _spread(result, name)) for name, words in WORDS.items() if name in result]
    head = f"{result['run']} on the {result['split']} split of {result['data']}: {what}"
    return f"{head}\n\n{table(rows, right=(1,))}"


def _spread(result: dict[str, Any], name: str) -> str:
    thing = "photo" if "photos" in result else "document"
    if f"{name}_95" in result:
        return interval(result[f"{name}_95"], result[f"{thing}s"], thing)
    if f"{name}_standard_error" in result:
        error = result[f"{name}_standard_error"]
        return "one picture" if error is None else f"+- {error:.4f} (standard error over pictures)"
    return ""


def interval(ends: list[float] | None, count: int, thing: str) -> str:
    """What resampling so many documents, or other things, says of a mean."""
    if ends is not None:
        return f"95 %: {ends[0]:.4f} to {ends[1]:.4f} (bootstrap over {thing}s)"
    return f"one {thing}" if count == 1 else "no interval"
