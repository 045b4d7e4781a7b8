"""`perceivers.load`: a model, its tokenizer and its config together, ready to generate."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import nn

from perceivers.arguments import checked_numbers
from perceivers.convert.huggingface import is_huggingface, read_huggingface, read_huggingface_pictures
from perceivers.data.batch import NUM_SPECIAL, SOS
from perceivers.data.music import STEPS_PER_SECOND
from perceivers.device import pick_device
from perceivers.generate.config import DecodingConfig, SamplingConfig, usual_sampling
from perceivers.generate.constraints import Constraint, usual_constraint
from perceivers.generate.decode import Step, decode
from perceivers.generate.files import shift_steps
from perceivers.generate.lean import Weights, lighten
from perceivers.generate.prompts import Positions, whole_ids
from perceivers.hub import find_model, read_keys, read_model, read_pictures, upload_model, write_model
from perceivers.key_use import KeyUse
from perceivers.models.config import ModelConfig, SequenceConfig
from perceivers.nn.linear import Int8Linear
from perceivers.picture_reading import PictureReading
from perceivers.writing import Lock

Prompt = Iterable[Any] | str | None
"""Raw ids of any integer type, or text for a model of bytes; None or empty starts from nothing."""


class Loaded:
    """A trained model with what reads and writes its tokens.

    Attributes:
        model: The plain module, in evaluation mode.
        pictures: How it wants pictures, and what their classes are called; None where nothing says so.
        tokenizer: "performance", "bytes", "copy" or "ids": see `perceivers.data`.
        keys: Music: how the performances of its training use the keys; None where nobody counted.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: str = "ids",
        *,
        pictures: PictureReading | None = None,
        keys: KeyUse | None = None,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.pictures = pictures
        self.keys = keys

    @property
    def config(self) -> ModelConfig:
        """The model's configuration."""
        return self.model.config  # pyright: ignore[reportReturnType]

    @property
    def sequence_config(self) -> SequenceConfig:
        """The same, of a model that predicts the next token.

        Raises:
            ValueError: It does something else.
        """
        if not isinstance(self.config, SequenceConfig):
            raise ValueError(f"a model of kind {self.config.kind!r} does not predict the next token")
        return self.config

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | None = None,
    ) -> "Loaded":
        """Open a run directory, a saved model, or a model on the Hugging Face hub; see `find_model` for the arguments.

        Raises:
            FileNotFoundError: Nothing is there.
            ValueError: What is there is damaged.
        """
        directory = find_model(source, revision=revision, cache_dir=cache_dir, token=token)
        return cls(*open_model(directory), pictures=picture_reading(directory), keys=read_keys(directory))

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json and model.safetensors into `directory`.

        Raises:
            ValueError: The weights are 8-bit integers, or the module was put together without a config.
            FileExistsError: Another process is writing there, such as a training.
        """
        if any(isinstance(module, Int8Linear) for module in self.model.modules()):
            raise ValueError("weights of 8-bit integers can't be saved: load the model with weights='float32'")
        if getattr(self.model, "config", None) is None:
            raise ValueError(
                f"this {type(self.model).__name__} has no config, which would say how to build it again: make it with "
                "perceivers.build(CONFIG), or save its state_dict()"
            )
        with Lock.of_directory(Path(directory)):
            weights, learned = self.model.state_dict(), {"pictures": self.pictures, "keys": self.keys}
            write_model(weights, self.config, self.tokenizer, Path(directory), **learned)

    def usual_constraint(self) -> Callable[[], Constraint] | None:
        """What keeps generated tokens sensible: for music `PlayableKeys`, within what it learned of the keys."""
        return usual_constraint(self.tokenizer, self.sequence_config.vocab_size - NUM_SPECIAL, self.keys)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the model to the Hugging Face hub; see `upload_model`."""
        with TemporaryDirectory() as directory:
            self.save_pretrained(directory)
            return upload_model(Path(directory), repo_id, private=private, token=token)

    def generate(
        self,
        prompt: Prompt = None,
        *,
        max_tokens: int,
        seconds: float | None = None,
        sampling: SamplingConfig | None = None,
        decoding: DecodingConfig | None = None,
        stop_at_end: bool = True,
        constraint: Callable[[], Constraint] | None = None,
        positions: Positions | None = None,
    ) -> Int[np.ndarray, " tokens"]:
        """Raw ids that continue `prompt`; see `steps` for the arguments (`positions` are those of this one prompt)."""
        ids = self.stream(
            prompt,
            max_tokens=max_tokens,
            seconds=seconds,
            sampling=sampling,
            decoding=decoding,
            stop_at_end=stop_at_end,
            constraint=constraint,
            positions=positions,
        )
        return np.fromiter(ids, np.int32)

    def generate_many(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int,
        samples: int = 1,
        seconds: float | None = None,
        sampling: SamplingConfig | None = None,
        decoding: DecodingConfig | None = None,
        stop_at_end: bool = True,
        constraint: Callable[[], Constraint] | None = None,
        positions: Collection[Positions] | None = None,
    ) -> "list[Continuation]":
        """`samples` continuations of each prompt, all at once, prompt by prompt; see `steps` for the arguments."""
        steps = list(
            self.steps(
                prompts,
                max_tokens=max_tokens,
                samples=samples,
                seconds=seconds,
                sampling=sampling,
                decoding=decoding,
                stop_at_end=stop_at_end,
                constraint=constraint,
                positions=positions,
            )
        )
        rows = range(len(prompts) * samples)
        return [Continuation.of_row(steps, row) for row in rows]

    def stream(
        self,
        prompt: Prompt = None,
        *,
        max_tokens: int,
        seconds: float | None = None,
        sampling: SamplingConfig | None = None,
        decoding: DecodingConfig | None = None,
        stop_at_end: bool = True,
        constraint: Callable[[], Constraint] | None = None,
        positions: Positions | None = None,
    ) -> Iterator[int]:
        """As `generate`, each id as soon as it is drawn."""
        steps = self.steps(
            [prompt],
            max_tokens=max_tokens,
            seconds=seconds,
            sampling=sampling,
            decoding=decoding,
            stop_at_end=stop_at_end,
            constraint=constraint,
            positions=None if positions is None else [positions],
        )
        return (token for step in steps for token in step.tokens if token is not None)

    @checked_numbers(max_tokens=0)
    def steps(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int,
        samples: int = 1,
        seconds: float | None = None,
        sampling: SamplingConfig | None = None,
        decoding: DecodingConfig | None = None,
        stop_at_end: bool = True,
        constraint: Callable[[], Constraint] | None = None,
        positions: Collection[Positions] | None = None,
    ) -> Iterator[Step]:
        """Raw ids that continue `prompts`, a step for all rows at a time.

        Args:
            prompts: Raw ids, or text for a model of bytes; None or empty starts from nothing.
            max_tokens: Most tokens to draw, a row.
            samples: Continuations of each prompt, which is read once for all; the j-th has seed `seed + j`.
            seconds: Music: a row ends with the event that reaches this time, in seconds.
            sampling: How to draw; None for `usual_sampling`.
            decoding: What is kept from token to token: the dial between speed and quality.
            stop_at_end: Let the model end the piece.
            constraint: Makes what says which ids may follow, such as `usual_constraint()`; None for anything.
            positions: For a model that takes them from the data: for each prompt an integer array [tokens, axes] (of
                one axis [tokens] too) of the start token, which stands before every prompt, of the prompt's tokens and
                of those to come: at least `len(prompt) + max_tokens`. Any values go, in any order; samples of a prompt
                share them. None counts 1, 2, 3, ...

        Raises:
            ValueError: A prompt has ids that the model doesn't know, or numbers or positions don't fit the model.
        """
        if seconds is not None and self.tokenizer != "performance":
            raise ValueError(f"seconds={seconds!r} is for music, this model makes {self.tokenizer!r} tokens")
        model_ids = [[SOS, *(token + NUM_SPECIAL for token in self._ids(prompt))] for prompt in prompts]
        steps = decode(
            self.model,
            model_ids,
            max_tokens=max_tokens,
            samples=samples,
            sampling=sampling or usual_sampling(self.tokenizer),
            decoding=decoding,
            stop_at_eos=stop_at_end,
            constraint=constraint,
            positions=positions,
        )
        raw = (replace(step, tokens=[t if t is None else t - NUM_SPECIAL for t in step.tokens]) for step in steps)
        return raw if seconds is None else _until(raw, seconds)

    def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            if self.tokenizer != "bytes":
                raise ValueError(f"a text prompt needs a model of bytes; this one reads {self.tokenizer!r} tokens")
            prompt = list(prompt.encode())
        ids = [] if prompt is None else whole_ids(prompt)
        highest = self.sequence_config.vocab_size - NUM_SPECIAL - 1
        if bad := [token for token in ids if not 0 <= token <= highest]:
            raise ValueError(f"the prompt holds id {bad[0]}; {self.tokenizer!r} ids of this model are 0..{highest}")
        return ids


