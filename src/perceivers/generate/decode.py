"""From prompts to continuations, one token a row at a time."""

import math
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from perceivers.arguments import checked_numbers
from perceivers.data.batch import EOS, NUM_SPECIAL, PAD, SOS
from perceivers.generate.config import DecodingConfig, SamplingConfig
from perceivers.generate.constraints import Constraint
from perceivers.generate.prompts import Positions, check_prompt, prompt_positions
from perceivers.generate.sampling import log_probabilities, sample
from perceivers.models.cached import CachedPerceiverAR, why_not_cached
from perceivers.models.ecp import ECP
from perceivers.models.ecp_cached import CachedECP, why_pattern_not_cached
from perceivers.models.ecp_config import ECPConfig
from perceivers.models.perceiver_ar import PerceiverAR

NOT_A_NUMBER = (
    "what the model predicts is not a number (NaN): its training went wrong, or its numbers are too large for this "
    "precision"
)


@dataclass(frozen=True)
class Step:
    """One more token of each row."""

    tokens: list[int | None]
    """None for rows that have ended."""
    log_probs: list[float]
    """What the model itself gave each token, in nats: before temperature, constraints and the like; 0 where ended."""


class FullForward:
    """Next-token logits by a full forward pass over each row: slow, and right for every model.

    Args:
        model: In evaluation mode.
        num_latents: Latents of each pass; None for as many as in training.
    """

    def __init__(self, model: PerceiverAR | ECP, *, num_latents: int | None = None) -> None:
        self.model, self.config = model, model.config
        self.num_latents, self.longest = num_latents or self.config.num_targets, self.config.max_seq_len
        if isinstance(self.config, ECPConfig) and self.config.pattern == "ecp":
            # Every position predicts, whatever comes after it, and nothing limits how many there are.
            self.num_latents, self.longest = 1, sys.maxsize

    def longest_prompt(self, max_tokens: int) -> int:
        """Tokens of a prompt that are read, at most, whatever `max_tokens` is."""
        del max_tokens
        return self.longest

    def start(
        self,
        prompts: list[list[int]],
        *,
        max_tokens: int,
        samples: int = 1,
        positions: list[Int[Tensor, "_ axes"]] | None = None,
    ) -> Float[Tensor, "rows vocab"]:
        """Logits of the token after each prompt, `samples` rows for each.

        Args:
            prompts: Model ids, a row each.
            max_tokens: Not needed.
            samples: Rows that continue each prompt.
            positions: Of each prompt's tokens and of those to come; None to count from 1.
        """
        del max_tokens
        self.rows = [list(prompt) for prompt in prompts for _ in range(samples)]
        self.positions = None if positions is None else [row for row in positions for _ in range(samples)]
        return self._logits()

    def feed(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocab"]:
        """Add a token to each row; logits of the one after it."""
        for row, token in zip(self.rows, tokens.tolist(), strict=True):
            row.append(token)
        return self._logits()

    @torch.no_grad()
    def _logits(self) -> Float[Tensor, "rows vocab"]:
        device = next(self.model.parameters()).device
        kept = [row[-self.longest :] for row in self.rows]
        lengths = torch.tensor([len(row) for row in kept], device=device)
        longest = max(map(len, kept))
        tokens = torch.tensor([row + [PAD] * (longest - len(row)) for row in kept], device=device)
        first = torch.tensor([len(row) - len(part) for row, part in zip(self.rows, kept, strict=True)], device=device)
        if self.positions is None:
            columns = torch.arange(1, longest + 1, device=device)
            positions = ((columns + first[:, None]) * (columns <= lengths[:, None]))[..., None]
        else:
            parts = (
                given[len(row) - len(part) : len(row)]
                for given, row, part in zip(self.positions, self.rows, kept, strict=True)
            )
            positions = nn.utils.rnn.pad_sequence(list(parts), batch_first=True).to(device)
        ragged = min(map(len, kept)) < longest
        logits = self.model(
            tokens,
            positions=positions,
            lengths=lengths if ragged else None,
            num_latents=min(self.num_latents, longest),
        )
        return logits[:, -1]


Predictor = CachedPerceiverAR | CachedECP | FullForward
"""Next-token logits of rows that grow: `start` with prompts, then `feed` a token a row."""


@checked_numbers(max_tokens=0)
def decode(
    model: nn.Module,
    prompts: list[list[int]],
    *,
    max_tokens: int,
    samples: int = 1,
    sampling: SamplingConfig | None = None,
    decoding: DecodingConfig | None = None,
    stop_at_eos: bool = True,
    constraint: Callable[[], Constraint] | None = None,
    positions: Collection[Positions] | None = None,
) -> Iterator[Step]:
    """Model ids that continue `prompts`, as they are drawn; PAD and SOS are never drawn.

    A row's tokens depend on its own prompt and seed alone, not on the other rows. The prompts are read, and whatever is
    wrong is found, before this returns.

    Args:
        model: A Perceiver AR or an ECP, in evaluation mode.
        prompts: Model ids, SOS first. Of a prompt longer than the model's input only the newest tokens are read; ECP of
            its own pattern reads all.
        max_tokens: Most tokens to draw, a row.
        samples: Continuations of each prompt: rows prompt by prompt. The j-th of each (from 0) has seed `seed + j`.
        sampling: How to draw.
        decoding: What is kept from token to token.
        stop_at_eos: A row ends before an EOS; otherwise none is drawn.
        constraint: Makes, for each row, what says which raw ids may follow those so far; None for all.
        positions: For a model that takes them from the data: for each prompt an integer array [tokens, axes] (of one
            axis [tokens] too), which begins with the SOS and reaches over the tokens to come: at least
            `len(prompt) + max_tokens - 1`. Any values go, in any order; samples of a prompt share them. None counts 1,
            2, 3, ... from the SOS.

    Raises:
        ValueError: A prompt is empty, has unknown ids, or runs past a position table; positions of another shape or
            kind, or too few; numbers that don't fit; a model that predicts no next tokens; while tokens are drawn: a
            constraint that allows none.
        FloatingPointError: While tokens are drawn: a prediction is not a number.
    """
    config = _sequence_model(model).config
    if not prompts:
        raise ValueError("there are no prompts: give at least one")
    if not isinstance(stop_at_eos, bool):
        raise ValueError(f"stop_at_eos={stop_at_eos!r} must be True or False")
    for prompt in prompts:
        check_prompt(prompt, config)
    given = prompt_positions(positions, prompts, config, max_tokens)
    predictor = _predictor(model, decoding or DecodingConfig())
    rows = _Rows(
        [prompt for prompt in prompts for _ in range(samples)],
        config.vocab_size,
        [seed for _ in prompts for seed in range(samples)],
        sampling or SamplingConfig(),
        device=next(model.parameters()).device,
        stop_at_eos=stop_at_eos,
        constraint=constraint,
    )
    if max_tokens < 1:
        return iter(())
    logits = predictor.start(prompts, max_tokens=max_tokens, samples=samples, positions=given)
    return _draw(predictor, rows, logits, max_tokens)


def _draw(predictor: Predictor, rows: "_Rows", logits: Float[Tensor, "rows vocab"], max_tokens: int) -> Iterator[Step]:
    for drawn in range(1, max_tokens + 1):
        tokens, step = rows.draw(logits)
        if all(token is None for token in step.tokens):
            return
        yield step
        if drawn < max_tokens:
            logits = predictor.feed(tokens)


class _Rows:
    """What is known of each row while tokens are drawn."""

    def __init__(
        self,
        prompts: list[list[int]],
        vocab_size: int,
        seeds: list[int],
        sampling: SamplingConfig,
        *,
        device: torch.device,
        stop_at_eos: bool,
        constraint: Callable[[], Constraint] | None,
    ) -> None:
        self.sampling = sampling
        self.generators = [torch.Generator(device).manual_seed(sampling.seed + seed) for seed in seeds]
        self.ended = [False] * len(prompts)
        self.raw = [[token - NUM_SPECIAL for token in prompt if token >= NUM_SPECIAL] for prompt in prompts]
        self.constraints = [constraint() for _ in prompts] if constraint is not None else None
        self.allowed = torch.ones(len(prompts), vocab_size, dtype=torch.bool, device=device)
        self.allowed[:, [PAD, SOS]] = False
        self.allowed[:, EOS] = stop_at_eos
        self.seen: Bool[Tensor, "rows vocab"] | None = None
        if sampling.repetition_penalty != 1:
            self.seen = torch.zeros_like(self.allowed)
            for row, prompt in enumerate(prompts):
                self.seen[row, prompt] = True

    def draw(self, logits: Float[Tensor, "rows vocab"]) -> tuple[Int[Tensor, " rows"], Step]:
        """The next token of each row: for the model, and for who asked."""
        if self.constraints is not None:
            for row, (constraint, ids) in enumerate(zip(self.constraints, self.raw, strict=True)):
                if self.ended[row]:
                    continue
                self.allowed[row, NUM_SPECIAL:] = _may_follow(constraint, ids, logits)
                if not self.allowed[row].any():
                    raise ValueError(
                        f"the constraint allows no id after the {len(ids)} so far, and the row may not end: "
                        "let it allow one, or stop_at_eos=True"
                    )
        try:
            tokens = sample(logits, self.sampling, allowed=self.allowed, generators=self.generators, seen=self.seen)
        except RuntimeError:
            self._check_numbers(logits.amax(-1).tolist())
            raise
        log_probs = log_probabilities(logits, tokens).tolist()
        self._check_numbers(log_probs)
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        drawn: list[int | None] = []
        for row, token in enumerate(tokens.tolist()):
            self.ended[row] |= token == EOS
            drawn.append(None if self.ended[row] else token)
            self.raw[row].append(token - NUM_SPECIAL)
        return tokens, Step(drawn, [0.0 if end else p for end, p in zip(self.ended, log_probs, strict=True)])

    def _check_numbers(self, values: list[float]) -> None:
        """Refuse predictions, of which a row has one value here, that nothing can be drawn from."""
        if any(math.isnan(x) or x == math.inf for x, ended in zip(values, self.ended, strict=True) if not ended):
            raise FloatingPointError(f"after {max(map(len, self.raw)):,} tokens, {NOT_A_NUMBER}")


def _may_follow(constraint: Constraint, ids: list[int], logits: Float[Tensor, "rows vocab"]) -> Bool[Tensor, " ids"]:
    """What a constraint says of each raw id.

    Raises:
        ValueError: It says anything but true or false of each.
    """
    said, num_ids = constraint(ids), logits.shape[-1] - NUM_SPECIAL
    array = np.asarray(said)
    if array.dtype != bool or array.shape != (num_ids,):
        raise ValueError(
            f"a constraint returned {array.dtype} numbers of shape {list(array.shape)}: it must return one truth value "
            f"(bool) for each of the {num_ids} raw ids"
        )
    return torch.from_numpy(array).to(logits.device)


def longest_prompt(model: nn.Module, decoding: DecodingConfig, max_tokens: int) -> int:
    """Tokens of a prompt, SOS included, that are read when `max_tokens` follow; of longer ones only the newest are."""
    return _predictor(model, decoding).longest_prompt(max_tokens)


def _sequence_model(model: nn.Module) -> PerceiverAR | ECP:
    """The same model, which predicts next tokens."""
    if not isinstance(model, PerceiverAR | ECP):
        raise ValueError(
            f"a {type(model).__name__} predicts no next tokens, so nothing can be generated with it: "
            "take a Perceiver AR or an ECP"
        )
    return model


def _predictor(model: nn.Module, decoding: DecodingConfig) -> Predictor:
    model = _sequence_model(model)
    return _latents_predictor(model, decoding) if isinstance(model, PerceiverAR) else _ecp_predictor(model, decoding)


def _latents_predictor(model: PerceiverAR, decoding: DecodingConfig) -> Predictor:
    config = model.config
    if decoding.num_latents is not None and decoding.num_latents > config.max_seq_len:
        raise ValueError(
            f"num_latents={decoding.num_latents} must lie in 1..{config.max_seq_len}, the length of the model's input"
        )
    if (decoding.num_latents or 0) > config.num_latents:
        warnings.warn(
            f"num_latents={decoding.num_latents} is more than the {config.num_latents} of training: slower, and "
            "latents read further back among each other than they ever did, which may help or harm",
            stacklevel=4,
        )
    if not _keeps(decoding, why_not_cached(config)):
        return FullForward(model, num_latents=decoding.num_latents)
    return CachedPerceiverAR(
        model,
        num_latents=decoding.num_latents,
        refill=decoding.refill,
        prompt_latents=decoding.prompt_latents,
        dtype=_cache_dtype(decoding),
        compiled=decoding.compiled,
    )


def _ecp_predictor(model: ECP, decoding: DecodingConfig) -> Predictor:
    for name in ("num_latents", "refill", "prompt_latents"):
        if (value := getattr(decoding, name)) is not None:
            raise ValueError(f"{name}={value} is for Perceiver AR: an ECP rebuilds no latents; leave it out")
    if not _keeps(decoding, why_pattern_not_cached(model.config)):
        return FullForward(model)
    return CachedECP(model, dtype=_cache_dtype(decoding), compiled=decoding.compiled)


def _keeps(decoding: DecodingConfig, reason: str | None) -> bool:
    """Whether keys and values are kept; `reason` says why they can't be, which is worth a warning if they should be."""
    if decoding.cached and reason is not None:
        warnings.warn(f"every token takes a full forward pass, nothing can be kept: {reason}", stacklevel=5)
    return decoding.cached and reason is None


def _cache_dtype(decoding: DecodingConfig) -> torch.dtype | None:
    return None if decoding.cache_dtype == "auto" else getattr(torch, decoding.cache_dtype)
