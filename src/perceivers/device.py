"""Which device to use, and in which precision."""

from contextlib import AbstractContextManager, nullcontext

import torch


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" is a GPU where there is one.

    Raises:
        ValueError: No such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]  # PyTorch goes on with a list of all it knows
        raise ValueError(f"device {name!r} can't be used here; try --device auto, or cpu ({reason})") from error
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products run in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Matrix products in `precision`: "float32", "bfloat16" or "auto"; weights and sums stay float32.

    Raises:
        ValueError: Another precision.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16) if in_bfloat16(device, precision) else nullcontext()


def in_bfloat16(device: torch.device, precision: str) -> bool:
    """Whether matrix products in `precision` are in bfloat16 on `device`.

    Raises:
        ValueError: Another precision.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision={precision!r} must be 'auto', 'float32' or 'bfloat16'")
    return precision == "bfloat16" or (precision == "auto" and has_bfloat16(device))
