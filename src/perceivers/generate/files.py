"""Prompts from files, and what was generated to files; the suffix says what it is.

performance   .mid .midi in; .mid .wav .png out
bytes         .txt in and out, bytes as they are
ids, copy     .txt in and out, integers with white space between
all           .npy in and out, raw ids with one axis
"""

from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int64, Integer

from perceivers.data.music import STEPS_PER_SECOND, TIME_SHIFT, VELOCITY, encode_performance, write_midi
from perceivers.data.text import BYTES_VOCAB_SIZE
from perceivers.writing import check_file, write_bytes, write_text

__all__ = [
    "check_output",
    "first_seconds",
    "output_suffixes",
    "read_prompt",
    "shift_steps",
    "text_ids",
    "write",
    "write_output",
]


TOKENIZERS = ("performance", "bytes", "ids", "copy")
"""What the ids of a model that generates can be."""

PROMPT_SUFFIXES = (".mid", ".midi", ".txt", ".npy")
"""Of all tokenizers."""

NEEDS = {".mid": ("symusic", "music"), ".wav": ("symusic", "music"), ".png": ("matplotlib", "plots")}
"""Package without which a kind of file can't be written, and the extra that brings it."""


def prompt_suffixes(tokenizer: str) -> tuple[str, ...]:
    """Suffixes that a prompt can have."""
    return (".mid", ".midi", ".npy") if tokenizer == "performance" else (".txt", ".npy")


def output_suffixes(tokenizer: str) -> tuple[str, ...]:
    """Suffixes that an output can have."""
    return (".mid", ".wav", ".png", ".npy") if tokenizer == "performance" else (".txt", ".npy")


