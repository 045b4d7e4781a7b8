"""Perceiver AR (Hawthorne et al. 2022, https://arxiv.org/abs/2202.07765), top to bottom.

An input of M tokens is embedded once. Its last N positions become latents, read the whole input through one
bottom-right causal cross-attend, and go through a causal stack of self-attention layers; latent i predicts the token
after its own.

Letters: b batch, m input positions, n latent positions.
"""

import torch
from einops import reduce, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from perceivers.models.misuse import check_config
from perceivers.models.perceiver_ar_config import (
    InputQueries,
    LearnedQueries,
    MLPQueries,
    PerceiverARConfig,
    RotaryPositions,
)
from perceivers.nn.activations import activate
from perceivers.nn.blocks import CrossAttentionBlock, SelfAttentionBlock
from perceivers.nn.checks import check_ids, check_lengths, check_tensor
from perceivers.nn.initial import truncated_normal, variance_scaling
from perceivers.nn.linear import Linear
from perceivers.nn.masks import AttentionMask, align_right, latent_mask, length_mask
from perceivers.nn.options import ActivationName
from perceivers.nn.positions import PositionTables, Rotation, fourier_table, sinusoidal_table
from perceivers.nn.spread import Spread


class PerceiverAR(nn.Module):
    """Logits of the next token at the last `num_latents` positions of an input.

    Source: `PerceiverAR` of perceiver_ar_model.py (google-research/perceiver-ar).
    """

    def __init__(self, config: PerceiverARConfig) -> None:
        super().__init__()
        check_config(self, config, PerceiverARConfig)
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.position_tables = position_tables(config)
        self.queries = LatentQueries(config)
        if config.latents_per_position > 1:
            self.latent_offsets = nn.Parameter(torch.empty(config.latents_per_position, config.dim))
        self.cross_attend = cross_attend(config) if config.initial_cross_attend else None
        self.layers = nn.ModuleList(
            SelfAttentionBlock(
                config.dim,
                heads=config.heads,
                widening=config.widening,
                activation=config.activation,
                dropout=config.dropout,
                backend=config.backend,
            )
            for _ in range(config.depth)
        )
        self.extra_cross_attends = nn.ModuleDict({str(i): cross_attend(config) for i in config.extra_cross_attends})
        self.norm = nn.LayerNorm(config.dim)
        self.logits = Linear(config.dim, config.vocab_size)
        self.spread: Spread | None = None
        """Where the context is spread over processes: which part of it is read here. See `spread_context`."""
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fresh weights, as in the reference.

        - linear layers: normal truncated at two standard deviations, variance 1 / inputs after truncation; biases 0
        - token embedding and random position tables: truncated normal, std 1
        - learned queries: truncated normal, std 0.02; latent offsets: `latent_init_std`
        - output layer: zero (`zero_logits`)
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                # 0.8796 is the standard deviation of a unit normal cut at two.
                variance_scaling(module.weight, module.in_features)
                nn.init.zeros_(module.bias)
        truncated_normal(self.token_embedding.weight, std=1.0)
        if self.config.zero_logits:
            nn.init.zeros_(self.logits.weight)
        if self.queries.learned is not None:
            truncated_normal(self.queries.learned, std=0.02)
        if self.config.latents_per_position > 1:
            truncated_normal(self.latent_offsets, std=self.config.latent_init_std)

    def forward(
        self,
        tokens: Int[Tensor, "batch seq"],
        *,
        positions: Int[Tensor, "batch seq axes"] | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
        num_latents: int | None = None,
        project: bool = True,
    ) -> Float[Tensor, "batch latents vocab"] | Float[Tensor, "batch latents dim"]:
        """Logits of the token after each of the last `num_latents` positions of every row.

        Args:
            tokens: Ids, right-padded.
            positions: As the data counts them, where `position_source` is `data`; None counts 1, 2, 3, ..., as the
                official pipeline numbers tokens. A model that counts for itself does not read them.
            lengths: Real tokens of each row; None where no row is padded (then no mask is built). Row r's latent j sits
                at column `lengths[r] - num_latents + j`; where that is negative its logits mean nothing.
            num_latents: In place of the configured number: less is faster, more reads more.
            project: Give logits; otherwise what the output layer `logits` makes them of.

        Raises:
            ValueError: A tensor of another shape or kind; unknown ids, rows longer than `max_seq_len` or lengths beyond
                a row (ids and lengths are looked at on a CPU alone); more latents than tokens or learned queries;
                positions of several axes missing, or beyond a table.
        """
        config = self.config
        num_latents = config.num_latents if num_latents is None else num_latents
        tokens, positions, real = self.align(tokens, positions, lengths, num_latents)
        if self.training and config.prefix_dropout:
            tokens, positions, real = self._drop_prefix(tokens, positions, real, num_latents)

        seq_len = tokens.shape[1]
        columns = slice(0, seq_len) if self.spread is None else self.spread.columns(seq_len, num_latents)
        context, ids = self.context(tokens[:, columns], positions[:, columns])
        rotate_k = self.rotate_context(positions[:, columns])
        if ids is None and self.spread is None:
            inputs = context[:, -num_latents:]
        else:
            inputs = self.embed(tokens[:, -num_latents:], positions[:, -num_latents:])
        latents = self.start_latents(inputs)
        rotate_q, rotate = self.rotate_latents(positions[:, -num_latents:])
        cross_mask = self.cross_mask(seq_len, num_latents, real, columns)
        mask = self.latent_mask(latents, None if real is None else real[:, -num_latents:])

        reading = {"ids": ids, "mask": cross_mask, "rotate_q": rotate_q, "rotate_k": rotate_k}
        if self.cross_attend is not None:
            latents = self.cross_attend(latents, context, **reading)
        for i, layer in enumerate(self.layers):
            latents = layer(latents, mask=mask, rotate=rotate)
            if i in config.extra_cross_attends:
                latents = self.extra_cross_attends[str(i)](latents, context, **reading)
        latents = self.outputs(latents)
        return self.logits(latents) if project else latents

    def spread_context(self, spread: Spread | None) -> None:
        """Read only a part of the context from here on, and the rest through other processes; None for all of it."""
        self.spread = spread
        for reader in self.readers().values():
            reader.attention.spread = spread

    def align(
        self, tokens: Tensor, positions: Tensor | None, lengths: Tensor | None, num_latents: int
    ) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "#batch seq axes"], Bool[Tensor, "batch seq"] | None]:
        """Rows with their padding at the left, positions, and which columns hold tokens (None: all)."""
        check_ids(tokens, self.config.vocab_size, self.config.max_seq_len)
        if positions is not None:
            check_tensor("positions", positions, "integers", (*tokens.shape, None))
        if not 0 < num_latents <= tokens.shape[1]:
            raise ValueError(f"num_latents={num_latents} must lie in 1..{tokens.shape[1]}, the length of the input")
        real = None
        if lengths is not None:
            check_lengths(lengths, *tokens.shape)
            real = length_mask(lengths, tokens.shape[1])
            tokens = align_right(tokens, lengths)
            positions = None if positions is None else align_right(positions, lengths)
        return tokens, self._positions(tokens, positions, real), real

    def context(
        self, tokens: Int[Tensor, "batch n"], positions: Int[Tensor, "#batch n axes"]
    ) -> tuple[Float[Tensor, "*context input_dim"], Int[Tensor, "batch n"] | None]:
        """What keys and values are projected from, and which of its rows they are (None: all, in order)."""
        if self.reads_by_id(tokens):
            return self.token_embedding.weight, tokens
        return self.embed(tokens, positions), None

    def reads_by_id(self, tokens: Int[Tensor, "batch seq"]) -> bool:
        """Whether keys and values are projected once for each id of the vocabulary, and not for each token.

        Without position tables they follow from the id alone, before keys turn. It is the same in exact arithmetic,
        and less work where there are more tokens than ids.
        """
        return self.position_tables is None and self.config.vocab_size < tokens.numel()

    def readers(self) -> dict[int, CrossAttentionBlock]:
        """Blocks that read the context, by the layer that they follow; -1 is before all layers."""
        found: dict[int, CrossAttentionBlock] = {} if self.cross_attend is None else {-1: self.cross_attend}
        extra = self.extra_cross_attends
        return found | {layer: extra[str(layer)] for layer in self.config.extra_cross_attends}  # pyright: ignore

    def embed(
        self, tokens: Int[Tensor, "batch n"], positions: Int[Tensor, "#batch n axes"]
    ) -> Float[Tensor, "batch n input_dim"]:
        """What the model sees of each token at its position."""
        embedded = self.token_embedding(tokens)
        return embedded if self.position_tables is None else embedded + self.position_tables(positions)

    def _positions(
        self, tokens: Tensor, positions: Tensor | None, real: Bool[Tensor, "b m"] | None
    ) -> Int[Tensor, "#b m axes"]:
        seq_len = tokens.shape[1]
        match self.config.position_source:
            case "data":
                axes = self.config.position_axes
                if positions is not None:
                    if (found := positions.shape[-1]) != axes:
                        raise ValueError(f"positions have {found} axes, but the model has {axes}")
                    return positions
                if axes != 1:
                    raise ValueError(
                        f"this model takes positions from the data, and those of {axes} axes can't be counted: pass "
                        f"positions= [batch, seq, {axes}]"
                    )
                steps = _counted(seq_len, real, first=1, device=tokens.device)
            case "start":
                steps = _counted(seq_len, real, first=0, device=tokens.device)
            case "end":
                steps = torch.arange(seq_len - 1, -1, -1, device=tokens.device)[None]
            case "negative_end":
                steps = torch.arange(1 - seq_len, 1, device=tokens.device)[None]
        return steps[..., None]

    def _drop_prefix(self, tokens: Tensor, positions: Tensor, real: Tensor | None, num_latents: int):
        """A random share of the prefix's columns, in order, and all latent columns.

        Differs from the reference: its encoder dropout hides latent positions too and saves no work.
        """
        batch, seq_len = tokens.shape
        prefix = seq_len - num_latents
        kept = prefix - round(prefix * self.config.prefix_dropout)
        columns = torch.rand(batch, prefix, device=tokens.device).argsort(1)[:, :kept].sort(1).values
        latents = torch.arange(prefix, seq_len, device=tokens.device).expand(batch, -1)
        columns = torch.cat([columns, latents], 1)
        positions = positions.expand(batch, -1, -1)
        positions = positions.gather(1, columns[..., None].expand(-1, -1, positions.shape[-1]))
        return tokens.gather(1, columns), positions, None if real is None else real.gather(1, columns)

    def start_latents(self, inputs: Float[Tensor, "batch n input_dim"]) -> Float[Tensor, "batch per_n dim"]:
        """Latents of the positions with these embeddings, before they read anything."""
        per_position = self.config.latents_per_position
        latents = self.queries.start(inputs)
        if per_position > 1:
            latents = repeat(latents, "b n d -> b (n per) d", per=per_position)
            latents = latents + self.latent_offsets.repeat(inputs.shape[1], 1)
        return self.queries.finish(latents)

    def outputs(self, latents: Float[Tensor, "batch per_n dim"]) -> Float[Tensor, "batch n dim"]:
        """What logits are made of, from latents that have read everything."""
        latents = self.norm(latents)
        if self.config.latents_per_position > 1:
            latents = reduce(latents, "b (n per) d -> b n d", "mean", per=self.config.latents_per_position)
        return latents

    def rotate_context(self, positions: Int[Tensor, "#batch n axes"]) -> Rotation | None:
        """How the cross-attends' keys turn; None for tables."""
        return self._rotation(positions[..., 0], cross=True)

    def rotate_latents(self, positions: Int[Tensor, "#batch n axes"]) -> tuple[Rotation | None, Rotation | None]:
        """How latents at these positions turn: as queries of the cross-attends, and in their own layers."""
        steps = positions[..., 0] + int(self.config.query_offset)
        steps = steps.repeat_interleave(self.config.latents_per_position, 1)
        return self._rotation(steps, cross=True), self._rotation(steps, cross=False)

    def _rotation(self, steps: Int[Tensor, "#b n"], *, cross: bool) -> Rotation | None:
        config, rotary = self.config, self.config.positions
        if not isinstance(rotary, RotaryPositions):
            return None
        width, heads = (config.cross_dim, config.cross_heads) if cross else (config.dim, config.heads)
        return Rotation.at(
            steps,
            channels=rotary.channels(width // heads),
            heads=rotary.heads(heads, rotary.cross_head_groups) if cross else rotary.heads(heads),
            max_wavelength=config.wavelength,
            dtype=self.token_embedding.weight.dtype,
        )

    def cross_mask(
        self, keys: int, num_latents: int, real: Bool[Tensor, "batch keys"] | None, columns: slice | None = None
    ) -> AttentionMask:
        """What latents at the last `num_latents` positions may read of a context that ends with them, or of a part."""
        per_position = self.config.latents_per_position
        if per_position == 1:
            mask = AttentionMask(causal=True, keys=real)
        else:
            pairs = AttentionMask(causal=True).dense(num_latents, keys, self.norm.weight.device)
            assert pairs is not None
            mask = AttentionMask(keys=real, pairs=pairs.repeat_interleave(per_position, 1))
        if columns is None or columns == slice(0, keys):
            return mask
        return mask.part(columns.start, columns.stop, queries=num_latents, keys=keys, device=self.norm.weight.device)

    def latent_mask(self, latents: Float[Tensor, "b per_n dim"], real: Bool[Tensor, "b n"] | None) -> AttentionMask:
        """What latents may read of each other; `real` says which of their positions hold tokens."""
        per_position = self.config.latents_per_position
        if real is not None:
            real = None if bool(real.all()) else real.repeat_interleave(per_position, 1)
        if self.training and self.config.latent_dropout:
            kept = torch.rand(latents.shape[:2], device=latents.device) >= self.config.latent_dropout
            real = kept if real is None else real & kept
        return latent_mask(latents.shape[1], real, block=per_position, device=latents.device)


class LatentQueries(nn.Module):
    """What latents start as: `start` once a position, `finish` once a latent."""

    def __init__(self, config: PerceiverARConfig) -> None:
        super().__init__()
        self.linear = self.learned = None
        self.mlp = nn.ModuleList()
        self.activation: ActivationName = config.activation
        match config.queries:
            case LearnedQueries(shared=shared):
                self.learned = nn.Parameter(torch.empty(1 if shared else config.num_latents, config.dim))
            case InputQueries():
                self.linear = Linear(config.embedding_dim, config.dim)
            case MLPQueries(layers=layers, activation=activation):
                self.linear = Linear(config.embedding_dim, config.dim)
                self.mlp = nn.ModuleList(Linear(config.dim, config.dim) for _ in range(layers))
                self.activation = activation

    def start(self, inputs: Float[Tensor, "b n input_dim"]) -> Float[Tensor, "b n dim"]:
        """One vector for each latent position, from the context at that position."""
        if self.linear is not None:
            return self.linear(inputs)
        assert self.learned is not None
        batch, num_latents, _ = inputs.shape
        if 1 < len(self.learned) < num_latents:
            raise ValueError(
                f"num_latents={num_latents}, but this model learned one query for each of {len(self.learned)} latents; "
                f"use at most {len(self.learned)}, or train with shared queries"
            )
        # Queries belong to distances from the end, so that short rows use the last ones.
        return self.learned[-num_latents:].expand(batch, num_latents, -1)

    def finish(self, latents: Float[Tensor, "b n dim"]) -> Float[Tensor, "b n dim"]:
        """The MLP, where there is one."""
        for layer in self.mlp:
            latents = activate(layer(latents), self.activation)
        return latents


def cross_attend(config: PerceiverARConfig) -> CrossAttentionBlock:
    """A cross-attend of the model that `config` describes."""
    return CrossAttentionBlock(
        config.dim,
        config.embedding_dim,
        heads=config.cross_heads,
        inner_dim=config.cross_dim,
        widening=config.cross_widening,
        activation=config.activation,
        dropout=config.dropout,
        query_residual=config.query_residual,
        backend=config.backend,
    )


def position_tables(config: PerceiverARConfig) -> PositionTables | None:
    """Fresh tables of absolute positions; None for rotary ones."""
    if isinstance(config.positions, RotaryPositions):
        return None
    dim = config.embedding_dim
    tables = []
    for size in config.table_sizes:
        match config.positions.table:
            case "sinusoidal":
                tables.append(sinusoidal_table(size, dim))
            case "fourier":
                tables.append(fourier_table(size, dim))
            case "random":
                tables.append(truncated_normal(torch.empty(size, dim), std=1.0))
    return PositionTables(tables, learned=config.positions.learned)


def _counted(
    seq_len: int, real: Bool[Tensor, "b m"] | None, *, first: int, device: torch.device
) -> Int[Tensor, "#b m"]:
    """Positions of right-aligned rows that count from `first`; 0 in padding."""
    steps = torch.arange(first, first + seq_len, device=device)[None]
    return steps if real is None else (steps - (~real).sum(1, keepdim=True)).clamp(min=0)


@torch.no_grad()
def latent_steps(lengths: Int[Tensor, " batch"], num_latents: int) -> Int[Tensor, "batch latents"]:
    """Column of each latent in its right-padded row; negative where the row is too short for it."""
    return lengths[:, None] + torch.arange(-num_latents, 0, device=lengths.device)
