"""What callers pass to a model, checked: tensors of another shape or kind, and numbers that mean nothing, are refused.

Shapes and types are looked at always; numbers only where that is free: on a CPU, and not while something is traced. On
a GPU a look at a number waits for all work before it; there an unknown id stops PyTorch with an assertion of its own.
"""

from typing import Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

Kind = Literal["integers", "truth values", "real numbers"]
_HOW: dict[Kind, str] = {
    "integers": "integers (int64 or int32)",
    "truth values": "truth values (bool: True may be read)",
    "real numbers": "real numbers (of a floating type)",
}


def check_tensor(name: str, x: object, kind: Kind, shape: tuple[int | None, ...]) -> Tensor:
    """The tensor that was passed, if it is of this kind and shape.

    Args:
        name: Of the argument.
        x: What was passed.
        kind: Integers are of type int64 or int32, real numbers of any floating type.
        shape: Sizes; None for any.

    Raises:
        ValueError: Says what was passed and what is expected.
    """
    found = check_kind(name, x, kind)
    fits = found.ndim == len(shape) and all(size in (None, have) for size, have in zip(shape, found.shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {list(found.shape)}; expected is [{wanted}]")
    return found


def check_kind(name: str, x: object, kind: Kind) -> Tensor:
    """Refuse what is no tensor of this kind, whatever its shape; see `check_tensor`."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} is of type {type(x).__name__}; pass a tensor of {kind}")
    if not _is(x.dtype, kind):
        found = str(x.dtype).removeprefix("torch.")
        raise ValueError(f"{name} holds numbers of type {found}; expected are {_HOW[kind]}")
    return x


def check_ids(tokens: object, vocab_size: int, max_len: int | None = None) -> None:
    """Refuse rows of ids that a model does not know, or of more than `max_len`.

    Raises:
        ValueError: Not integers [batch, seq]; an id outside 0..vocab_size - 1; a row that is too long.
    """
    ids = check_tensor("tokens", tokens, "integers", (None, None))
    if max_len is not None and ids.shape[1] > max_len:
        raise ValueError(
            f"rows of {ids.shape[1]} tokens are longer than max_seq_len={max_len}: cut them, or build the model longer"
        )
    check_range("tokens", ids, vocab_size - 1, "the model knows ids")


def check_prompts(prompts: object, samples: int) -> None:
    """Refuse prompts from which no rows can be made.

    Raises:
        ValueError: There are none, or one is empty, or no row shall continue each.
    """
    if not isinstance(prompts, list) or not prompts or not all(prompts):
        raise ValueError("each prompt is a list of at least one id, and there is at least one prompt")
    if samples < 1:
        raise ValueError(f"samples={samples} must be at least 1")


def check_lengths(lengths: object, batch: int, seq_len: int) -> None:
    """Refuse lengths that are not one for each row, between 0 and the columns.

    Raises:
        ValueError: Says which.
    """
    counts = check_tensor("lengths", lengths, "integers", (batch,))
    check_range("lengths", counts, seq_len, "a row has columns")


def check_range(name: str, x: Tensor, highest: int, what: str) -> None:
    """Refuse integers outside 0..highest, where looking is free.

    Raises:
        ValueError: Names one, and what has that range.
    """
    if _numbers_at_hand(x):
        low, high = (int(bound) for bound in x.aminmax())
        if not 0 <= low <= high <= highest:
            raise ValueError(f"{name} holds {low if low < 0 else high}; {what} 0..{highest}")


def check_numbers(name: str, x: Tensor) -> None:
    """Refuse NaN and infinities, where looking is free.

    Raises:
        ValueError: There is one.
    """
    if _numbers_at_hand(x) and not bool(x.isfinite().all()):
        raise ValueError(f"{name} hold NaN or an infinity; they must be finite numbers")


def _is(dtype: torch.dtype, kind: Kind) -> bool:
    match kind:
        case "integers":
            return dtype in (torch.int64, torch.int32)
        case "truth values":
            return dtype == torch.bool
        case "real numbers":
            return dtype.is_floating_point


def _numbers_at_hand(x: Tensor) -> bool:
    there = x.device.type == "cpu" and x.numel() > 0
    return there and not isinstance(x, FakeTensor) and not torch.compiler.is_compiling()
