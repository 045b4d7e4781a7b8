"""Attention followed by a feed-forward layer, with norms and residuals."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from perceivers.nn.activations import activate
from perceivers.nn.attention import Attention, Backend, SharedContext
from perceivers.nn.cache import KVCache
from perceivers.nn.dropout import Dropout, DropPath
from perceivers.nn.linear import Linear
from perceivers.nn.masks import AttentionMask
from perceivers.nn.options import ActivationName
from perceivers.nn.positions import Rotation
from perceivers.nn.rows import TakenRows


class FeedForward(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, dim: int, *, widening: int, activation: ActivationName) -> None:
        super().__init__()
        self.up = Linear(dim, widening * dim)
        self.down = Linear(widening * dim, dim)
        self.activation: ActivationName = activation

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Widen, activate, narrow."""
        return self.down(activate(self.up(x), self.activation))


class CrossAttentionBlock(nn.Module):
    """Latents read a context.

    Source: `CrossAttention` of perceiver_ar_model.py.

    Args:
        dim: Channels of the latents.
        context_dim: Channels of the context.
        heads: Heads.
        inner_dim: Channels of queries and keys.
        value_dim: Channels of values; None for `inner_dim`.
        zero_empty: A latent that may read nothing reads zeros.
        widening: Width of the feed-forward layer, in multiples of `dim`.
        activation: Of the feed-forward layer.
        dropout: Share of the channels dropped from what either branch adds.
        query_residual: Add the latents to what they read.
        backend: Of the attention.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        *,
        heads: int,
        inner_dim: int,
        widening: int,
        activation: ActivationName,
        value_dim: int | None = None,
        zero_empty: bool = False,
        dropout: float = 0.0,
        query_residual: bool = True,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.norm_latents = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(context_dim)
        self.attention = Attention(
            dim,
            context_dim,
            heads=heads,
            inner_dim=inner_dim,
            value_dim=value_dim,
            zero_empty=zero_empty,
            backend=backend,
        )
        self.norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, widening=widening, activation=activation)
        self.dropout = Dropout(dropout)
        self.query_residual = query_residual

    def forward(
        self,
        latents: Float[Tensor, "batch queries dim"],
        context: Float[Tensor, "batch keys context_dim"] | Float[Tensor, "vocab context_dim"],
        *,
        mask: AttentionMask,
        ids: Int[Tensor, "batch keys"] | None = None,
        rotate_q: Rotation | None = None,
        rotate_k: Rotation | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Latents after reading `context`, or its rows `ids`, each of which is then projected once."""
        if ids is not None and self.attention.spread is None:
            return self.read_rows(latents, self.rows(context, ids, rotate_k), mask=mask, rotate_q=rotate_q)
        keys, values = self.keys_values(context, rotate_k, ids=ids, queries=latents.shape[1])
        return self.read(latents, keys, values, mask=mask, rotate_q=rotate_q)

    def keys_values(
        self,
        context: Float[Tensor, "batch keys context_dim"] | Float[Tensor, "vocab context_dim"],
        rotate: Rotation | None = None,
        *,
        ids: Int[Tensor, "batch keys"] | None = None,
        queries: int | None = None,
    ) -> tuple[Float[Tensor, "batch heads keys d"], Float[Tensor, "batch heads keys dv"]]:
        """What latents read of `context`, or of its rows `ids`; it depends on nothing else.

        With the number of `queries` it may be the normed context, see `Attention.keys_values`.
        """
        return self.attention.keys_values(context, rotate, ids=ids, norm=self.norm_context, queries=queries)

    def rows(
        self, table: Float[Tensor, "vocab context_dim"], ids: Int[Tensor, "batch keys"], rotate: Rotation | None = None
    ) -> TakenRows:
        """What latents read of the rows `ids` of `table`, not made yet; for `read_rows`."""
        return self.attention.rows(table, ids, rotate, norm=self.norm_context)

    def read(
        self,
        latents: Float[Tensor, "batch queries dim"],
        keys: Float[Tensor, "batch heads keys d"],
        values: Float[Tensor, "batch heads keys dv"],
        *,
        mask: AttentionMask,
        rotate_q: Rotation | None = None,
        shared: SharedContext | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Latents after reading keys and values, and a `shared` context before them."""
        read = self.attention.read(
            self.norm_latents(latents),
            keys,
            values,
            mask=mask,
            rotate_q=rotate_q,
            shared=shared,
            norm=self.norm_context,
        )
        return self._after(latents, read)

    def read_rows(
        self,
        latents: Float[Tensor, "batch queries dim"],
        rows: TakenRows,
        *,
        mask: AttentionMask,
        rotate_q: Rotation | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Latents after reading keys and values as they are taken by id."""
        read = self.attention.read_rows(self.norm_latents(latents), rows, mask=mask, rotate_q=rotate_q)
        return self._after(latents, read)

    def _after(self, latents: Tensor, read: Tensor) -> Tensor:
        read = self.dropout(read)
        x = latents + read if self.query_residual else read
        return x + self.dropout(self.feed_forward(self.norm(x)))


class SelfAttentionBlock(nn.Module):
    """Latents read each other.

    Source: `SelfAttention` of perceiver_ar_model.py.

    Args:
        dim: Channels.
        heads: Heads.
        widening: Width of the feed-forward layer, in multiples of `dim`.
        activation: Of the feed-forward layer.
        inner_dim: Channels of queries and keys; None for `dim`.
        dropout: Share of the channels dropped from what either branch adds.
        drop_path: Share of the samples for which a branch is left out in training.
        rows: Consecutive rows of one sample, whose branches are left out together.
        backend: Of the attention.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        widening: int,
        activation: ActivationName,
        inner_dim: int | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        rows: int = 1,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim)
        self.attention = Attention(
            dim, dim, heads=heads, inner_dim=dim if inner_dim is None else inner_dim, value_dim=dim, backend=backend
        )
        self.norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, widening=widening, activation=activation)
        self.dropout = Dropout(dropout)
        self.drop_path = DropPath(drop_path, rows=rows)

    def forward(
        self,
        x: Float[Tensor, "batch n dim"],
        *,
        mask: AttentionMask,
        rotate: Rotation | None = None,
        cache: KVCache | None = None,
        cached: int = 0,
    ) -> Float[Tensor, "batch n dim"]:
        """Latents after reading each other, and the `cached` ones before them, whose place after those they take."""
        normed = self.norm_attention(x)
        keys, values = self.attention.keys_values(normed, rotate)
        if cache is not None:
            cache.write(cached, keys, values)
            keys, values = cache.read(0, cached + x.shape[1])
        read = self.attention.read(normed, keys, values, mask=mask, rotate_q=rotate)
        x = x + self.drop_path(self.dropout(read))
        return x + self.drop_path(self.dropout(self.feed_forward(self.norm(x))))
