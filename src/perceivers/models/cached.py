"""Perceiver AR token by token, from keys and values that are kept.

Keys and values of the context depend on the input alone: they are computed once for each position and kept for the
whole generation. Latents depend on the latents before them, so their keys and values fit only while none has to leave.
Each new token adds one; when `num_latents` are there, they are forgotten, and the newest `refill` positions become
latents again, in one pass that reads the kept context.

    latents   1 2 3 4 5 6 7 8 | 5 6 7 8 9 | ...          num_latents 8, refill 4: 9 came, 6 to 9 were rebuilt

The official sampler (`sample_position`, sample_utils.py) counts alike, and computes the whole context again there.
Where an input is as long as the model allows, its oldest tokens leave when latents are rebuilt, so many that the next
ones have room: between two rebuilds all latents have read the same input.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from perceivers.models.perceiver_ar import PerceiverAR
from perceivers.models.perceiver_ar_config import LearnedQueries, PerceiverARConfig, TablePositions
from perceivers.nn.attention import SharedContext
from perceivers.nn.cache import KVCache
from perceivers.nn.checks import check_ids, check_prompts, check_tensor
from perceivers.nn.masks import AttentionMask, causal_mask

# Of `torch.compile`: none, so that it looks at each step whether the model is the one that it compiled.
COMPILE_OPTIONS: dict[str, Any] | None = None

# Positions whose keys and values are computed at once.
CHUNK = 4096


def why_not_cached(config: PerceiverARConfig) -> str | None:
    """Why keys and values of this model can't be kept from one token to the next; None if they can."""
    if isinstance(config.positions, TablePositions) and config.position_source == "end":
        return "its position tables count back from the end, so each new token changes every key"
    if isinstance(config.queries, LearnedQueries) and not config.queries.shared:
        return "its queries are learned by distance from the end, so each new token changes every latent"
    return None


