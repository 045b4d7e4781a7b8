"""Keys and values that are kept while tokens are generated.

Letters: b batch, h heads, t places, n new positions, d channels of a head.
"""

import torch
from jaxtyping import Float
from torch import Tensor


class KVCache:
    """Keys and values of up to `places` positions, allocated once.

    It only stores: which places hold something is known to whoever writes and reads them.
    """

    def __init__(
        self, batch: int, heads: int, places: int, head_dim: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.keys = torch.empty(batch, heads, places, head_dim, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)

    def write(self, at: int, keys: Float[Tensor, "b h n d"], values: Float[Tensor, "b h n d"]) -> None:
        """Put `n` positions at place `at` and after it; they take the cache's precision."""
        self.keys.narrow(2, at, keys.shape[2]).copy_(keys)
        self.values.narrow(2, at, keys.shape[2]).copy_(values)

    def read(self, start: int, end: int) -> tuple[Float[Tensor, "b h t d"], Float[Tensor, "b h t d"]]:
        """Places `start` up to `end`, not copied."""
        return self.keys.narrow(2, start, end - start), self.values.narrow(2, start, end - start)

    def shift(self, by: int, end: int) -> None:
        """Forget the first `by` places: those up to `end` move to the front, in steps that need no second buffer."""
        for buffer in (self.keys, self.values):
            for at in range(by, end, by):
                stop = min(at + by, end)
                buffer[:, :, at - by : stop - by] = buffer[:, :, at:stop]

    def repeat(self, times: int, start: int, end: int, places: int) -> "KVCache":
        """A cache of `places` with places `start` up to `end` of this one, each row `times` times."""
        batch, heads, _, head_dim = self.keys.shape
        more = KVCache(times * batch, heads, places, head_dim, dtype=self.keys.dtype, device=self.keys.device)
        more.write(0, *(part.repeat_interleave(times, 0) for part in self.read(start, end)))
        return more

    @property
    def nbytes(self) -> int:
        """Memory that it takes, in bytes."""
        return self.keys.nbytes + self.values.nbytes
