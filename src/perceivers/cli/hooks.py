"""What `perceivers train` looks at while a model trains."""

from pathlib import Path

import numpy as np
from torch import nn

from perceivers.data.batch import NUM_SPECIAL
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
from perceivers.generate.config import SamplingConfig
from perceivers.generate.constraints import usual_constraint
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


def sampler(config: TrainConfig, out: Path, tokenizer: str) -> Hook | None:
    """Writes a piece that starts from nothing to samples/step-N, as MIDI or text; None for models that make none."""
    model_config = config.model
    if not isinstance(model_config, SequenceConfig):
        return None
    suffix = ".mid" if tokenizer == "performance" else ".txt"

    def sample(model: nn.Module, step: int) -> Numbers:
        ids = Loaded(model, tokenizer).generate(
            max_tokens=config.sample_tokens,
            sampling=SamplingConfig(seed=config.seed),
            constraint=usual_constraint(tokenizer, model_config.vocab_size - NUM_SPECIAL),
        )
        path = out / "samples" / f"step-{step:08d}{suffix}"
        path.parent.mkdir(exist_ok=True)
        write_output(path, np.empty(0, np.int32), ids, tokenizer)
        return {}

    return sample
