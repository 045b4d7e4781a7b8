"""Text as UTF-8 bytes, the tokenizer "bytes": ids 0..255, one a byte."""

import numpy as np
from jaxtyping import Int, Integer

__all__ = ["BYTES_VOCAB_SIZE", "decode_bytes", "encode_bytes"]

BYTES_VOCAB_SIZE = 256


def encode_bytes(text: str) -> Int[np.ndarray, " tokens"]:
    """Turn text into its UTF-8 bytes; `decode_bytes` gives back exactly this text.

    Raises:
        ValueError: The text holds half a surrogate pair, which UTF-8 cannot say.
    """
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} of the text is {text[error.start]!r}, half a surrogate pair, which has "
            "no UTF-8 form; read the text with the encoding that it was written in"
        ) from error
    return np.frombuffer(data, dtype=np.uint8).astype(np.int32)


def decode_bytes(ids: Integer[np.ndarray, " tokens"]) -> str:
    """Turn byte ids into text; bytes that are not UTF-8 (models write those) become U+FFFD.

    Raises:
        ValueError: An id is outside 0..255.
    """
    if len(ids) and (ids.min() < 0 or ids.max() >= BYTES_VOCAB_SIZE):
        raise ValueError(
            f"ids from {ids.min()} to {ids.max()} are not all bytes, 0..255; "
            "take off the model's offset and its special ids first"
        )
    return ids.astype(np.uint8).tobytes().decode("utf-8", errors="replace")
