"""A model and what reads and writes its tokens, saved as config.json and model.safetensors."""

import json
import os
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from perceivers.models.build import build
from perceivers.models.config import ModelConfig
from perceivers.records import from_dict, to_dict

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Pretrained(ModelHubMixin):
    """A model together with the name of its tokenizer.

    `save_pretrained(directory)`, `from_pretrained(directory_or_hub_id)` and `push_to_hub(id)` are those of the Hugging
    Face hub.

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

    def _save_pretrained(self, save_directory: Path) -> None:
        write_model(self.model, self.config, self.tokenizer, save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, revision=None, cache_dir=None, token=None, **_: Any) -> Self:
        if Path(model_id).exists():
            directory = Path(model_id)
        else:
            directory = _download(model_id, revision=revision, cache_dir=cache_dir, token=token)
        return cls(*read_model(directory))


def write_model(model: nn.Module, config: ModelConfig, tokenizer: str, directory: Path) -> None:
    """Write config.json and model.safetensors; each replaces the old file only when it is complete."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"tokenizer": tokenizer, "model": to_dict(config)}, indent=1)
    replace_file(directory / CONFIG, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    replace_file(directory / WEIGHTS, lambda path: save_file(tensors, path))


def read_model(directory: Path) -> tuple[nn.Module, str]:
    """The model in `directory` and its tokenizer's name.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged or does not fit the other.
    """
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"{directory} has no {name}: it holds no saved model (train one with --out {directory})"
            )
    try:
        saved = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        config = from_dict(ModelConfig, saved["model"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{directory / CONFIG} is not a model's config: {error!r}") from error
    model = build(config)
    try:
        tensors = load_file(directory / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{directory / WEIGHTS} is damaged: {error}") from error
    load_weights(model, tensors, source=str(directory / WEIGHTS))
    return model, saved["tokenizer"]


def load_weights(model: nn.Module, tensors: dict[str, torch.Tensor], *, source: str) -> None:
    """Copy `tensors` into `model`; names and shapes must be exactly its own.

    Raises:
        ValueError: Lists what is missing, unknown or of another shape.
    """
    own = model.state_dict()
    problems = [f"missing {name}" for name in own.keys() - tensors.keys()]
    problems += [f"unknown {name}" for name in tensors.keys() - own.keys()]
    problems += [
        f"{name} has shape {list(tensors[name].shape)}, the model {list(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if own[name].shape != tensors[name].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ValueError(f"{source} does not fit the model: {shown}")
    model.load_state_dict(tensors)


def replace_file(path: Path, write) -> None:
    """Let `write` fill a hidden file beside `path`, then put it in `path`'s place in one step."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _download(model_id: str, **options: Any) -> Path:
    try:
        paths = [Path(hf_hub_download(model_id, name, **options)) for name in (CONFIG, WEIGHTS)]
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise FileNotFoundError(
            f"{model_id} is no directory here, and the hub did not give it ({type(error).__name__}); "
            f"without a network, put its {CONFIG} and {WEIGHTS} into a directory and name that"
        ) from error
    return paths[0].parent
