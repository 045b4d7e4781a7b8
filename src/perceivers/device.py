"""Which device to use, and in which precision."""

import ctypes
import platform
from contextlib import AbstractContextManager, nullcontext

import torch

# Settings of glibc's mallopt: bytes from which on memory is mapped for one tensor alone, and bytes of free memory that
# are kept (-1: all).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


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


def keep_freed_memory() -> None:
    """From now on this process keeps the memory of tensors that are gone, for the next ones.

    By default each large tensor goes back to the system, and a new one is mapped page by page: a step of training on a
    CPU took 1.2 times as long. The most memory ever used stays about the same. Nothing changes without glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 2**31 - 1)
    libc.mallopt(M_TRIM_THRESHOLD, -1)
