"""What a reference case holds, all of it read, and results beside those of the case."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .official import Case


Value = TypeVar("Value")


class Consumed(Mapping[str, Value], Generic[Value]):
    """A mapping that knows which of its entries nobody has read: what an adapter overlooks fails its test.

    `in` and iteration over names do not count as reading; values do, and so does `skip`, which wants a reason.
    """

    def __init__(self, entries: Mapping[str, Value]) -> None:
        self.entries = dict(entries)
        self.unread = set(entries)

    def __getitem__(self, name: str) -> Value:
        value = self.entries[name]
        self.unread.discard(name)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def below(self, prefix: str) -> dict[str, Value]:
        """Entries whose names start with `prefix`, without it."""
        return {name.removeprefix(prefix): self[name] for name in self if name.startswith(prefix)}

    def skip(self, name: str, *, because: str) -> None:
        """Leave an entry out, for a reason that a reader of the test accepts."""
        assert because
        assert name in self.entries, name
        self.unread.discard(name)

    @contextmanager
    def whole(self, *prefixes: str) -> Iterator[None]:
        """Whatever starts with one of `prefixes` (none: everything) must be read inside."""
        self.unread = {name for name in self if name.startswith(prefixes or "")}
        yield
        assert not self.unread, f"the case holds {sorted(self.unread)}, which its adapter did not read"


def check_found(found: Collection[object], directory: Path, what: str) -> None:
    """Check that there are cases; another directory than the repository's own may hold those of some families alone."""
    own = directory.is_relative_to(Path(__file__).parent)
    if not found and (own or not any(directory.glob("*.json"))):
        raise FileNotFoundError(f"{directory} has no reference cases (*.json) of {what}")


class Compared:
    """Compares results with a case's, and knows which are left."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        self.case, self.dtype = case, dtype
        self.left = {name.removeprefix("out/") for name in case.arrays if name.startswith("out/")}

    def close(self, name: str, ours: Tensor) -> None:
        expected = self.case.expected(name, self.dtype).to(self.dtype)
        assert ours.dtype == self.dtype
        torch.testing.assert_close(ours, expected, **self.case.tolerance, msg=lambda text: f"{name}: {text}")
        self.left.remove(name)

    def equal(self, name: str, ours: Tensor) -> None:
        assert torch.equal(ours.long(), self.case.tensor(f"out/{name}")), name
        self.left.remove(name)

    def maybe(self, name: str, ours: Callable[[], Tensor]) -> None:
        if name in self.left:
            self.close(name, ours())

    def done(self) -> None:
        assert not self.left, f"nothing of ours was compared with {sorted(self.left)}"


def given(case: Case, name: str, dtype: torch.dtype) -> Tensor:
    tensor = case.tensor(f"in/{name}")
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def official_state(names: dict[str, tuple[str, ...]], case: Case, prefix: str = "params/") -> dict[str, Tensor]:
    """Official parameters by a table of names (see `official_perceiver`)."""
    tree = case.tree(prefix)
    state = {}
    for ours, official in names.items():
        parts = [torch.from_numpy(tree[name].copy()) for name in official]
        parts = [part.T if name.endswith("/w") else part for part, name in zip(parts, official, strict=True)]
        state[ours] = torch.cat(parts)
    return state


def load(module: nn.Module, names: dict[str, tuple[str, ...]], case: Case, prefix: str = "params/") -> None:
    """Give `module` official parameters by a table of names."""
    module.load_state_dict(official_state(names, case, prefix))
    module.eval()
