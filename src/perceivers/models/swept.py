"""Many blocks of latents over one context: Perceiver AR trained on more of a long row in one step.

A row's last positions are cut in blocks of `num_latents`. Each block is what the model would be given if the row ended
with it: its latents read everything before and themselves, and nothing of other blocks' latents. Keys and values of the
context are computed once for all of them. With positions from the data and without dropout a row's losses are those of
as many crops, which end where the blocks end.

Letters: b batch, n positions that predict, all blocks together.
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from perceivers.models.perceiver_ar import PerceiverAR
from perceivers.nn.attention import FUSED_KERNELS

again = partial(
    checkpoint,
    use_reentrant=False,
    context_fn=partial(create_selective_checkpoint_contexts, list(FUSED_KERNELS)),
)
"""Computes a function again for its gradients, but not attention: what was read of a long context is small, and took
most of the time."""


def swept(
    model: PerceiverAR,
    tokens: Int[Tensor, "b seq"],
    *,
    positions: Int[Tensor, "b seq axes"] | None = None,
    lengths: Int[Tensor, " b"] | None = None,
    num_latents: int,
    project: bool = True,
) -> Float[Tensor, "b n _"]:
    """Logits of the token after each of the last `num_latents` positions of every row.

    Each block but the last, whose gradients come first, is computed again for them, so that training keeps the context
    and one block.

    Args:
        model: Its `num_latents` are the length of a block.
        tokens: Ids, right-padded.
        positions: As the model takes them.
        lengths: Real tokens of each row; None where no row is padded. Where a row has fewer than `num_latents`, the
            first logits mean nothing.
        num_latents: Positions that predict; the first block has what is left over.
        project: Give logits; otherwise what the output layer makes them of.

    Raises:
        ValueError: More positions than tokens; a model with dropout of its prefix.
    """
    if model.config.prefix_dropout:
        raise ValueError("prefix_dropout hides another part of the context from each crop: sweep without it")
    tokens, positions, real = model.align(tokens, positions, lengths, num_latents)
    inputs = model.embed(tokens[:, -num_latents:], positions[:, -num_latents:])
    context, ids = model.context(tokens, positions)
    rotate = model.rotate_context(positions)
    kept = {layer: reader.keys_values(context, rotate, ids=ids) for layer, reader in model.readers().items()}
    rows = Rows(kept, inputs, positions[:, -num_latents:], real)
    size = model.config.num_latents
    with _casts_repeated(tokens.device.type):
        blocks = [
            again(_block, model, rows, max(stop - size, -num_latents), stop)
            for stop in reversed(range(-size, -num_latents, -size))
        ]
        blocks.append(_block(model, rows, max(-size, -num_latents), 0))
    outputs = torch.cat(blocks, 1)  # pyright: ignore[reportArgumentType]
    return model.logits(outputs) if project else outputs


@dataclass(frozen=True)
class Rows:
    """What all blocks share."""

    kept: dict[int, tuple[Float[Tensor, "b heads seq d"], Float[Tensor, "b heads seq dv"]]]
    """Keys and values of the context, by the layer that reads them."""
    inputs: Float[Tensor, "b n input_dim"]
    """What latents start from."""
    positions: Int[Tensor, "#b n axes"]
    """Of the inputs."""
    real: Bool[Tensor, "b seq"] | None
    """Columns that hold tokens; None for all."""


def _casts_repeated(device: str) -> torch.autocast:
    """Autocast as it is, but each block casts weights anew: computed again, it must do what it did before."""
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return torch.autocast(device, dtype, enabled, cache_enabled=False)


def _block(model: PerceiverAR, rows: Rows, start: int, stop: int) -> Float[Tensor, "b block dim"]:
    """Outputs of the inputs from `start` to `stop`, counted from the end and thus negative (0: the end)."""
    latents = model.start_latents(rows.inputs[:, start : stop or None])
    rotate_q, rotate = model.rotate_latents(rows.positions[:, start : stop or None])
    real = None if rows.real is None else rows.real[:, : stop or None]
    mask = model.latent_mask(latents, None if real is None else real[:, start - stop :])
    readers = model.readers()

    def read(layer: int, latents: Tensor) -> Tensor:
        keys, values = (x[:, :, : stop or None] for x in rows.kept[layer])
        cross_mask = model.cross_mask(keys.shape[2], stop - start, real)
        return readers[layer].read(latents, keys, values, mask=cross_mask, rotate_q=rotate_q)

    if -1 in readers:
        latents = read(-1, latents)
    for i, layer in enumerate(model.layers):
        latents = layer(latents, mask=mask, rotate=rotate)
        if i in readers:
            latents = read(i, latents)
    return model.outputs(latents)