def read_prompt(path: Path, tokenizer: str) -> Int[np.ndarray, " tokens"]:
    """Raw ids of the file at `path`.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is nothing that this tokenizer reads.
    """
    suffix = path.suffix.lower()
    if suffix not in prompt_suffixes(tokenizer):
        raise ValueError(
            f"{path}: a prompt for a model of {tokenizer!r} tokens ends in {' or '.join(prompt_suffixes(tokenizer))}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if suffix == ".npy":
        return _read_npy(path)
    if suffix == ".txt":
        return text_ids(path.read_bytes(), tokenizer, name=str(path))
    return encode_performance(path)


def text_ids(text: bytes, tokenizer: str, *, name: str) -> Int[np.ndarray, " tokens"]:
    """Raw ids of a text: its bytes, or the integers in it.

    Raises:
        ValueError: It is no text for this tokenizer; `name` says which.
    """
    if tokenizer == "bytes":
        return np.frombuffer(text, np.uint8).astype(np.int32)
    if tokenizer == "performance":
        raise ValueError(f"{name}: text can't prompt a model of music; give a MIDI file, such as opening.mid")
    try:
        return np.array([int(word) for word in text.split()], np.int32)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{name}: needs integers with white space between ({error})") from error


def _read_npy(path: Path) -> Int[np.ndarray, " tokens"]:
    try:
        ids = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a .npy file of integers ({error})") from error
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{path}: {ids.dtype} of shape {ids.shape}, needs integers with one axis")
    return _int64(ids, path)


def _int64(ids: np.ndarray, path: Path) -> Int64[np.ndarray, " tokens"]:
    """The same numbers, which as unsigned ones may be too large."""
    if ids.dtype == np.uint64 and ids.max(initial=0) > np.iinfo(np.int64).max:
        raise ValueError(f"{path}: id {ids.max()} is larger than any id")
    return ids.astype(np.int64)


def check_output(path: Path, tokenizer: str) -> None:
    """Refuse what `write_output` could not write, before any work is done.

    Raises:
        FileNotFoundError: Its directory is not there.
        FileExistsError: What has the name is no file.
        PermissionError: What has it is protected.
        ValueError: The suffix says nothing, or something that can't be made of these tokens.
        ImportError: A package is missing.
    """
    if path.suffix.lower() not in output_suffixes(tokenizer):
        raise ValueError(
            f"{path}: {tokenizer!r} tokens can be written as {', '.join(output_suffixes(tokenizer))}, "
            f"not as {path.suffix or 'a file without a suffix'}"
        )
    check_file(path)
    package, extra = NEEDS.get(path.suffix.lower(), (None, None))
    if package is not None and find_spec(package) is None:
        raise ImportError(f"{path}: writing it needs {package}: pip install 'perceivers[{extra}]'")


def write(ids: Any, path: Path | str, *, tokenizer: str | None = None) -> None:
    """Write ids as a file that can be heard, seen or read.

    Args:
        ids: Raw ids with one axis, as `Loaded.generate` returns them: an array, a list or a tensor.
        path: Ends in .mid, .wav or .png (a piano roll) for music, .txt for text or ids, .npy for any ids.
        tokenizer: What the ids are: "performance", "bytes" or "ids"; None for what the suffix suggests: music, the
            bytes of a text, ids.

    Raises:
        FileNotFoundError: The file's directory is not there.
        ValueError: The suffix is unknown, or the ids can't be written so.
        ImportError: Music or plots need an extra.
    """
    path = Path(path)
    if tokenizer is None:
        usual = {".npy": "ids", ".txt": "bytes"}
        tokenizer = usual.get(path.suffix.lower(), "performance")
    if tokenizer not in TOKENIZERS:
        raise ValueError(f"tokenizer={tokenizer!r} must be {', '.join(map(repr, TOKENIZERS))}, or None")
    given = np.asarray(ids.cpu() if hasattr(ids, "cpu") else ids)
    if given.size and not np.issubdtype(given.dtype, np.integer):
        raise ValueError(f"{path}: ids are integers, these are {given.dtype}")
    if given.ndim != 1:
        raise ValueError(f"{path}: ids of shape {given.shape} must have one axis: write a file for each row")
    given = _int64(given, path)
    write_output(path, given[:0], given, tokenizer)


def write_output(
    path: Path, prompt: Int[np.ndarray, " prompt"], continuation: Int[np.ndarray, " new"], tokenizer: str
) -> None:
    """Write a prompt and what follows it, as the suffix of `path` says.

    Raises:
        ValueError: The suffix is unknown, an id is no byte or event, or there is nothing to show.
        ImportError: Music or plots need an extra.
    """
    check_output(path, tokenizer)
    ids = np.concatenate([prompt, continuation]).astype(np.int64)
    if tokenizer == "bytes" and len(ids) and not 0 <= ids.min() <= ids.max() < BYTES_VOCAB_SIZE:
        raise ValueError(f"{path}: ids {ids.min()} to {ids.max()} are not all bytes, 0..255; are they plain ids?")
    match path.suffix.lower():
        case ".npy":
            content = BytesIO()
            np.save(content, ids)
            write_bytes(path, content.getvalue())
        case ".txt" if tokenizer == "bytes":
            write_bytes(path, ids.astype(np.uint8).tobytes())
        case ".txt":
            write_text(path, " ".join(map(str, ids)) + "\n")
        case ".mid":
            write_midi(ids, path)
        case ".wav":
            from perceivers.data.render import write_wav

            write_wav(ids, path)
        case ".png":
            from perceivers.data.render import piano_roll

            piano_roll(path, prompt, continuation)


def shift_steps(event: int) -> int:
    """Steps of 10 ms by which a performance event moves the time: sums of these are exact, those of seconds are not."""
    return event - TIME_SHIFT + 1 if TIME_SHIFT <= event < VELOCITY else 0


def first_seconds(ids: Integer[np.ndarray, " tokens"], limit_s: float) -> Integer[np.ndarray, " first"]:
    """The events of a performance's first `limit_s` seconds, those at its end too."""
    steps = np.cumsum([shift_steps(int(event)) for event in ids])
    return ids[: int(np.searchsorted(steps / STEPS_PER_SECOND, limit_s, side="right"))]
