"""What `perceivers train` looks at while a model trains."""

from pathlib import Path

import numpy as np
from torch import nn

from perceivers.data.batch import NUM_SPECIAL
from perceivers.data.config import CopyConfig
from perceivers.data.tokens import TokenStore
from perceivers.evaluate.copying import score_copying
from perceivers.evaluate.likelihood import score
from perceivers.generate.config import SamplingConfig
from perceivers.generate.constraints import usual_constraint
from perceivers.generate.files import write_output
from perceivers.generate.loaded import Loaded
from perceivers.train.config import TrainConfig
from perceivers.train.loop import Hook


def evaluation(config: TrainConfig, store: TokenStore | None) -> Hook | None:
    """Scores the model on the validation split; None where there is none."""
    if isinstance(config.data, CopyConfig):
        return _copy_evaluation(config, config.data)
    if store is None or "validation" not in store.splits:
        return None
    split = store.split("validation")

    def evaluate(model: nn.Module, step: int) -> dict[str, float]:
        likelihood = score(model, split, max_tokens=config.eval_tokens, precision=config.precision)
        return {"validation/nats": likelihood.nats_per_token, "validation/accuracy": likelihood.accuracy}

    return evaluate


def _copy_evaluation(config: TrainConfig, data: CopyConfig) -> Hook:
    """Scores the mirrored half of sequences that training never sees, always the same ones."""
    count = max(1, config.eval_tokens // (data.length // 2))

    def evaluate(model: nn.Module, step: int) -> dict[str, float]:
        result = score_copying(model, data.length, count=count, split="validation", precision=config.precision)
        return {"validation/nats": result.nats_per_token, "validation/accuracy": result.accuracy}

    return evaluate


def sampler(config: TrainConfig, out: Path, tokenizer: str) -> Hook:
    """Writes a piece that starts from nothing to samples/step-N, as MIDI or text."""
    suffix = ".mid" if tokenizer == "performance" else ".txt"

    def sample(model: nn.Module, step: int) -> dict[str, float]:
        ids = Loaded(model, tokenizer).generate(
            max_tokens=config.sample_tokens,
            sampling=SamplingConfig(seed=config.seed),
            constraint=usual_constraint(tokenizer, config.model.vocab_size - NUM_SPECIAL),
        )
        path = out / "samples" / f"step-{step:08d}{suffix}"
        path.parent.mkdir(exist_ok=True)
        write_output(path, np.empty(0, np.int32), ids, tokenizer)
        return {}

    return sample
