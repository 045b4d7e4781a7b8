"""Run every test with checked shapes: jaxtyping annotations are enforced by beartype."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from jaxtyping import config, install_import_hook
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

install_import_hook("perceivers", "beartype.beartype")

from . import pasted  # noqa: E402  (what it imports of the package has to find the hook)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As users have it: annotations are not enforced, and what is wrong must be refused in words."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation returned, forward and backward."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return result


@pytest.fixture
def largest_tensor() -> type[LargestTensor]:
    """What a test records with: `with largest_tensor() as seen: ...`, then `seen.elements`."""
    return LargestTensor


@pytest.fixture(autouse=True)
def no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is brought to the disk: that takes most of the time of tests that write, and changes no content."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True)
def commands_can_be_pasted() -> Iterator[None]:
    """Whatever command a test makes the package tell people to run, that command's own parser understands it."""
    pasted.refused.clear()
    yield
    assert not pasted.refused
