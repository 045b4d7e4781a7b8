"""Disks that fail and processes that die at any step of writing."""

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from perceivers.writing import Lock

STEPS = ("fsync", "rename", "replace", "unlink", "remove", "rmdir", "mkdir", "open")


class Dead(BaseException):
    """The process is no more: nothing that it does from here on has an effect."""


def faulty(work: Callable[[], object], at: int, *, dies: bool) -> bool:
    """Do `work`, whose step `at` on the file system fails, or ends the process; return whether it came to that."""
    steps, came = -1, False

    def step(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal steps, came
            steps += 1
            if steps == at:
                came = True
                raise Dead if dies else OSError(errno.ENOSPC, "No space left on device")
            if came and dies:
                raise Dead
            return real(*args, **options)

        return call

    locks: list[Lock] = []
    make = Lock.__init__

    def make_and_note(self: Lock, *args: Any) -> None:
        make(self, *args)
        locks.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lock, "__init__", make_and_note)
        for name in STEPS:
            patch.setattr(os, name, step(getattr(os, name)))
        try:
            work()
        except (Dead, OSError):
            assert came
    for lock in locks:  # the dead hold none
        lock._held.release(force=True)
    return came