@dataclass(frozen=True)
class Continuation:
    """What came after a prompt."""

    ids: Int[np.ndarray, " tokens"]
    """Raw ids."""
    log_probs: Float[np.ndarray, " tokens"]
    """What the model itself gave each, in nats: before temperature, constraints and the like."""

    @classmethod
    def of_row(cls, steps: list[Step], row: int) -> "Continuation":
        """The tokens of one row."""
        drawn = [(step.tokens[row], step.log_probs[row]) for step in steps if step.tokens[row] is not None]
        return cls(np.array([token for token, _ in drawn], np.int32), np.array([p for _, p in drawn], np.float64))


def _until(steps: Iterator[Step], seconds: float) -> Iterator[Step]:
    """End each row with the event that reaches `seconds` of music."""
    played: list[float] = []  # whole steps of 10 ms, or infinity
    for step in steps:
        played = played or [0] * len(step.tokens)
        tokens = [
            token if done / STEPS_PER_SECOND < seconds else None
            for token, done in zip(step.tokens, played, strict=True)
        ]
        if any(token is not None for token in tokens):
            log_probs = [0.0 if token is None else p for token, p in zip(tokens, step.log_probs, strict=True)]
            yield Step(tokens, log_probs)
        played = [
            math.inf if token is None else done + shift_steps(token) for token, done in zip(tokens, played, strict=True)
        ]
        if min(played) / STEPS_PER_SECOND >= seconds:
            return


