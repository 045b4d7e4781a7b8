"""Which device to use, and in which precision."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

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


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Random numbers within follow from `seed`; the program around goes on with its own, as if none had been drawn.

    Args:
        seed: Of PyTorch's global generators.
        device: Whose generator is meant, besides the CPU's.
    """
    generators = [torch.default_generator]
    if device is not None and device.type == "cuda":
        torch.cuda.init()
        generators.append(
            torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
        )
    elif device is not None and device.type == "mps":
        generators.append(torch.mps._get_default_mps_generator())
    before = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)


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
