"""Inputs of a Perceiver: features and positions of one modality, or several modalities as one sequence.

Letters: b batch, n tokens, a axes of a position.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perceivers.models.feature_config import PointFeatures, Shape, TokenFeatures
from perceivers.models.input_config import FourierPositions, InputConfig, LearnedPositions, MultimodalInputConfig
from perceivers.models.input_features import TokenEmbedding, build_features
from perceivers.nn.checks import check_kind, check_numbers
from perceivers.nn.grids import FourierGrid, LearnedGrid, ProjectedGrid
from perceivers.nn.initial import truncated_normal


@dataclass(frozen=True)
class InputTokens:
    """An input as a sequence."""

    tokens: Float[Tensor, "b n dim"]
    """Features with positions: what the latents read."""
    features: Float[Tensor, "b n features"] | None = None
    """Without their positions; None for several modalities."""
    table: Float[Tensor, "vocab features"] | None = None
    """The embedding, where the input has one."""


def build_positions(config: FourierPositions | LearnedPositions, shape: Shape) -> nn.Module:
    """Positions of a grid of `shape`, as `config` describes them."""
    match config:
        case FourierPositions():
            base = FourierGrid(
                shape,
                bands=config.bands,
                max_resolution=config.max_resolution,
                cosines=config.cosines,
                coordinates=config.coordinates,
                spacing=torch.float32 if config.spacing == "float32" else torch.float64,
            )
        case LearnedPositions():
            base = LearnedGrid(shape, config.channels, std=config.init_std)
    if config.project_dim is None and config.layers == 0:
        return base
    return ProjectedGrid(base, project_dim=config.project_dim, layers=config.layers)


class Input(nn.Module):
    """One modality.

    Source: `ImagePreprocessor` and its neighbours in io_processors.py (official Perceiver IO).
    """

    def __init__(self, config: InputConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.features = build_features(config.features)
        self.positions = None if config.positions is None else build_positions(config.positions, config.features.grid)

    def forward(self, x: Tensor, *, positions: Float[Tensor, "b n a"] | None = None) -> InputTokens:
        """Tokens of `x`.

        Args:
            x: [batch, *shape], channels last, of the configured shape.
            positions: Coordinates in -1..1 in place of the grid's, for Fourier positions.

        Raises:
            ValueError: `x` or `positions` has another shape or kind.
        """
        config = self.config
        check_kind("input", x, "integers" if isinstance(config.features, TokenFeatures) else "real numbers")
        if tuple(x.shape[1:]) != config.features.shape:
            raise ValueError(
                f"input has shape {list(x.shape)}, but this model reads [batch, "
                f"{', '.join(map(str, config.features.shape))}]; resize or crop it, or build the model for this shape"
            )
        if positions is not None:
            check_numbers("positions", check_kind("positions", positions, "real numbers"))
        features = self.features(x).flatten(1, -2)
        table = self.features.table if isinstance(self.features, TokenEmbedding) else None
        if self.positions is None:
            if positions is not None:
                raise ValueError("positions were given, but this input has none (positions=None in its config)")
            return InputTokens(features, features, table)
        if isinstance(config.features, PointFeatures) and positions is None:
            positions = x[..., : config.features.axes]
        if positions is not None and tuple(positions.shape) != (wanted := (len(x), features.shape[1], config.axes)):
            raise ValueError(f"positions have shape {list(positions.shape)}, this input needs {list(wanted)}")
        places = self.positions(features, coordinates=positions)
        tokens = features + places if config.combine == "add" else torch.cat([features, places], -1)
        return InputTokens(tokens, features, table)


class MultimodalInput(nn.Module):
    """Several modalities as one sequence, in the order of their names.

    Each token gets the learned channels of its modality after its own, so that all are equally wide; then some are
    hidden behind the modality's learned token.

    Source: `MultimodalPreprocessor` of io_processors.py.
    """

    def __init__(self, config: MultimodalInputConfig) -> None:
        super().__init__()
        self.dim = config.dim
        modalities = sorted(config.modalities, key=lambda modality: modality.name)
        self.shares = {modality.name: modality.mask_share for modality in modalities}
        self.inputs = nn.ModuleDict({modality.name: Input(modality.input) for modality in modalities})
        self.padding = nn.ParameterDict()
        self.mask_tokens = nn.ParameterDict()
        for modality in modalities:
            self.padding[modality.name] = nn.Parameter(torch.empty(1, config.dim - modality.input.dim))
            if modality.mask_share is not None:
                self.mask_tokens[modality.name] = nn.Parameter(torch.empty(1, config.dim))
        for parameter in [*self.padding.values(), *self.mask_tokens.values()]:
            truncated_normal(parameter, std=0.02)

    def forward(
        self, x: Mapping[str, Tensor], *, positions: Mapping[str, Float[Tensor, "b _ _"]] | None = None
    ) -> InputTokens:
        """Tokens of all modalities.

        Args:
            x: By name.
            positions: By name, coordinates in place of the grid's; not all modalities need be there.

        Raises:
            ValueError: A modality is missing or unknown, or their batches differ.
        """
        check_modalities("input", x.keys(), self.inputs.keys())
        batches = {name: len(value) for name, value in x.items()}
        if len(set(batches.values())) > 1:
            raise ValueError(f"modalities have batches of different sizes: {batches}")
        parts = []
        for name, part in self.inputs.items():
            tokens = part(x[name], positions=None if positions is None else positions.get(name)).tokens
            padding = self.padding[name].expand(*tokens.shape[:2], -1)
            parts.append(self._hide(name, torch.cat([tokens, padding], -1)))
        return InputTokens(torch.cat(parts, 1))

    def _hide(self, name: str, tokens: Float[Tensor, "b n dim"]) -> Float[Tensor, "b n dim"]:
        """As in the reference: in evaluation too, which is how a label is hidden from the model that predicts it."""
        share = self.shares[name]
        if share is None:
            return tokens
        hidden = torch.rand(tokens.shape[:2], device=tokens.device) < share
        return torch.where(hidden[..., None], self.mask_tokens[name], tokens)


def check_modalities(what: str, got: Iterable[str], known: Iterable[str]) -> None:
    """Check that the names of modalities are exactly the `known` ones."""
    if missing := sorted(set(known) - set(got)):
        raise ValueError(f"{what} lacks the modality {missing[0]!r}; this model has {', '.join(sorted(known))}")
    if unknown := sorted(set(got) - set(known)):
        raise ValueError(f"{what} has the unknown modality {unknown[0]!r}; this model has {', '.join(sorted(known))}")


def build_input(config: InputConfig | MultimodalInputConfig) -> Input | MultimodalInput:
    """The input that `config` describes."""
    return Input(config) if isinstance(config, InputConfig) else MultimodalInput(config)
