"""Fill the blanks of a text with a masked language model of bytes.

Bytes are filled one by one. Which one comes next is the model's own choice: where it is surest. So a filling's
probability is the product of the probabilities that its bytes had when they were filled, and the probabilities of all
fillings of a blank sum to 1.
"""

import re
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from perceivers.arguments import checked_numbers
from perceivers.data.text import (
    PERCEIVER_MASK,
    PERCEIVER_OFFSET,
    PERCEIVER_PAD,
    PERCEIVER_SPECIALS,
    decode_perceiver_bytes,
    decode_perceiver_text,
    encode_perceiver_specials,
)
from perceivers.generate.decode import NOT_A_NUMBER
from perceivers.models.feature_config import TokenFeatures
from perceivers.models.input_config import InputConfig
from perceivers.models.perceiver_config import PerceiverIOConfig

__all__ = ["Blank", "Choice", "Filled", "fill", "text_length"]

MASK_NAME = PERCEIVER_SPECIALS[PERCEIVER_MASK]
BLANK = re.compile(rf"(?:{re.escape(MASK_NAME)}|_{{2,}})+")
LAST = PERCEIVER_OFFSET + 256
"""One after the id of the last byte."""


@dataclass(frozen=True)
class Choice:
    """What could stand in a blank."""

    text: str
    probability: float


@dataclass(frozen=True)
class Blank:
    """A blank, and what could stand there if the others are filled as they are."""

    start: int
    """Its first byte in the UTF-8 text."""
    length: int
    """Its bytes."""
    choices: list[Choice]
    """Most likely first, as far as a beam search finds them."""


@dataclass(frozen=True)
class Filled:
    """A text whose blanks are filled."""

    text: str
    """Bytes that are not UTF-8 are U+FFFD."""
    blanks: list[Blank]


def text_length(model: nn.Module) -> int:
    """Bytes that a masked language model reads.

    Raises:
        ValueError: The model reads something else.
    """
    config = getattr(model, "config", None)
    one_input = config.input if isinstance(config, PerceiverIOConfig) else None
    features = one_input.features if isinstance(one_input, InputConfig) else None
    if not isinstance(features, TokenFeatures):
        raise ValueError("this model reads no text with holes: it needs an input of tokens and an output for each")
    if features.vocab_size < LAST:
        raise ValueError(f"this model knows {features.vocab_size} ids, but bytes with their special ids are {LAST}")
    return features.seq_len


@checked_numbers()
def fill(model: nn.Module, text: str, *, top: int = 5) -> Filled:
    """Fill the blanks of `text` with what the model finds most likely.

    Two underscores or more are a blank of as many bytes; [MASK] is one byte. Models that learned from whole words know
    the space before a word as part of it: "the____" is easier than "the ____". As in transformers, "[PAD]" and the
    other names of special tokens in the text are those tokens, which the model reads like any others.

    Args:
        model: A masked language model of bytes.
        text: With blanks, at most as long as the model reads.
        top: Choices a blank, and how many ways the search follows.

    Raises:
        ValueError: There is no blank, the text is too long, or the model reads something else.
        FloatingPointError: What the model predicts is not a number.
    """
    seq_len = text_length(model)
    tokens, spans = _parse(text)
    if not spans:
        raise ValueError(
            f"the text {_shown(text)} has no blank: write two underscores or more, one for each byte that is missing"
        )
    if len(tokens) > seq_len:
        raise ValueError(f"the text has {len(tokens):,} bytes, this model reads {seq_len:,}: shorten it")
    was_training = model.training
    model.eval()
    every = np.concatenate([np.arange(start, stop) for start, stop in spans])
    fillings, log_probs = _search(model, tokens, every, seq_len=seq_len, width=top)
    best = fillings[0]
    blanks = []
    for start, stop in spans:
        if len(spans) > 1:  # what else could be here, the others as they are
            partly = best.clone()
            partly[start:stop] = PERCEIVER_MASK
            fillings, log_probs = _search(model, partly, np.arange(start, stop), seq_len=seq_len, width=top)
        choices = [
            Choice(decode_perceiver_bytes(filling[start:stop].numpy()), float(log_prob.exp()))
            for filling, log_prob in zip(fillings, log_probs, strict=True)
        ]
        blanks.append(Blank(_bytes_before(best[:start]), stop - start, choices))
    model.train(was_training)
    return Filled(decode_perceiver_text(best.numpy()), blanks)


def _parse(text: str) -> tuple[Int[Tensor, " n"], list[tuple[int, int]]]:
    """Ids of a text with MASK in its blanks, and where these start and stop."""
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    place = 0
    for match in BLANK.finditer(text):
        ids += encode_perceiver_specials(text[place : match.start()]).tolist()
        missing = len(match[0].replace(MASK_NAME, "_"))
        spans.append((len(ids), len(ids) + missing))
        ids += [PERCEIVER_MASK] * missing
        place = match.end()
    ids += encode_perceiver_specials(text[place:]).tolist()
    return torch.tensor(ids, dtype=torch.int64), spans


def _bytes_before(tokens: Int[Tensor, " n"]) -> int:
    """Bytes of the text that these ids are, special tokens by their names."""
    return sum(1 if token >= PERCEIVER_OFFSET else len(PERCEIVER_SPECIALS[token]) for token in tokens.tolist())


@torch.no_grad()
def _search(
    model: nn.Module, tokens: Int[Tensor, " n"], holes: Int[np.ndarray, " holes"], *, seq_len: int, width: int
) -> tuple[Int[Tensor, "found n"], Float[Tensor, " found"]]:
    """The likeliest fillings of some holes, and the logarithms of their probabilities: a beam search.

    Each step fills one more hole of every row, the one where the row's model is surest. What is in a hole tells a row
    from the next, so no two rows ever become the same.
    """
    rows, log_probs = tokens[None], torch.zeros(1, dtype=torch.float64)
    places = torch.from_numpy(holes)
    for _ in holes:
        predicted = _byte_log_probs(model, rows, seq_len)[:, places]
        is_open = rows[:, places] == PERCEIVER_MASK
        surest = predicted.amax(-1).masked_fill(~is_open, -torch.inf).argmax(-1)
        each = torch.arange(len(rows))
        totals = log_probs[:, None] + predicted[each, surest]
        best = totals.flatten().topk(min(width, totals.numel()))
        parents, values = best.indices // 256, best.indices % 256
        filled_place = places[surest[parents]]
        rows, log_probs = rows[parents].clone(), best.values
        rows[torch.arange(len(rows)), filled_place] = values + PERCEIVER_OFFSET
    return rows, log_probs


def _byte_log_probs(model: nn.Module, rows: Int[Tensor, "b n"], seq_len: int) -> Float[Tensor, "b n 256"]:
    """What the model gives each byte at each place; special ids are left out."""
    device = next(model.parameters()).device
    missing = seq_len - rows.shape[1]
    padded = nn.functional.pad(rows, (0, missing), value=PERCEIVER_PAD).to(device)
    real = torch.arange(seq_len, device=device) < rows.shape[1]  # by place: a text may say [PAD]
    mask = real.expand(len(rows), -1) if missing else None
    logits = model(padded, mask=mask, query_mask=mask)[:, : rows.shape[1], PERCEIVER_OFFSET:LAST]
    log_probs = logits.double().log_softmax(-1).cpu()
    if log_probs.isnan().any():
        raise FloatingPointError(NOT_A_NUMBER)
    return log_probs


def _shown(text: str, longest: int = 40) -> str:
    return repr(text if len(text) <= longest else text[: longest - 3] + "...")
