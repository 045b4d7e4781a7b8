"""A saved model: config.json, which names its tokenizer too, and model.safetensors; here or on the Hugging Face hub."""

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from perceivers.device import seeded
from perceivers.key_use import KeyUse
from perceivers.models.build import build
from perceivers.models.config import ModelConfig
from perceivers.nearest import check_source, no_such, suggestion
from perceivers.picture_reading import PictureReading
from perceivers.records import from_dict, parse_json, to_dict
from perceivers.writing import Write, finish_files, replace_files

Learned = TypeVar("Learned")

CONFIG, WEIGHTS = "config.json", "model.safetensors"
OLD_WEIGHTS = "pytorch_model.bin"
"""A pickle, which the hub has for models of transformers that are older than safetensors."""

HUB_SECONDS = 5.0
"""Time that the hub has to say whether it has a model."""

PICTURES, KEYS = "pictures", "keys"
"""Entries of config.json: how pictures are read, how the music of its training uses the keys."""
PREPROCESSOR = "preprocessor_config.json"
"""How a model of transformers wants pictures."""

NOTES = {"format": "pt"}
"""In the header of a safetensors file; transformers opens none without."""
CHECKSUM = "checksum"
"""Name of another note there."""


def write_model(
    weights: Mapping[str, torch.Tensor],
    config: ModelConfig,
    tokenizer: str,
    directory: Path,
    *,
    pictures: PictureReading | None = None,
    keys: KeyUse | None = None,
) -> None:
    """Write model.safetensors, `weights`, and config.json, in place of an older model's or not at all.

    Args:
        weights: By their names in the model.
        config: Of the model.
        tokenizer: What made the ids that it reads.
        directory: Made if it is not there.
        pictures: How it wants pictures, and what their classes are called; None where it reads others.
        keys: How the music of its training uses the keys; None where it plays none, or nobody counted.

    Raises:
        OSError: The disk is full or not writable; what was there is as it was.
    """
    values = {"tokenizer": tokenizer, "model": to_dict(config)}
    learned = {PICTURES: pictures, KEYS: keys}
    values |= {name: to_dict(record) for name, record in learned.items() if record is not None}
    write_config_and_weights(values, weights, directory)


def write_config_and_weights(config: dict[str, Any], weights: Mapping[str, torch.Tensor], directory: Path) -> None:
    """The same of any `config`, such as that of another package."""
    text = json.dumps(config, indent=1) + "\n"
    files: dict[str, Write] = {
        WEIGHTS: lambda path: write_tensors(weights, path),
        CONFIG: lambda path: path.write_text(text, encoding="utf-8"),
    }
    replace_files(directory, files)


def read_model(directory: Path) -> tuple[nn.Module, str]:
    """The model in `directory` and its tokenizer's name.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged or does not fit the other.
    """
    if not directory.is_dir():
        if not directory.exists():
            raise FileNotFoundError(no_such(directory))
        in_model = (directory.parent / CONFIG).is_file()
        raise NotADirectoryError(
            f"{directory} is a file: name {f'its folder, {directory.parent}' if in_model else 'a folder with a model'}"
        )
    finish_files(directory)
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"{directory} has no {name}: it holds no saved model"
                + (suggestion(directory) or f" (train one with --out {directory})")
            )
    try:
        saved = parse_json((directory / CONFIG).read_text(encoding="utf-8"))
        tokenizer, values = from_dict(str, saved["tokenizer"], path="tokenizer"), saved["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{directory / CONFIG} is not a model's config: {error!r}") from error
    try:
        config = from_dict(ModelConfig, values)
    except ValueError as error:
        raise ValueError(f"{directory / CONFIG}: {error}") from error
    weights = read_tensors(directory / WEIGHTS)
    return build_with(config, weights, source=str(directory / WEIGHTS)), tokenizer


def read_pictures(directory: Path) -> PictureReading | None:
    """How the model in `directory` wants pictures; None where its config.json does not say.

    Raises:
        ValueError: It is damaged.
    """
    return _read_learned(directory, PICTURES, PictureReading)


def read_keys(directory: Path) -> KeyUse | None:
    """How the music of a model's training uses the keys; None where its config.json does not say.

    Raises:
        ValueError: It is damaged.
    """
    return _read_learned(directory, KEYS, KeyUse)


def _read_learned(directory: Path, name: str, cls: type[Learned]) -> Learned | None:
    path = directory / CONFIG
    try:
        values = parse_json(path.read_text(encoding="utf-8")).get(name)
        return None if values is None else from_dict(cls, values)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {name}: {error}") from error


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file, with a checksum in its header.

    Raises:
        OSError: The disk is full or not writable.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    notes = NOTES | {CHECKSUM: checksum(tensors)}
    try:
        save_file(tensors, path, notes)
        _put_in_order(notes, path)
    except SafetensorError as error:  # which is no OSError, though the file system is to blame
        raise OSError(f"{path}: {error}") from error


def _put_in_order(notes: dict[str, str], path: Path) -> None:
    """Make the same model the same file: safetensors writes the two notes in any order."""
    text, other = (
        json.dumps(dict(items), separators=(",", ":")).encode() for items in (notes.items(), reversed(notes.items()))
    )
    with path.open("rb+") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(size)
        file.seek(8)
        file.write(header.replace(other, text, 1))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file, and compare its content with its checksum, if it has one.

    Raises:
        ValueError: It is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            notes = file.metadata() or {}
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if _is_ours(notes) and notes != NOTES | {CHECKSUM: checksum(tensors)}:
        raise ValueError(f"{path} is damaged: its content does not match its checksum; copy or save it again")
    return tensors


