"""Files of ids that users made: .npy, .txt and .jsonl."""

import io
from pathlib import Path

import numpy as np

from perceivers.data.sources import Document
from perceivers.records import parse_json

__all__ = ["TOKEN_SUFFIXES", "check_ids", "token_documents"]

TOKEN_SUFFIXES = (".npy", ".txt", ".jsonl")


def check_ids(ids: np.ndarray, vocab_size: int) -> None:
    """Refuse ids outside the vocabulary.

    Raises:
        ValueError: The first of them, and where it stands.
    """
    outside = (ids < 0) | (ids >= vocab_size)
    if outside.any():
        place = int(outside.argmax())
        raise ValueError(
            f"id {ids[place]} at place {place} is outside the vocabulary of {vocab_size} (ids 0..{vocab_size - 1})"
        )


def token_documents(file: Document) -> list[np.ndarray]:
    """The documents of one file of ids.

    Raises:
        ValueError: The file holds something else; the message names the line.
    """
    data = file.read()
    match Path(file.member or file.file).suffix.lower():
        case ".npy":
            try:
                array = np.load(io.BytesIO(data), allow_pickle=False)
            except Exception as error:  # damaged headers raise all sorts of things
                raise ValueError(f"not a .npy file of integers ({error})") from error
            if array.ndim not in (1, 2) or not np.issubdtype(array.dtype, np.integer):
                raise ValueError(
                    f"{array.dtype} of shape {array.shape}, needs integers: one axis for a document, "
                    "two for a document each row"
                )
            return list(np.atleast_2d(array))
        case ".txt":
            try:
                return [np.array(data.split(), dtype=np.int64)]
            except (ValueError, OverflowError) as error:
                raise ValueError(f"needs integers with white space between ({error})") from error
        case _:
            rows = [_json_ids(line, f"line {n}") for n, line in enumerate(data.splitlines(), 1) if line.strip()]
            if not rows:
                raise ValueError('no line holds a document, {"ids": [...]}')
            return rows


def _json_ids(line: bytes, place: str) -> np.ndarray:
    try:
        ids = parse_json(line)["ids"]
        array = np.array(ids, dtype=np.int64)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f'{place}: needs {{"ids": [...]}} with integers ({error!r})') from error
    if array.ndim != 1 or not all(type(value) is int for value in ids):  # numpy would round 1.5
        raise ValueError(f'{place}: needs {{"ids": [...]}} with integers')
    return array