class CachedPerceiverAR:
    """Next-token logits of prompts that grow, one token a row at a time.

    Exact: the logits are those of a full forward pass over the same input with the same latents. Position tables end
    where they end. Each extra cross-attend keeps the context once more; several latents per position multiply the
    latents' part.

    Args:
        model: In evaluation mode.
        num_latents: Latents that may be there before they are rebuilt; None for as many as in training.
        refill: Latents to rebuild; None for half of them.
        prompt_latents: Latents that a prompt starts with, 1 in the reference; None for `refill`.
        dtype: Of kept keys and values; None for the model's.
        compiled: Compile the step of one token (it takes a minute, once).

    Raises:
        ValueError: Keys and values of this model can't be kept, or the numbers don't fit each other.
    """

    def __init__(
        self,
        model: PerceiverAR,
        *,
        num_latents: int | None = None,
        refill: int | None = None,
        prompt_latents: int | None = None,
        dtype: torch.dtype | None = None,
        compiled: bool = False,
    ) -> None:
        config = model.config
        if (reason := why_not_cached(config)) is not None:
            raise ValueError(f"keys and values of this model can't be kept: {reason}; generate without a cache")
        self.model, self.config = model, config
        self.num_latents = config.num_latents if num_latents is None else num_latents
        if not 0 < self.num_latents <= config.max_seq_len:
            raise ValueError(
                f"num_latents={self.num_latents} must lie in 1..{config.max_seq_len}, the length of the model's input"
            )
        self.refill = max(1, self.num_latents // 2) if refill is None else refill
        if not 0 < self.refill <= max(1, self.num_latents - 1):
            raise ValueError(
                f"refill={self.refill} must be at least 1 and less than num_latents={self.num_latents}: "
                "rebuilt latents need room for new ones"
            )
        self.prompt_latents = self.refill if prompt_latents is None else prompt_latents
        if not 0 < self.prompt_latents <= self.num_latents:
            raise ValueError(
                f"prompt_latents={self.prompt_latents} must lie in 1..{self.num_latents}, the number of latents"
            )
        self.dtype = dtype or model.norm.weight.dtype
        self.readers = model.readers()
        self._step = (
            torch.compile(self._one_token, dynamic=True, options=COMPILE_OPTIONS) if compiled else self._one_token
        )

    @torch.inference_mode()
    def start(
        self,
        prompts: list[list[int]],
        *,
        max_tokens: int,
        samples: int = 1,
        positions: list[Int[Tensor, "_ axes"]] | None = None,
    ) -> Float[Tensor, "prompts_samples vocab"]:
        """Read `prompts`, and give logits of the token after each.

        Args:
            prompts: Model ids, a row each, of any lengths.
            max_tokens: Tokens that will follow.
            samples: Rows that continue each prompt; they keep its context once.
            positions: Of each prompt's tokens and of all that will follow but the last, for a model that takes them
                from the data; None to count.

        Raises:
            ValueError: The prompts and what follows pass the end of a position table; a prompt is empty, or has ids
                that the model does not know.
        """
        check_prompts(prompts, samples)
        if max_tokens < 1:
            raise ValueError(f"max_tokens={max_tokens} must be at least 1")
        self.until_refill, self.to_come = self.num_latents - self.prompt_latents, max_tokens - 1
        longest = min(max(map(len, prompts)), self.longest_prompt(max_tokens))
        self._check_table(longest, max_tokens)
        kept = [prompt[-longest:] for prompt in prompts]
        device = self.model.norm.weight.device
        tokens = torch.tensor([[0] * (longest - len(row)) + row for row in kept], device=device)
        check_ids(tokens, self.config.vocab_size)
        self.pads = torch.tensor([longest - len(row) for row in kept], device=device)
        left_out = torch.tensor([len(prompt) - len(row) for prompt, row in zip(prompts, kept, strict=True)])
        counted = self.config.position_source == "data"
        self.first_positions = (left_out.to(device) + 1 if counted else 0) - self.pads
        self.given = None
        if positions is not None:
            places = longest + self.to_come
            rows = [row[out : out + places] for row, out in zip(positions, left_out.tolist(), strict=True)]
            self.given = _at_columns(rows, self.pads.tolist(), places).to(device)
        self.most_padded = longest - min(map(len, kept))
        self.shared: dict[int, KVCache] = {}
        self.shared_start = self.shared_end = 0
        self._allocate(len(prompts), longest if samples > 1 else self._places(longest))
        for at in range(0, longest, CHUNK):
            self._read_tokens(tokens[:, at : at + CHUNK])
        logits = self._rebuild(self.prompt_latents)
        if samples > 1:
            self._fork(samples)
        return logits.repeat_interleave(samples, 0)

    @torch.inference_mode()
    def feed(self, tokens: Int[Tensor, " prompts_samples"]) -> Float[Tensor, "prompts_samples vocab"]:
        """Add a token to each row, and give logits of the one after it.

        Raises:
            ValueError: More tokens than `start` was told of, or not one id for each row.
        """
        check_tensor("tokens", tokens, "integers", (len(self.tokens),))
        if self.to_come == 0:
            raise ValueError("as many tokens as max_tokens said have come: start again with more")
        self.to_come -= 1
        if self.until_refill == 0:
            self.until_refill = self.num_latents - self.refill
            self._make_room(1 + min(self.until_refill, self.to_come))
            self._read_tokens(tokens[:, None])
            return self._rebuild(self.refill)
        self.until_refill -= 1
        self.tokens[:, self.end] = tokens
        positions = self._positions(self.end, self.end + 1)
        logits = self._step(tokens[:, None], positions, self.end, self.latents)
        self.end += 1
        self.latents += 1
        return logits

    def longest_prompt(self, max_tokens: int) -> int:
        """Tokens of a prompt that are read, at most: those until the latents are first rebuilt need room."""
        return self.config.max_seq_len - min(self.num_latents - self.prompt_latents, max_tokens - 1)

    @property
    def nbytes(self) -> int:
        """Memory that keys and values take, in bytes."""
        return sum(cache.nbytes for cache in [*self.shared.values(), *self.context.values(), *self.layers])

    def _check_table(self, longest: int, max_tokens: int) -> None:
        config = self.config
        if not isinstance(config.positions, TablePositions) or config.position_source == "data":
            return  # positions of the data are checked where prompts are
        if (most := min(config.max_seq_len, config.table_sizes[0]) - longest + 1) < max_tokens:
            raise ValueError(
                f"{longest} tokens and {max_tokens} new ones pass the model's input of {config.max_seq_len}, where its "
                f"position table ends: ask for at most {max(most, 0)} new tokens, or turn the cache off"
            )

    def _places(self, longest: int) -> int:
        """Places for a context that grows."""
        return min(longest + self.to_come, self.config.max_seq_len)

    def _allocate(self, rows: int, places: int) -> None:
        """Empty buffers. Nothing is allocated later, but for `samples`."""
        weight, config = self.model.norm.weight, self.config
        self.end = self.latents = 0
        self.first_column = 0  # column of place 0; columns count from the beginning of the longest row
        self.tokens = torch.zeros(rows, places, dtype=torch.long, device=weight.device)
        head = config.cross_dim // config.cross_heads
        options = {"dtype": self.dtype, "device": weight.device}
        self.context = {layer: KVCache(rows, config.cross_heads, places, head, **options) for layer in self.readers}
        self.layers = self._layer_caches(rows)

    def _layer_caches(self, rows: int) -> list[KVCache]:
        config = self.config
        places, device = self.num_latents * config.latents_per_position, self.model.norm.weight.device
        return [
            KVCache(rows, config.heads, places, config.dim // config.heads, dtype=self.dtype, device=device)
            for _ in range(config.depth)
        ]

    def _fork(self, samples: int) -> None:
        """Give each row `samples` copies, which share all of its context but the places that latents may start from."""
        own = min(self.end, max(self.refill, self.prompt_latents))
        split, places = self.end - own, self._places(own)
        self.shared, self.shared_start, self.shared_end = self.context, 0, split
        self.context = {layer: cache.repeat(samples, split, self.end, places) for layer, cache in self.shared.items()}
        stored = self.latents * self.config.latents_per_position
        self.layers = [cache.repeat(samples, 0, stored, cache.keys.shape[2]) for cache in self.layers]
        tokens = self.tokens.repeat_interleave(samples, 0)
        self.tokens = tokens.new_zeros(len(tokens), places)
        self.tokens[:, :own] = tokens[:, split:]
        self.pads = self.pads.repeat_interleave(samples)
        self.first_positions = self.first_positions.repeat_interleave(samples)
        self.given = None if self.given is None else self.given.repeat_interleave(samples, 0)
        self.first_column, self.end = split, own

    def _make_room(self, tokens: int) -> None:
        """Let the oldest inputs leave, so that this many have room."""
        there = self.end + self.shared_end - self.shared_start
        leave = max(0, there + tokens - self.config.max_seq_len)
        of_shared = min(leave, self.shared_end - self.shared_start)
        self.shared_start += of_shared
        if (by := leave - of_shared) > 0:
            for cache in self.context.values():
                cache.shift(by, self.end)
            self.tokens[:, : self.end - by] = self.tokens[:, by : self.end].clone()
            self.first_column += by
            self.end -= by

    def _positions(self, start: int, end: int) -> Int[Tensor, "rows n axes"]:
        """Positions of places; 0 in padding, which nothing reads."""
        if self.given is not None:
            return self.given[:, start + self.first_column : end + self.first_column]
        columns = torch.arange(start, end, device=self.pads.device) + self.first_column
        positions = columns + self.first_positions[:, None]
        if self.most_padded:
            positions = positions.masked_fill(columns < self.pads[:, None], 0)
        # Rotations only see differences, and this one counts down: see `position_source`.
        return (-positions if self.config.position_source == "end" else positions)[..., None]

    def _real(self, start: int, end: int, first_column: int) -> Bool[Tensor, "rows n"] | None:
        """Which places hold tokens; None where all do."""
        if start + first_column >= self.most_padded:
            return None
        columns = torch.arange(start, end, device=self.pads.device) + first_column
        return columns >= self.pads[:, None]

    def _read_tokens(self, tokens: Int[Tensor, "rows n"]) -> None:
        """Add tokens to the context."""
        end = self.end + tokens.shape[1]
        self.tokens[:, self.end : end] = tokens
        positions = self._positions(self.end, end)
        self._keep_context(self.model.embed(tokens, positions), positions, self.end)
        self.end = end

    def _rebuild(self, latents: int) -> Float[Tensor, "rows vocab"]:
        """Forget all latents, and make the newest positions latents again."""
        latents = min(latents, self.end)
        start = self.end - latents
        positions = self._positions(start, self.end)
        inputs = self.model.embed(self.tokens[:, start : self.end], positions)
        self.latents = latents
        return self._read(inputs, positions, self.end, 0)

    def _one_token(
        self, tokens: Int[Tensor, "rows 1"], positions: Int[Tensor, "rows 1 axes"], end: int, cached: int
    ) -> Float[Tensor, "rows vocab"]:
        """A token joins the context at place `end`, and becomes the latent after `cached` others."""
        inputs = self.model.embed(tokens, positions)
        self._keep_context(inputs, positions, end)
        return self._read(inputs, positions, end + 1, cached)

    def _keep_context(
        self, inputs: Float[Tensor, "rows n input_dim"], positions: Int[Tensor, "rows n axes"], at: int
    ) -> None:
        rotate = self.model.rotate_context(positions)
        for layer, block in self.readers.items():
            self.context[layer].write(at, *block.keys_values(inputs, rotate))

    def _read(
        self,
        inputs: Float[Tensor, "rows n input_dim"],
        positions: Int[Tensor, "rows n axes"],
        end: int,
        cached: int,
    ) -> Float[Tensor, "rows vocab"]:
        """Logits of the last of the latents at places up to `end`, after `cached` other positions' latents."""
        model, per_position, n = self.model, self.config.latents_per_position, inputs.shape[1]
        rotate_q, rotate = model.rotate_latents(positions)
        cross_mask = model.cross_mask(end, n, self._real(0, end, self.first_column))
        mask = self._latent_mask(end - n - cached, end, n)
        latents = model.start_latents(inputs)
        for layer in range(-1, self.config.depth):
            if layer >= 0:
                latents = model.layers[layer](
                    latents, mask=mask, rotate=rotate, cache=self.layers[layer], cached=cached * per_position
                )
            if layer in self.readers:
                context = self.context[layer].read(0, end)
                shared = self._shared_context(layer)
                latents = self.readers[layer].read(latents, *context, mask=cross_mask, rotate_q=rotate_q, shared=shared)
        return model.logits(model.outputs(latents[:, -per_position:]))[:, 0]

    def _latent_mask(self, start: int, end: int, new: int) -> AttentionMask:
        """What the `new` newest positions' latents read of the latents from place `start` on."""
        per_position = self.config.latents_per_position
        real = self._real(start, end, self.first_column)
        real = None if real is None else real.repeat_interleave(per_position, 1)
        if per_position == 1:
            return AttentionMask(causal=True, keys=real)
        pairs = causal_mask(
            new * per_position, (end - start) * per_position, block=per_position, device=self.pads.device
        )
        return AttentionMask(keys=real, pairs=pairs[None])

    def _shared_context(self, layer: int) -> SharedContext | None:
        if self.shared_start == self.shared_end:
            return None
        keys, values = self.shared[layer].read(self.shared_start, self.shared_end)
        samples = len(self.pads) // len(keys)
        real = self._real(self.shared_start, self.shared_end, 0)
        return SharedContext(keys, values, None if real is None else real[::samples])


def _at_columns(rows: list[Int[Tensor, "_ axes"]], pads: list[int], places: int) -> Int[Tensor, "rows places axes"]:
    """Positions of `places` columns, of which `pads` at the left of each row hold none."""
    given = torch.zeros(len(rows), places, rows[0].shape[1], dtype=torch.long)
    for row, (positions, pad) in enumerate(zip(rows, pads, strict=True)):
        given[row, pad:] = positions[: places - pad]
    return given
