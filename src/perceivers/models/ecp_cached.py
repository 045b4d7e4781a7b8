"""ECP token by token, from keys and values of two segments a layer: the same memory and work for every token.

A token reads its own segment and the one before, so nothing older is needed. A ring holds both: position p is kept at
place p modulo two segments, and a segment takes the place of the one two before it, token by token.

    segments of 4    ring  8 9 2 3 4 5 6 7    at position 9, which reads 4 to 9: 2 and 3 are not yet replaced

Nothing limits the length: rotations see distances alone.
"""

import sys

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from perceivers.models.cached import COMPILE_OPTIONS
from perceivers.models.ecp import ECP, ECPLayer, SegmentAttention
from perceivers.models.ecp_config import ECPConfig
from perceivers.nn.attention import attend
from perceivers.nn.cache import KVCache
from perceivers.nn.checks import check_ids, check_prompts, check_tensor
from perceivers.nn.masks import AttentionMask


def why_pattern_not_cached(config: ECPConfig) -> str | None:
    """Why keys and values of this model can't be kept from one token to the next; None if they can."""
    if config.pattern == "ecp":
        return None
    return f"in pattern {config.pattern!r} each new token makes the oldest latent context, which changes what all read"


class CachedECP:
    """Next-token logits of prompts that grow, one token a row at a time.

    Exact: the logits are those of a full forward pass over the same row.

    Args:
        model: Of pattern ecp, in evaluation mode.
        dtype: Of kept keys and values; None for the model's.
        compiled: Compile the step of one token (it takes a minute, once).

    Raises:
        ValueError: A model of another pattern.
    """

    def __init__(self, model: ECP, *, dtype: torch.dtype | None = None, compiled: bool = False) -> None:
        if (reason := why_pattern_not_cached(model.config)) is not None:
            raise ValueError(f"keys and values of this model can't be kept: {reason}; generate without a cache")
        self.model, self.config = model, model.config
        self.layers: list[tuple[ECPLayer, SegmentAttention]] = []
        for layer in model.layers:
            assert isinstance(layer, ECPLayer)
            assert isinstance(layer.attention, SegmentAttention)
            self.layers.append((layer, layer.attention))
        self.dtype = dtype or model.norm.weight.dtype
        self._step = (
            torch.compile(self._one_token, dynamic=True, options=COMPILE_OPTIONS) if compiled else self._one_token
        )

    @torch.inference_mode()
    def start(
        self, prompts: list[list[int]], *, max_tokens: int, samples: int = 1, positions: object = None
    ) -> Float[Tensor, "prompts_samples vocab"]:
        """Read `prompts`, and give logits of the token after each.

        Args:
            prompts: Model ids, a row each, of any lengths but 0.
            max_tokens: Not needed: any number of tokens may follow.
            samples: Rows that continue each prompt; each has a ring of its own.
            positions: Not needed: an ECP counts for itself.

        Raises:
            ValueError: A prompt is empty, or has ids that the model does not know.
        """
        del max_tokens, positions
        check_prompts(prompts, samples)
        config, device = self.config, self.model.norm.weight.device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        longest = int(lengths.max())
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in prompts], device=device)
        check_ids(tokens, config.vocab_size)
        self.rings = [self._ring(len(prompts)) for _ in self.layers]
        logits = self.model.norm.weight.new_zeros(len(prompts), config.vocab_size)
        size = config.segment_len
        # A layer carries information one segment further: what lies more segments back than layers reaches no logit.
        first = max(0, (int(lengths.min()) - 1) // size - config.depth)
        for segment in range(first, -(-longest // size)):
            start = segment * size
            # Rows that end in an earlier segment have all they need: their rings stay as they are.
            rows = (lengths > start).nonzero()[:, 0]
            x = self._read_segment(tokens[rows, start : start + size], rows, segment, alone=segment == first)
            ends = (lengths[rows] <= start + size).nonzero()[:, 0]
            last = x[ends, lengths[rows[ends]] - 1 - start]
            logits[rows[ends]] = self.model.predict(last[:, None])[:, 0]
        self.rings = [ring.repeat(samples, 0, 2 * size, 2 * size) if samples > 1 else ring for ring in self.rings]
        self.position = lengths.repeat_interleave(samples)
        self.rows = torch.arange(len(self.position), device=device)
        self.shortest = int(lengths.min())
        return logits.repeat_interleave(samples, 0)

    @torch.inference_mode()
    def feed(self, tokens: Int[Tensor, " prompts_samples"]) -> Float[Tensor, "prompts_samples vocab"]:
        """Add a token to each row, and give logits of the one after it.

        Raises:
            ValueError: Not one id for each row.
        """
        check_tensor("tokens", tokens, "integers", (len(self.rows),))
        logits = self._step(tokens[:, None], self.shortest < self.config.segment_len)
        self.position += 1
        self.shortest += 1
        return logits

    def longest_prompt(self, max_tokens: int) -> int:
        """Tokens of a prompt that are read, at most: as many as there are."""
        del max_tokens
        return sys.maxsize

    @property
    def nbytes(self) -> int:
        """Memory that keys and values take, in bytes."""
        return sum(ring.nbytes for ring in self.rings)

    def _ring(self, rows: int) -> KVCache:
        config, device = self.config, self.model.norm.weight.device
        ring = KVCache(rows, config.heads, 2 * config.segment_len, config.head_dim, dtype=self.dtype, device=device)
        ring.keys.zero_()  # places that nothing was written to are masked, but a NaN in them would spread
        ring.values.zero_()
        return ring

    def _read_segment(
        self, tokens: Int[Tensor, "rows m"], rows: Int[Tensor, " rows"], segment: int, *, alone: bool
    ) -> Float[Tensor, "rows m dim"]:
        """What the last layer gives for a segment of some rows, or its beginning; their rings take it."""
        size, count = self.config.segment_len, tokens.shape[1]
        at, before = segment % 2 * size, (1 - segment % 2) * size
        rotate = self.model.rotation(torch.arange(segment * size, segment * size + count, device=tokens.device)[None])
        x = self.model.token_embedding(tokens)
        for i, ((layer, attention), ring) in enumerate(zip(self.layers, self.rings, strict=True)):
            turn = rotate if i == 0 or self.config.rotary == "all" else None
            q, k, v = attention.project(layer.norm_attention(x), turn)
            k, v = k.to(self.dtype), v.to(self.dtype)
            ring.keys[rows, :, at : at + count], ring.values[rows, :, at : at + count] = k, v
            if not alone:
                k = torch.cat([ring.keys[rows, :, before : before + size], k], 2)
                v = torch.cat([ring.values[rows, :, before : before + size], v], 2)
            read = attend(q.to(self.dtype), k, v, mask=AttentionMask(causal=True), backend=self.config.backend)
            x = layer.add(x, self._output(attention, read.to(x.dtype), first=segment == 0))
        return x

    def _one_token(self, tokens: Int[Tensor, "rows 1"], some_first: bool) -> Float[Tensor, "rows vocab"]:
        """A token joins each row; `some_first` if any row is in its first segment."""
        size = self.config.segment_len
        place = self.position % (2 * size)
        real = self._real()
        rotate = self.model.rotation(self.position[:, None])
        x = self.model.token_embedding(tokens)
        for i, ((layer, attention), ring) in enumerate(zip(self.layers, self.rings, strict=True)):
            turn = rotate if i == 0 or self.config.rotary == "all" else None
            q, k, v = attention.project(layer.norm_attention(x), turn)
            ring.keys[self.rows, :, place] = k[:, :, 0].to(self.dtype)
            ring.values[self.rows, :, place] = v[:, :, 0].to(self.dtype)
            mask = AttentionMask(keys=real)
            read = attend(q.to(self.dtype), ring.keys, ring.values, mask=mask, backend=self.config.backend)
            first = (self.position < size)[:, None, None] if some_first else False
            x = layer.add(x, self._output(attention, read.to(x.dtype), first=first))
        return self.model.predict(x)[:, 0]

    def _real(self) -> Bool[Tensor, "rows places"]:
        """Places that the newest token of each row reads: its segment up to itself, and all of the one before."""
        size = self.config.segment_len
        places = torch.arange(2 * size, device=self.position.device)
        segment, offset = (self.position // size)[:, None], (self.position % size)[:, None]
        own = places // size == segment % 2
        return torch.where(own, places % size <= offset, segment > 0)

    def _output(
        self, attention: SegmentAttention, read: Float[Tensor, "rows h n d"], *, first: bool | Tensor
    ) -> Float[Tensor, "rows n dim"]:
        """Project what the heads read; rows in their first segment may have a projection of their own."""
        x = rearrange(read, "b h n d -> b n (h d)")
        if attention.to_first_out is None or first is False:
            return attention.to_out(x)
        if first is True:
            return attention.to_first_out(x)
        return torch.where(first, attention.to_first_out(x), attention.to_out(x))
