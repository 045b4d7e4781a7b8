"""From a prompt to a continuation, one token at a time.

Each token is drawn after a full forward pass over the newest `max_seq_len` tokens: plain, and right at every length.
"""

from collections.abc import Iterator

import torch
from torch import nn

from perceivers.data.batch import EOS, NUM_SPECIAL, PAD, SOS
from perceivers.device import autocast
from perceivers.generate.config import SamplingConfig
from perceivers.generate.constraints import Constraint
from perceivers.generate.sampling import sample
from perceivers.models.config import PerceiverARConfig


def decode(
    model: nn.Module,
    prompt: list[int],
    *,
    max_tokens: int,
    sampling: SamplingConfig | None = None,
    num_latents: int | None = None,
    stop_at_eos: bool = True,
    constraint: Constraint | None = None,
    precision: str = "float32",
) -> Iterator[int]:
    """Model ids that continue `prompt`, as they are drawn.

    PAD and SOS are never drawn.

    Args:
        model: A Perceiver AR, in evaluation mode.
        prompt: Model ids, SOS first; positions count from 1. Of a prompt longer than the model's input only the newest
            tokens are read.
        max_tokens: Most tokens to draw.
        sampling: How to draw.
        num_latents: Latents to compute each token with; None for as many as in training.
        stop_at_eos: End before an EOS; otherwise none is drawn.
        constraint: Which raw ids may follow those so far; None for all.
        precision: As in training.

    Raises:
        ValueError: The prompt is empty, has unknown ids, or runs past a position table.
    """
    config: PerceiverARConfig = model.config  # pyright: ignore[reportAssignmentType]
    check_prompt(prompt, config, max_tokens)
    sampling = sampling or SamplingConfig()
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(sampling.seed)
    allowed = torch.ones(config.vocab_size, dtype=torch.bool, device=device)
    allowed[[PAD, SOS]] = False
    allowed[EOS] = stop_at_eos
    tokens = torch.tensor([prompt], device=device)
    raw = [token - NUM_SPECIAL for token in prompt if token >= NUM_SPECIAL]
    for _ in range(max_tokens):
        if constraint is not None:
            allowed[NUM_SPECIAL:] = torch.from_numpy(constraint(raw)).to(device)
        context = tokens[:, -config.max_seq_len :]
        first = tokens.shape[1] - context.shape[1] + 1
        positions = torch.arange(first, tokens.shape[1] + 1, device=device)[None, :, None]
        latents = min(num_latents or config.num_latents, context.shape[1])
        with torch.no_grad(), autocast(device, precision):
            logits = model(context, positions=positions, num_latents=latents)[:, -1]
        token = sample(logits, sampling, allowed=allowed, generator=generator)
        if token.item() == EOS:
            return
        yield int(token.item())
        raw.append(int(token.item()) - NUM_SPECIAL)
        tokens = torch.cat([tokens, token[None]], 1)


def check_prompt(prompt: list[int], config: PerceiverARConfig, max_tokens: int) -> None:
    """Refuse what the model can't read.

    Raises:
        ValueError: Says what is wrong.
    """
    if not prompt:
        raise ValueError("the prompt is empty: give at least the start token, SOS")
    if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
        bad = next(token for token in prompt if not 0 <= token < config.vocab_size)
        raise ValueError(f"the prompt holds id {bad}, the model knows 0..{config.vocab_size - 1}")
    if config.position_axes != 1:
        raise ValueError(f"this model's positions have {config.position_axes} axes; only sequences can be generated")
    last = config.max_position
    if last is not None and len(prompt) + max_tokens - 1 > last:
        raise ValueError(
            f"a prompt of {len(prompt)} tokens and {max_tokens} new ones pass position {last}, where this "
            f"model's position table ends: ask for at most {max(last + 1 - len(prompt), 0)} new tokens"
        )
