"""What a continuation starts from, checked: prompts, and positions of their tokens and of those to come."""

from collections.abc import Collection, Iterable, Mapping, Set
from operator import index
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from perceivers.models.config import SequenceConfig
from perceivers.models.perceiver_ar_config import PerceiverARConfig, TablePositions

Positions = Any
"""Whole numbers, an array or nested lists [tokens, axes]; [tokens] too where positions have one axis. Of a prompt's
first token, SOS, of the next, and so on, to the last but one of the tokens to come; what lies further is not read."""


def whole_ids(ids: Iterable[Any]) -> list[int]:
    """`ids` as whole numbers, whatever integer type they are of.

    Raises:
        ValueError: One is not of an integer type, such as 7.0 or True; a mapping or a set, which has no order.
    """
    if isinstance(ids, Mapping | Set):
        raise ValueError(f"the prompt is a {type(ids).__name__}, which has no order: give a list of ids")
    try:
        tokens = list(ids)
    except TypeError as error:
        raise ValueError(f"the prompt is {ids!r}: give a list of ids") from error
    found = []
    for token in tokens:
        try:
            found.append(_whole(token))
        except TypeError as error:
            raise ValueError(f"the prompt holds {token!r}: ids are whole numbers, of an integer type") from error
    return found


def _whole(value: Any) -> int:
    """A number of any integer type; truth values, which Python and PyTorch take for numbers, are none."""
    if isinstance(value, bool) or getattr(value, "dtype", None) is torch.bool:
        raise TypeError
    return index(value)


def check_prompt(prompt: list[int], config: SequenceConfig) -> None:
    """Refuse what the model can't read.

    Raises:
        ValueError: Says what is wrong.
    """
    if not prompt:
        raise ValueError("the prompt is empty: give at least the start token, SOS")
    ids = whole_ids(prompt)
    if not 0 <= min(ids) <= max(ids) < config.vocab_size:
        bad = next(token for token in ids if not 0 <= token < config.vocab_size)
        raise ValueError(f"the prompt holds id {bad}, the model knows 0..{config.vocab_size - 1}")


def prompt_positions(
    given: Collection[Positions] | None, prompts: list[list[int]], config: SequenceConfig, max_tokens: int
) -> list[Int[Tensor, "_ axes"]] | None:
    """Positions of each prompt's tokens and of those to come; None where the model counts 1, 2, 3, ... or for itself.

    Raises:
        ValueError: The model counts for itself, positions are missing, of another shape or kind, too few, or beyond a
            position table.
    """
    if given is None:
        _check_counted(prompts, config, max_tokens)
        return None
    if not isinstance(config, PerceiverARConfig) or config.position_source != "data":
        raise ValueError(
            "this model counts its positions for itself (position_source is not 'data'): leave out positions"
        )
    if len(given) != len(prompts):
        raise ValueError(f"positions of {len(given)} rows for {len(prompts)} prompts: give those of each prompt")
    return [_row(positions, len(prompt), config, max_tokens) for positions, prompt in zip(given, prompts, strict=True)]


def _check_counted(prompts: list[list[int]], config: SequenceConfig, max_tokens: int) -> None:
    if config.position_axes != 1:
        raise ValueError(
            f"this model's positions have {config.position_axes} axes, which can't be counted: pass positions=, for "
            f"each prompt an array [tokens, {config.position_axes}] that reaches over the tokens to come"
        )
    last, longest = config.max_position, max(map(len, prompts))
    if last is not None and longest + max_tokens - 1 > last:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_tokens} new ones pass position {last}, where this "
            f"model's position table ends: ask for at most {max(last + 1 - longest, 0)} new tokens"
        )


def _row(given: Positions, prompt_len: int, config: PerceiverARConfig, max_tokens: int) -> Int[Tensor, "_ axes"]:
    array = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
    axes, needed = config.position_axes, prompt_len + max(max_tokens - 1, 0)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"positions are {array.dtype} numbers: give whole ones, of an integer type")
    if array.ndim == 1 and axes == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] != axes:
        raise ValueError(f"positions of a prompt have shape {list(array.shape)}: this model reads [tokens, {axes}]")
    if len(array) < needed:
        raise ValueError(
            f"{len(array)} positions for a prompt of {prompt_len} tokens (the start token counts) and {max_tokens} new "
            f"ones: give at least {needed}, as the last new token needs none"
        )
    array = array[:needed]
    if array.dtype == np.uint64 and array.max(initial=0) > np.iinfo(np.int64).max:
        raise ValueError(f"positions reach to {array.max()}, more than an int64 holds")
    array = array.astype(np.int64)
    if isinstance(config.positions, TablePositions):
        for axis, (values, size) in enumerate(zip(array.T, config.table_sizes, strict=True)):
            if not 0 <= values.min() <= values.max() < size:
                raise ValueError(
                    f"positions of axis {axis} reach from {values.min()} to {values.max()}, "
                    f"but the model's table has rows 0 to {size - 1}"
                )
    return torch.from_numpy(array)
