"""What `perceivers train` looks at while a model trains."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from perceivers.data.config import CopyConfig
from perceivers.data.masked_config import MaskedTextConfig
from perceivers.data.picture_config import PictureConfig, WarpConfig
from perceivers.data.picture_store import PictureStore
from perceivers.data.tokens import TokenStore
from perceivers.evaluate.classification import score_classes
from perceivers.evaluate.copying import score_copying
from perceivers.evaluate.flow import score_flow
from perceivers.evaluate.likelihood import score
from perceivers.evaluate.masked import score_masked
from perceivers.evaluate.reconstruction import position_decodability, score_reconstruction
from perceivers.generate.config import usual_sampling
from perceivers.generate.files import write_output
from perceivers.generate.loaded import Loaded
from perceivers.models.config import SequenceConfig
from perceivers.train.config import Reconstruction, TrainConfig
from perceivers.train.data import Store, reads_grey
from perceivers.train.loop import Hook

Numbers = dict[str, float]

FLOW_PAIRS = 64
"""Pairs of frames an evaluation in training scores."""


def evaluation(config: TrainConfig, store: Store | None) -> Hook | None:
    """Scores the model on the validation split; None where there is none."""
    if not isinstance(config.data, CopyConfig) and (store is None or "validation" not in store.splits):
        return None

    def evaluate(model: nn.Module, step: int) -> Numbers:
        return {f"validation/{name}": value for name, value in _scores(config, store, model).items()}

    return evaluate


def _scores(config: TrainConfig, store: Store | None, model: nn.Module) -> Numbers:
    """Scores on about `eval_tokens` tokens, or so many pictures, of the validation split, always the same ones."""
    data, most, precision = config.data, config.eval_tokens, config.precision
    match data, store:
        case CopyConfig(), _:
            count = max(1, most // (data.length // 2))
            copying = score_copying(model, data.length, count=count, split="validation", precision=precision)
            return {"nats": copying.nats_per_token, "accuracy": copying.accuracy}
        case MaskedTextConfig(), TokenStore():
            masked = score_masked(model, store.split("validation"), data, max_tokens=most, precision=precision)
            return {"bits": masked.bits_per_byte, "accuracy": masked.accuracy or 0.0}
        case PictureConfig(), PictureStore():
            split = store.split("validation")
            if isinstance(config.objective, Reconstruction):
                rebuilt = score_reconstruction(model, split, data, max_pictures=most, precision=precision)
                return {"squared_error": rebuilt.squared_error} | position_decodability(model, split)
            classes = score_classes(model, split, data, max_pictures=most, precision=precision)
            return {"nats": classes.nats_per_picture, "accuracy": classes.accuracy}
        case WarpConfig(), PictureStore():
            how = {"count": FLOW_PAIRS, "grey": reads_grey(config.model, data, store), "precision": precision}
            flow = score_flow(model, store.split("validation"), data, **how)
            return {"end_point_error": flow.end_point_error, "zero_flow": flow.zero_flow}
        case _, TokenStore():
            likelihood = score(model, store.split("validation"), max_tokens=most, precision=precision)
            return {"nats": likelihood.nats_per_token, "accuracy": likelihood.accuracy}
    raise AssertionError


def sampler(config: TrainConfig, out: Path, store: Store | None) -> Hook | None:
    """Writes a piece that starts from nothing to samples/step-N, as MIDI or text; None for models that make none."""
    if not isinstance(config.model, SequenceConfig):
        return None
    tokenizer = "copy" if store is None else store.tokenizer
    keys = store.header.keys if isinstance(store, TokenStore) else None
    suffix = ".mid" if tokenizer == "performance" else ".txt"

    def sample(model: nn.Module, step: int) -> Numbers:
        loaded = Loaded(model, tokenizer, keys=keys)
        ids = loaded.generate(
            max_tokens=config.sample_tokens,
            sampling=replace(usual_sampling(tokenizer), seed=config.seed),
            constraint=loaded.usual_constraint(),
        )
        path = out / "samples" / f"step-{step:08d}{suffix}"
        path.parent.mkdir(exist_ok=True)
        write_output(path, np.empty(0, np.int32), ids, tokenizer)
        return {}

    return sample
