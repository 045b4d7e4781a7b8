"""`perceivers.load`: a model, its tokenizer and its config together, ready to generate."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from jaxtyping import Int, Integer
from torch import nn

from perceivers.data.batch import NUM_SPECIAL, SOS
from perceivers.device import pick_device
from perceivers.generate.config import SamplingConfig
from perceivers.generate.constraints import Constraint
from perceivers.generate.decode import decode
from perceivers.hub import find_model, read_model, upload_model, write_model
from perceivers.models.config import ModelConfig

Prompt = Integer[np.ndarray, " prompt"] | list[int] | str | None
"""Raw ids, or text for a model of bytes; None or empty starts from nothing."""


class Loaded:
    """A trained model with what reads and writes its tokens.

    Attributes:
        model: The plain module, in evaluation mode.
        tokenizer: "performance", "bytes", "copy" or "ids": see `perceivers.data`.
    """

    def __init__(self, model: nn.Module, tokenizer: str) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer

    @property
    def config(self) -> ModelConfig:
        """The model's configuration."""
        return self.model.config  # pyright: ignore[reportReturnType]

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
        return cls(*read_model(find_model(source, revision=revision, cache_dir=cache_dir, token=token)))

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json and model.safetensors into `directory`."""
        write_model(self.model, self.config, self.tokenizer, Path(directory))

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
        sampling: SamplingConfig | None = None,
        num_latents: int | None = None,
        stop_at_end: bool = True,
        constraint: Constraint | None = None,
        precision: str = "float32",
    ) -> Int[np.ndarray, " tokens"]:
        """Raw ids that continue `prompt`; see `stream` for the arguments."""
        ids = self.stream(
            prompt,
            max_tokens=max_tokens,
            sampling=sampling,
            num_latents=num_latents,
            stop_at_end=stop_at_end,
            constraint=constraint,
            precision=precision,
        )
        return np.fromiter(ids, np.int32)

    def stream(
        self,
        prompt: Prompt = None,
        *,
        max_tokens: int,
        sampling: SamplingConfig | None = None,
        num_latents: int | None = None,
        stop_at_end: bool = True,
        constraint: Constraint | None = None,
        precision: str = "float32",
    ) -> Iterator[int]:
        """Raw ids that continue `prompt`, as they are drawn.

        Args:
            prompt: Raw ids, or text for a model of bytes; None or empty starts from nothing.
            max_tokens: Most tokens to draw.
            sampling: How to draw.
            num_latents: Latents to compute each token with; None for as many as in training.
            stop_at_end: Let the model end the piece.
            constraint: What may follow what, such as `PlayableKeys()` for music; None for anything.
            precision: Of matrix products: "float32", "bfloat16" or "auto".

        Raises:
            ValueError: The prompt has ids that the model doesn't know.
        """
        ids = self._ids(prompt)
        model_ids = [SOS, *(int(token) + NUM_SPECIAL for token in ids)]
        for token in decode(
            self.model,
            model_ids,
            max_tokens=max_tokens,
            sampling=sampling,
            num_latents=num_latents,
            stop_at_eos=stop_at_end,
            constraint=constraint,
            precision=precision,
        ):
            yield token - NUM_SPECIAL

    def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            if self.tokenizer != "bytes":
                raise ValueError(f"a text prompt needs a model of bytes; this one reads {self.tokenizer!r} tokens")
            prompt = list(prompt.encode())
        ids = [] if prompt is None else [int(token) for token in prompt]
        highest = self.config.vocab_size - NUM_SPECIAL - 1
        if bad := [token for token in ids if not 0 <= token <= highest]:
            raise ValueError(f"the prompt holds id {bad[0]}; {self.tokenizer!r} ids of this model are 0..{highest}")
        return ids


def load(source: str | Path, *, device: str = "cpu") -> Loaded:
    """Open a run directory, a saved model, or a model on the Hugging Face hub.

    Args:
        source: Path, or hub id `owner/name`.
        device: Where to put the model.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: What is there is damaged.
    """
    loaded = Loaded.from_pretrained(source)
    loaded.model.to(pick_device(device))
    return loaded
