"""Perceiver IO (Jaegle et al. 2021, https://arxiv.org/abs/2107.14795): an input, an encoder, an output.

The three parts don't know each other: an input makes a sequence of tokens, an encoder makes latents of any such
sequence, and an output asks any latents. `PerceiverIO` only hands on.

Letters: b batch, n latents, m tokens of the input, q queries.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from perceivers.models.inputs import InputTokens, build_input
from perceivers.models.misuse import check_parts
from perceivers.models.output_config import AverageOutputConfig, MultimodalOutputConfig
from perceivers.models.outputs import AverageOutput, MultimodalOutput, Output, QueryOutput
from perceivers.models.perceiver import Encoder
from perceivers.models.perceiver_config import PerceiverIOConfig
from perceivers.nn.checks import check_kind


@dataclass(frozen=True)
class Encoded:
    """An input that has been read: as many questions as wanted can be put to it."""

    latents: Float[Tensor, "b n dim"]
    inputs: InputTokens


class PerceiverIO(nn.Module):
    """Any input, any output.

    Args:
        input: Turns an input into `InputTokens`.
        encoder: Turns tokens (and a mask) into latents.
        output: Turns latents, and perhaps the `InputTokens`, into results.

    Raises:
        TypeError: One of them is a configuration, of which `build_perceiver_io` makes the model.
    """

    def __init__(self, *, input: nn.Module, encoder: nn.Module, output: nn.Module) -> None:
        super().__init__()
        check_parts(self, input=input, encoder=encoder, output=output)
        self.config: PerceiverIOConfig | None = None
        """What `build_perceiver_io` made it of; None where the parts were put together by hand."""
        self.input = input
        self.encoder = encoder
        self.output = output

    def forward(
        self,
        x: Tensor | Mapping[str, Tensor],
        *,
        mask: Bool[Tensor, "b m"] | None = None,
        positions: Any = None,
        query_mask: Bool[Tensor, "b q"] | None = None,
        points: Any = None,
    ) -> Any:
        """What the output makes of `x`; see `encode` and `decode`."""
        return self.decode(self.encode(x, mask=mask, positions=positions), query_mask=query_mask, points=points)

    def encode(
        self, x: Tensor | Mapping[str, Tensor], *, mask: Bool[Tensor, "b m"] | None = None, positions: Any = None
    ) -> Encoded:
        """Read `x`.

        Args:
            x: An input, or several modalities by name.
            mask: Tokens of the input that may be read; None for all.
            positions: Coordinates in -1..1 in place of the grid's [b, m, axes], or these by name.

        Raises:
            ValueError: Something has another shape or name than the model was built for.
        """
        inputs: InputTokens = self.input(x, positions=positions)
        if mask is not None:
            check_kind("mask", mask, "truth values")
        if mask is not None and mask.shape != inputs.tokens.shape[:2]:
            raise ValueError(
                f"mask has shape {list(mask.shape)}, but the input has {list(inputs.tokens.shape[:2])} tokens; "
                "it says which tokens (not pixels or samples) may be read"
            )
        return Encoded(self.encoder(inputs.tokens, mask=mask), inputs)

    def decode(self, encoded: Encoded, *, query_mask: Bool[Tensor, "b q"] | None = None, points: Any = None) -> Any:
        """Ask.

        Args:
            encoded: What `encode` gave.
            query_mask: Queries that read something; the others read zeros.
            points: Flat indices of the output's grid that are wanted, or these by name; None for all.
        """
        return self.output(encoded.latents, encoded.inputs, query_mask=query_mask, points=points)


def build_perceiver_io(config: PerceiverIOConfig) -> PerceiverIO:
    """The model that `config` describes, with fresh weights."""
    model = PerceiverIO(
        input=build_input(config.input),
        encoder=Encoder(config.encoder, config.input.dim),
        output=build_output(config),
    )
    model.config = config
    return model


def build_output(config: PerceiverIOConfig) -> Output:
    """The output that `config` describes, for its encoder and input."""
    latent_dim = config.encoder.dim
    match config.output:
        case AverageOutputConfig():
            return AverageOutput(config.output, latent_dim)
        case MultimodalOutputConfig():
            return MultimodalOutput(config.output, latent_dim)
        case _:
            return QueryOutput(config.output, latent_dim, config.output.query_dim(config.input))


@torch.no_grad()
def decode_in_chunks(
    model: PerceiverIO, encoded: Encoded, *, points: Mapping[str, int], chunks: int
) -> dict[str, Tensor]:
    """Results of several modalities, decoded some points at a time, for outputs that don't fit in memory.

    As in the reference: chosen points lie at slightly other coordinates than all at once, see
    `nn.grids.point_coordinates`; so this is not the same as one `decode`. Modalities that are not in `points`, such as
    a label, are taken from the last chunk.

    Args:
        model: With a `MultimodalOutput`, whose heads take some points at a time (no pictures).
        encoded: What it read.
        points: Points of each modality's grid.
        chunks: Equal parts of the points of each.

    Raises:
        ValueError: Points can't be cut in so many equal parts.
    """
    for name, size in points.items():
        if size % chunks:
            raise ValueError(
                f"{size} points of {name} are not {chunks} equal chunks: {size} = {chunks} * {size // chunks} + "
                f"{size % chunks}"
            )
    parts: dict[str, list[Tensor]] = {}
    for i in range(chunks):
        wanted: dict[str, Int[Tensor, " q"]] = {
            name: torch.arange(i * size // chunks, (i + 1) * size // chunks, device=encoded.latents.device)
            for name, size in points.items()
        }
        for name, part in model.decode(encoded, points=wanted).items():
            parts.setdefault(name, []).append(part)
    return {name: torch.cat(part, 1) if name in points else part[-1] for name, part in parts.items()}