def open_model(directory: Path) -> tuple[nn.Module, str]:
    """The model in `directory`, which this package or Hugging Face transformers saved, and its tokenizer's name.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or the files don't fit each other.
        FloatingPointError: A weight is NaN, so that nothing can be predicted.
    """
    model, tokenizer = read_huggingface(directory) if is_huggingface(directory) else read_model(directory)
    if broken := [name for name, weight in model.state_dict().items() if bool(weight.isnan().any())]:
        raise FloatingPointError(
            f"{directory}: its weights are not numbers (NaN in {broken[0]}"
            + (f" and {len(broken) - 1} more" if broken[1:] else "")
            + "): its training went wrong; train again with a lower --optim.lr"
        )
    return model, tokenizer


def picture_reading(directory: Path) -> PictureReading | None:
    """How the model in `directory` wants pictures, and what their classes are called; None where nothing says so.

    Raises:
        ValueError: A file is damaged, or asks for what this package does not do.
    """
    return read_huggingface_pictures(directory) if is_huggingface(directory) else read_pictures(directory)


def load(source: str | Path, *, device: str = "cpu", weights: Weights = "float32") -> Loaded:
    """Open a run directory, a saved model, or a model on the Hugging Face hub: ours, or a Perceiver of transformers.

    Args:
        source: Path, or hub id `owner/name`.
        device: Where to put the model.
        weights: What to keep them as: "float32", "bfloat16" or "int8"; smaller ones are faster and a little different.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: What is there is damaged, or an unknown kind of weights.
    """
    loaded = Loaded.from_pretrained(source)
    lighten(loaded.model, weights).to(pick_device(device))
    return loaded
