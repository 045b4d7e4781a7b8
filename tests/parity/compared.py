"""Results beside those of a reference case."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .official import Case


class Compared:
    """Compares results with a case's, and knows which are left."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        self.case, self.dtype = case, dtype
        self.left = {name.removeprefix("out/") for name in case.arrays if name.startswith("out/")}

    def close(self, name: str, ours: Tensor) -> None:
        expected = self.case.tensor(f"out/{name}").to(self.dtype)
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