def _is_ours(notes: Mapping[str, str]) -> bool:
    """Whether a checksum is among a file's notes, be it that its name is damaged."""
    return any(re.fullmatch("[0-9a-f]{64}", value) for value in notes.values()) or CHECKSUM in notes


def checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """64 hex digits that change with any name, shape, type and bit of tensors in memory.

    Of each tensor it takes the CRC-32, on several threads: that finds every damaged byte, and is several times as fast
    as SHA-256, so that even a large model opens in about the time that reading it from the disk takes.
    """

    def described(name: str) -> list[Any]:
        value = tensors[name]
        content = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data)
        return [name, str(value.dtype), list(value.shape), content]

    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as threads:
        lines = list(threads.map(described, sorted(tensors)))
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def build_with(config: ModelConfig, tensors: dict[str, torch.Tensor], *, source: str) -> nn.Module:
    """The model that `config` describes, with `tensors` for its weights.

    It is first built without numbers, so that a config that does not belong to the weights takes no memory.

    Raises:
        ValueError: Lists what is missing, unknown or of another shape.
    """
    counted = 0

    def count(*_: object) -> None:
        nonlocal counted
        counted += 1
        if counted > 4 * len(tensors) + 1000:  # some are registered more than once
            raise ValueError(f"{source} holds {len(tensors)} tensors, the config describes a model of far more")

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            sketch = build(config)
    except (RuntimeError, OverflowError) as error:  # no machine can number such tensors
        raise ValueError(f"{source} does not fit the model: {str(error).splitlines()[0]}") from error
    finally:
        hook.remove()
    check_weights(sketch, tensors, source=source)
    with seeded(0):  # weights are drawn and replaced
        model = build(config)
    model.load_state_dict(tensors)
    return model


def load_weights(model: nn.Module, tensors: dict[str, torch.Tensor], *, source: str) -> None:
    """Copy `tensors` into `model`; names and shapes must be exactly its own.

    Raises:
        ValueError: Lists what is missing, unknown or of another shape.
    """
    check_weights(model, tensors, source=source)
    model.load_state_dict(tensors)


def check_weights(model: nn.Module, tensors: dict[str, torch.Tensor], *, source: str) -> None:
    """Compare names and shapes of `tensors` with those of `model`.

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


def find_model(
    source: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
) -> Path:
    """The directory `source`, or one to which the model of that name on the Hugging Face hub was downloaded.

    The hub is asked only for an id `owner/name` of which no folder `owner` is here, and has `HUB_SECONDS` to answer;
    without an answer, what was downloaded earlier is taken.

    Args:
        source: Directory, or hub id `owner/name`.
        revision: Branch, tag or commit on the hub.
        cache_dir: Where to keep what is downloaded; None for the hub's own place.
        token: Of the hub, for private models; None for the one that `hf auth login` left.

    Raises:
        FileNotFoundError: Neither is there.
    """
    check_source(source)
    if Path(source).exists():
        return Path(source)
    source = str(source)
    problem = _ask_hub(source, revision, token)
    options: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "token": token}
    options |= {"local_files_only": problem is not None}
    try:
        found = Path(snapshot_download(source, **options, allow_patterns=[CONFIG, WEIGHTS, PREPROCESSOR]))
        if not (found / WEIGHTS).is_file():
            found = Path(snapshot_download(source, **options, allow_patterns=[CONFIG, OLD_WEIGHTS, PREPROCESSOR]))
        return found
    except Exception as error:  # of the hub's package, of its network packages, or of the disk
        problem = problem or f"the hub did not give it ({type(error).__name__})"
        remedy = f"; without a network, name a folder with its {CONFIG} and {WEIGHTS} (or {OLD_WEIGHTS}, if it is old)"
        raise FileNotFoundError(f"{source} does not exist here, and {problem}{suggestion(source) or remedy}") from error


def _ask_hub(model_id: str, revision: str | None, token: str | None) -> str | None:
    """Why the hub gives no such model, in words; None where it does.

    The question runs in a thread of its own: looking up the hub's address knows no time-out.
    """
    answers: list[str | None] = []

    def ask() -> None:
        try:
            HfApi(token=token).model_info(model_id, revision=revision, timeout=HUB_SECONDS)
            answers.append(None)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            answers.append("the hub has no such model, or does not show it without a token (`hf auth login`)")
        except Exception as error:  # of the hub's package, or of its network packages
            answers.append(f"the hub could not be asked ({type(error).__name__})")

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return answers[0] if answers else f"the hub did not answer within {HUB_SECONDS:g} s"


def upload_model(directory: Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload the model in `directory` to the Hugging Face hub and return the commit's address.

    Args:
        directory: Saved model.
        repo_id: `owner/name`; made if it is not there.
        private: Make it for its owner alone.
        token: Of the hub; None for the one that `hf auth login` left.
    """
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    commit = api.upload_folder(repo_id=repo_id, folder_path=directory, allow_patterns=[CONFIG, WEIGHTS])
    return commit.commit_url
