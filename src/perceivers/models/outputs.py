"""Outputs of a Perceiver: the latents' average, or queries that read them.

Letters: b batch, n latents, q queries.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from perceivers.models.inputs import InputTokens, build_positions
from perceivers.models.output_config import (
    AverageOutputConfig,
    InputQueries,
    MultimodalOutputConfig,
    QueryOutputConfig,
)
from perceivers.models.output_heads import TiedLogits, build_head
from perceivers.nn.blocks import CrossAttentionBlock
from perceivers.nn.checks import check_kind, check_tensor
from perceivers.nn.initial import plain_layer, scaled_linears, truncated_normal
from perceivers.nn.linear import Linear
from perceivers.nn.masks import AttentionMask


class AverageOutput(nn.Module):
    """The average of the latents and a linear layer, which starts at zero.

    Source: `ProjectionDecoder` of perceiver.py (official Perceiver IO).
    """

    def __init__(self, config: AverageOutputConfig, latent_dim: int) -> None:
        super().__init__()
        self.linear = Linear(latent_dim, config.classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(
        self,
        latents: Float[Tensor, "b n dim"],
        inputs: InputTokens | None = None,
        *,
        query_mask: Bool[Tensor, "b q"] | None = None,
        points: Int[Tensor, " q"] | None = None,
    ) -> Float[Tensor, "b classes"]:
        """Logits.

        Raises:
            ValueError: There are no queries that could be masked or chosen.
        """
        if query_mask is not None or points is not None:
            raise ValueError("an average has no queries: leave out query_mask and points")
        return self.linear(latents.mean(1))


class QueryOutput(nn.Module):
    """Queries read the latents through one cross-attend; their results are projected and shaped.

    Source: `BasicDecoder` of perceiver.py (official Perceiver IO).

    Args:
        config: See there.
        latent_dim: Channels of the latents.
        query_dim: Channels of the queries (`config.query_dim`).
    """

    def __init__(self, config: QueryOutputConfig, latent_dim: int, query_dim: int) -> None:
        super().__init__()
        self.config = config
        queries = config.queries
        self.queries = None if isinstance(queries, InputQueries) else build_positions(queries.positions, queries.shape)
        self.cross_attend = cross_attend(config, query_dim, latent_dim)
        self.linear = None
        if config.channels is not None:
            self.linear = Linear(query_dim, config.channels)
            plain_layer(self.linear)
            if config.zero_channels:
                nn.init.zeros_(self.linear.weight)
        self.head = build_head(config.head, query_dim if config.channels is None else config.channels)

    def forward(
        self,
        latents: Float[Tensor, "b n dim"],
        inputs: InputTokens | None = None,
        *,
        query_mask: Bool[Tensor, "b q"] | None = None,
        points: Int[Tensor, " q"] | None = None,
    ) -> Float[Tensor, "b *result"]:
        """What the queries get.

        Args:
            latents: What they read.
            inputs: The model's input, for queries and embeddings that are the input's.
            query_mask: Queries that read; the others read zeros.
            points: Query these points of the grid (flat indices), in place of all.

        Raises:
            ValueError: The input is missing where it is needed, `points` where there is no grid, or their shapes.
        """
        x = self.attend(latents, self.make_queries(latents, inputs, points), query_mask=query_mask)
        if self.linear is not None:
            x = self.linear(x)
        if isinstance(self.head, TiedLogits):
            return self.head(x, _given(inputs).table)
        return x if self.head is None else self.head(x)

    def make_queries(
        self,
        latents: Float[Tensor, "b n dim"],
        inputs: InputTokens | None = None,
        points: Int[Tensor, " q"] | None = None,
    ) -> Float[Tensor, "b q query_dim"]:
        """The queries."""
        if isinstance(self.config.queries, InputQueries) or self.queries is None:
            tokens = _given(inputs).tokens
            return tokens if points is None else tokens[:, points]
        check_points(points, self.config.queries.shape)
        queries = self.queries(latents, points=points)
        if not self.config.queries.features:
            return queries
        features = _given(inputs).features
        assert features is not None
        return torch.cat([features if points is None else features[:, points], queries], -1)

    def attend(
        self,
        latents: Float[Tensor, "b n dim"],
        queries: Float[Tensor, "b q query_dim"],
        *,
        query_mask: Bool[Tensor, "_ _"] | None = None,
    ) -> Float[Tensor, "b q query_dim"]:
        """What the queries read, before it is projected."""
        mask = AttentionMask()
        if query_mask is not None:
            check_kind("query_mask", query_mask, "truth values")
            if query_mask.shape != queries.shape[:2]:
                raise ValueError(
                    f"query_mask has shape {list(query_mask.shape)}, but there are {list(queries.shape[:2])} queries"
                )
            mask = AttentionMask(pairs=query_mask[..., None].expand(-1, -1, latents.shape[1]))
        return self.cross_attend(queries, latents, mask=mask)


class MultimodalOutput(nn.Module):
    """Queries of several modalities, in the order of their names, read the latents through one cross-attend.

    Source: `MultimodalDecoder` of perceiver.py and `MultimodalPostprocessor` of io_processors.py.
    """

    def __init__(self, config: MultimodalOutputConfig, latent_dim: int) -> None:
        super().__init__()
        modalities = sorted(config.modalities, key=lambda modality: modality.name)
        self.shapes = {modality.name: modality.queries.shape for modality in modalities}
        self.queries = nn.ModuleDict()
        self.padding = nn.ParameterDict()
        self.heads = nn.ModuleDict()
        for modality in modalities:
            self.queries[modality.name] = build_positions(modality.queries.positions, modality.queries.shape)
            padding = nn.Parameter(torch.empty(1, config.query_dim - modality.queries.dim))
            truncated_normal(padding, std=0.02)
            self.padding[modality.name] = padding
            self.heads[modality.name] = build_head(modality.head, config.channels)  # pyright: ignore[reportArgumentType]
        self.cross_attend = cross_attend(config, config.query_dim, latent_dim)
        self.linear = Linear(config.query_dim, config.channels)
        plain_layer(self.linear)

    def forward(
        self,
        latents: Float[Tensor, "b n dim"],
        inputs: InputTokens | None = None,
        *,
        query_mask: Bool[Tensor, "b q"] | None = None,
        points: Mapping[str, Int[Tensor, " _"]] | None = None,
    ) -> dict[str, Tensor]:
        """Results by modality.

        Args:
            latents: What the queries read.
            inputs: Not used.
            query_mask: None: as in the reference, several modalities have none.
            points: Points of some modalities' grids (flat indices); other modalities are asked for in full.

        Raises:
            ValueError: A query mask, an unknown modality, or points beyond a grid.
        """
        if query_mask is not None:
            raise ValueError("query_mask: an output of several modalities has none; choose points instead")
        queries = self.make_queries(latents, points or {})
        x = self.linear(self.cross_attend(torch.cat(list(queries.values()), 1), latents, mask=AttentionMask()))
        parts = x.split([part.shape[1] for part in queries.values()], 1)
        return {name: self.heads[name](part) for name, part in zip(queries, parts, strict=True)}

    def make_queries(
        self, latents: Float[Tensor, "b n dim"], points: Mapping[str, Int[Tensor, " _"]]
    ) -> dict[str, Float[Tensor, "b _ query_dim"]]:
        """The queries by modality, equally wide."""
        if unknown := sorted(points.keys() - self.shapes.keys()):
            raise ValueError(
                f"points are given for the unknown modality {unknown[0]!r}; this model has {', '.join(self.shapes)}"
            )
        queries = {}
        for name, positions in self.queries.items():
            check_points(points.get(name), self.shapes[name])
            own = positions(latents, points=points.get(name))
            queries[name] = torch.cat([own, self.padding[name].expand(*own.shape[:2], -1)], -1)
        return queries


def cross_attend(
    config: QueryOutputConfig | MultimodalOutputConfig, query_dim: int, latent_dim: int
) -> CrossAttentionBlock:
    """The cross-attend of the output that `config` describes."""
    qk_dim, value_dim = config.dims(latent_dim)
    block = CrossAttentionBlock(
        query_dim,
        latent_dim,
        heads=config.heads,
        inner_dim=qk_dim,
        value_dim=value_dim,
        zero_empty=True,
        widening=config.widening,
        activation=config.activation,
        query_residual=config.query_residual,
        backend=config.backend,
    )
    scaled_linears(block)
    return block


def check_points(points: Int[Tensor, " q"] | None, shape: tuple[int, ...]) -> None:
    """Check that flat indices lie in a grid of `shape`."""
    size = torch.Size(shape).numel()
    if points is not None:
        check_tensor("points", points, "integers", (None,))
    if points is not None and len(points) and not (points.min() >= 0 and points.max() < size):
        raise ValueError(
            f"points reach from {points.min().item()} to {points.max().item()}, but a grid of {list(shape)} has "
            f"0 to {size - 1}"
        )


def _given(inputs: InputTokens | None) -> InputTokens:
    if inputs is None:
        raise ValueError("this output asks with the input's tokens or embeddings; pass inputs= (what the input made)")
    return inputs


Output = AverageOutput | QueryOutput | MultimodalOutput
