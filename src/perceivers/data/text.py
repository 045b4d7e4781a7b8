"""Text as UTF-8 bytes: the tokenizer "bytes" (ids 0..255, one a byte), and Perceiver IO's, which has ids from 6."""

import codecs
import re
from itertools import groupby

import numpy as np
from jaxtyping import Int, Integer

__all__ = [
    "BYTES_VOCAB_SIZE",
    "PERCEIVER_MASK",
    "PERCEIVER_OFFSET",
    "PERCEIVER_PAD",
    "PERCEIVER_SPECIALS",
    "as_utf8",
    "decode_bytes",
    "decode_perceiver_bytes",
    "decode_perceiver_text",
    "encode_bytes",
    "encode_perceiver_bytes",
    "encode_perceiver_specials",
    "encode_perceiver_text",
]

BYTES_VOCAB_SIZE = 256

MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, which is its beginning
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order marks, and the encodings that read them."""
MOST_HIGH = 0.3
"""Share of bytes above ASCII in text of one byte a character that is taken for Latin-1: others are other alphabets."""
NO_TEXT = tuple(bytes([code]) for code in range(32) if code not in b"\t\n\v\f\r\x1a\x1b")

PERCEIVER_PAD, PERCEIVER_MASK = 0, 3
"""Ids of Perceiver IO's padding and of the token in place of hidden ones; BOS 1, EOS 2, CLS 4, SEP 5 are never made."""
PERCEIVER_OFFSET = 6
"""Perceiver IO's id of byte 0; its vocabulary has 262 ids."""
PERCEIVER_SPECIALS = ("[PAD]", "[BOS]", "[EOS]", "[MASK]", "[CLS]", "[SEP]")
"""How transformers spells the ids below, in their order."""
_SPECIAL = re.compile(f"({'|'.join(map(re.escape, PERCEIVER_SPECIALS))})")


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


def as_utf8(data: bytes) -> tuple[bytes, str | None]:
    """Text as UTF-8, and what it was read as where it is something else.

    UTF-8 stays as it is, to the last byte, also if a character is cut at its ends or some bytes in it are broken.
    UTF-16 and UTF-32 are known by their byte order mark; what else is mostly ASCII is Windows-1252, or Latin-1.

    Raises:
        ValueError: It is no text, or in an encoding that nothing tells.
    """
    for mark, encoding in MARKS.items():
        if data.startswith(mark):
            return data.decode(encoding).encode(), encoding.upper()
    start = next((place for place in range(min(3, len(data))) if not 0x80 <= data[place] < 0xC0), 0)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data[start:])  # may end within a character
        return data, None
    except UnicodeDecodeError as error:
        first = error.start + start
    text = data.decode(errors="replace")
    broken, others = text.count("\ufffd"), len(text) - len(text.encode("ascii", "ignore"))
    if others > 2 * broken:
        return data, f"UTF-8 with {broken} broken bytes, which stay as they are"
    high = np.count_nonzero(np.frombuffer(data, np.uint8) >= 0x80)
    if high > MOST_HIGH * len(data) or any(control in data for control in NO_TEXT):
        byte = f"byte 0x{data[first]:02x} at {first}"
        raise ValueError(f"it is not UTF-8 ({byte}), and nothing tells what else; convert it to UTF-8")
    try:
        return data.decode("cp1252").encode(), "Windows-1252"
    except UnicodeDecodeError:
        return data.decode("latin-1").encode(), "Latin-1"


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


def encode_perceiver_bytes(text: str | bytes) -> Int[np.ndarray, " tokens"]:
    """Turn text, or bytes, into the ids of Perceiver IO's masked language model, without padding.

    Raises:
        ValueError: The text holds half a surrogate pair, which UTF-8 cannot say.
    """
    ids = np.frombuffer(text, dtype=np.uint8) if isinstance(text, bytes) else encode_bytes(text)
    return ids.astype(np.int32) + PERCEIVER_OFFSET


def decode_perceiver_bytes(ids: Integer[np.ndarray, " tokens"]) -> str:
    """Turn ids of Perceiver IO's masked language model into text; special ids say nothing.

    As in the reference: an id beyond the vocabulary wraps around, and bytes that are not UTF-8 become U+FFFD.
    """
    return decode_bytes((ids[ids >= PERCEIVER_OFFSET] - PERCEIVER_OFFSET) % BYTES_VOCAB_SIZE)


def encode_perceiver_text(text: str) -> Int[np.ndarray, " tokens"]:
    """Turn text into the ids of transformers' PerceiverTokenizer, without padding.

    As in transformers: [CLS] comes first and [SEP] last, which the official code does not add, so every byte stands one
    place later; and "[MASK]" and the other names in the text are special ids, not bytes.

    Raises:
        ValueError: The text holds half a surrogate pair, which UTF-8 cannot say.
    """
    return encode_perceiver_specials(f"[CLS]{text}[SEP]")


def encode_perceiver_specials(text: str) -> Int[np.ndarray, " tokens"]:
    """Turn text into ids, names of special tokens into theirs; nothing comes before or after.

    Raises:
        ValueError: The text holds half a surrogate pair, which UTF-8 cannot say.
    """
    parts = [
        np.array([PERCEIVER_SPECIALS.index(part)], np.int32)
        if part in PERCEIVER_SPECIALS
        else encode_perceiver_bytes(part)
        for part in _SPECIAL.split(text)
    ]
    return np.concatenate(parts)


def decode_perceiver_text(ids: Integer[np.ndarray, " tokens"]) -> str:
    """Turn ids into text as transformers' PerceiverTokenizer does, special ids as their names.

    `decode_perceiver_bytes` leaves them out, which is transformers' `skip_special_tokens`.
    """
    runs = groupby(ids.tolist(), key=lambda token: token < PERCEIVER_OFFSET)
    return "".join(
        "".join(PERCEIVER_SPECIALS[token] for token in run)
        if special
        else decode_perceiver_bytes(np.array(list(run), np.int32))
        for special, run in runs
    )
