"""Hierarchical Perceiver (HiP, Carreira et al. 2022, https://arxiv.org/abs/2202.10890), top to bottom.

The flat inputs of all modalities are embedded, get learned positions, and are packed into groups. A block regroups
what it is given, reads each group with latents of its own in one cross-attend, and lets the latents of a group attend
to each other. Blocks form an hourglass: encoders with fewer and fewer groups, a processor with one, and decoders that
mirror the encoders and add their outputs. At last the positions of the inputs read the last latents: a reconstruction
of every input. With one block of one group this is a Perceiver IO.

Letters: b batch, g groups, n positions or latents of a group. The groups of a block share its weights, so groups are
rows of the batch wherever attention is computed.

Source: google-deepmind/hierarchical_perceiver.
"""

from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from perceivers.models.hip_config import DataSet, HiPConfig, Modality
from perceivers.models.hip_groups import GroupLayout
from perceivers.models.misuse import check_config
from perceivers.nn.blocks import CrossAttentionBlock, SelfAttentionBlock
from perceivers.nn.checks import check_kind, check_range, check_tensor
from perceivers.nn.initial import variance_scaling
from perceivers.nn.linear import Linear
from perceivers.nn.masks import AttentionMask


class HiP(nn.Module):
    """Reconstructions of all inputs from all inputs; see the module's docstring.

    Source: `HiP`, `HiPClassBottleneck` and `PerceiverIO` of perceiver.py.
    """

    def __init__(self, config: HiPConfig) -> None:
        super().__init__()
        check_config(self, config, HiPConfig)
        self.config = config
        self.modalities = nn.ModuleDict()
        label_dim = config.input_dim(config.processor)
        for modality in {m.name: m for data_set in config.data_sets for m in data_set.modalities}.values():
            if hasattr(nn.ModuleDict, name := modality.name):
                raise ValueError(f"modality {name!r}: PyTorch's ModuleDict uses this name; choose another")
            dim = label_dim if name in config.label_modalities else config.embed_dim
            self.modalities[name] = ModalityWeights(modality, dim)
        # As in the reference: modalities at the same place in their data sets share a projection, and no others.
        places = max(len(config.grouped(data_set)) for data_set in config.data_sets) * config.project_positions
        self.position_projections = nn.ModuleList(
            nn.Linear(config.embed_dim, config.embed_dim, bias=False) for _ in range(places)
        )
        self.blocks = nn.ModuleList(HiPBlock(config, i) for i in range(len(config.groups)))
        self.head = reconstruction_head(config.embed_dim, config.dims[-1], config)
        processed_dim = config.dims[config.processor]
        self.label_head = reconstruction_head(label_dim, processed_dim, config) if config.label_modalities else None
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fresh weights, as in the reference.

        - linear layers: normal truncated at two standard deviations, variance 1 / inputs after truncation; biases 0
        - positions and latents: likewise, with variance 1 / (number of positions, or of latents in all groups)
        - first layer of each modality: as any linear layer, times `embed_scale`; last layer: zero
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                variance_scaling(module.weight, module.in_features)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, HiPBlock):
                variance_scaling(module.latents, len(module.latents))
            if isinstance(module, ModalityWeights):
                variance_scaling(module.positions, len(module.positions))
                module.embed.weight.mul_(self.config.embed_scale)
                nn.init.zeros_(module.unembed.weight)

    def forward(
        self,
        inputs: Mapping[str, Float[Tensor, "_ _ _"]],
        *,
        data_set: str | None = None,
        masked: Mapping[str, Bool[Tensor, "_ _"]] | None = None,
        chosen: Int[Tensor, "batch groups latents"] | None = None,
        wanted: Collection[str] | None = None,
    ) -> dict[str, Float[Tensor, "_ _ _"]]:
        """Reconstructions in the shapes of the inputs.

        Args:
            inputs: Every modality of the data set by name, each of batch x positions x channels.
            data_set: Which one; None where the model knows one only.
            masked: Positions (True) whose values the model does not see, by modality, each of batch x positions; None
                for none. What is left of them is their position embedding.
            chosen: Latents of the processor to use, for each sample; None draws them in training where `train_latents`
                or `eval_latents` is set, and takes all otherwise.
            wanted: Modalities to reconstruct; None for all. Labels need no block after the processor.

        Raises:
            ValueError: A data set or modality that is unknown or missing; values of another shape or not finite.
        """
        config = self.config
        expected = self._data_set(data_set)
        check_inputs(inputs, expected, masked or {})
        if chosen is not None:
            check_tensor("chosen", chosen, "integers", (len(next(iter(inputs.values()))), 1, None))
            check_range("chosen", chosen, max(config.processor_latents) - 1, "the processor has latents")
        embedded, queries = self._embed(inputs, expected, masked or {})
        labels = [m.name for m in expected.modalities if m.name in config.label_modalities]
        layout = config.layout(expected)
        x = pack({name: embedded[name] for name in layout.positions}, layout)
        packed_queries = pack({name: queries[name] for name in layout.positions}, layout)

        names = [m.name for m in expected.modalities]
        returned = names if wanted is None else [name for name in names if name in wanted]
        if wanted is not None and (unknown := set(wanted) - set(names)):
            raise ValueError(f"wanted={min(unknown)!r} is not in {expected.name}, which has {', '.join(names)}")
        grouped = any(name in layout.positions for name in returned)
        outputs: list[Tensor] = []
        for i, block in enumerate(self.blocks if grouped else self.blocks[: config.processor + 1]):
            if i:
                x = regroup(x, config.groups[i], how=config.regroup)
            if i == config.processor:
                x = torch.cat([x, *(embedded[name][:, None] for name in labels)], 2)
            opposite = outputs[len(self.blocks) - 1 - i] if i > config.processor else None
            x = block(x, residual=opposite, chosen=chosen if i == config.processor else None)
            outputs.append(x)

        reconstructed = unpack(read_groups(self.head, packed_queries, x), layout) if grouped else {}
        if self.label_head is not None:
            processed = outputs[config.processor]
            for name in labels:
                reconstructed[name] = read_groups(self.label_head, queries[name][:, None], processed)[:, 0]
        return {name: self._weights(name).unembed(reconstructed[name]) for name in returned}

    def choose_latents(
        self, batch: int, *, generator: torch.Generator | None = None
    ) -> Int[Tensor, "batch groups latents"] | None:
        """A random subset of the processor's latents for each sample, for `forward`; None where training uses all."""
        processor: HiPBlock = self.blocks[self.config.processor]  # pyright: ignore[reportAssignmentType]
        return processor.choose(batch, generator=generator)

    def _weights(self, modality: str) -> "ModalityWeights":
        weights: ModalityWeights = self.modalities[modality]  # pyright: ignore[reportAssignmentType]
        return weights

    def _data_set(self, name: str | None) -> DataSet:
        known = {data_set.name: data_set for data_set in self.config.data_sets}
        if name is None and len(known) == 1:
            return self.config.data_sets[0]
        if name not in known:
            raise ValueError(f"data_set={name!r}: choose one of {', '.join(known)}")
        return known[name]

    def _embed(
        self, inputs: Mapping[str, Tensor], expected: DataSet, masked: Mapping[str, Bool[Tensor, "b _"]]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Embedded inputs with their positions, and positions alone: what asks for the reconstructions."""
        places = list(self.config.grouped(expected))
        embedded, queries = {}, {}
        for modality in expected.modalities:
            name, weights = modality.name, self._weights(modality.name)
            values = weights.embed(inputs[name])
            if name in masked:
                values = values.masked_fill(masked[name][..., None], 0)
            positions = weights.positions
            if self.config.project_positions and name in places:
                positions = self.position_projections[places.index(name)](positions)
            embedded[name] = values + positions
            queries[name] = positions.expand_as(values)
        return embedded, queries


class ModalityWeights(nn.Module):
    """What belongs to one modality: the way in, its positions, the way out."""

    def __init__(self, modality: Modality, dim: int) -> None:
        super().__init__()
        self.embed = Linear(modality.channels, dim)
        self.positions = nn.Parameter(torch.empty(modality.positions, dim))
        self.unembed = Linear(dim, modality.channels)


class HiPBlock(nn.Module):
    """Latents of each group read their group, then each other.

    Source: `PerceiverBlock` and `HiPCrossAttention` of perceiver_blocks.py.
    """

    def __init__(self, config: HiPConfig, index: int) -> None:
        super().__init__()
        dim, input_dim, groups = config.dims[index], config.input_dim(index), config.groups[index]
        self.groups = groups
        self.train_latents = self.num_latents = config.latents[index]
        if index == config.processor:
            self.train_latents, self.num_latents = config.processor_latents
        self.latents = nn.Parameter(torch.empty(groups * self.num_latents, dim))
        opposite_dim = config.dims[len(config.dims) - 1 - index]
        self.project_residual = Linear(opposite_dim, dim) if index > config.processor and opposite_dim != dim else None
        self.cross_attend = CrossAttentionBlock(
            dim,
            input_dim,
            heads=config.cross_heads[index],
            inner_dim=input_dim,
            widening=config.cross_widening[index],
            activation=config.activation,
            backend=config.backend,
        )
        self.layers = nn.ModuleList(
            SelfAttentionBlock(
                dim,
                heads=config.heads[index],
                widening=config.widening[index],
                activation=config.activation,
                dropout=config.dropout,
                drop_path=config.drop_path,
                rows=groups,
                backend=config.backend,
            )
            for _ in range(config.depths[index])
        )

    def forward(
        self,
        x: Float[Tensor, "batch groups positions input_dim"],
        *,
        residual: Float[Tensor, "batch groups latents residual_dim"] | None = None,
        chosen: Int[Tensor, "batch groups chosen"] | None = None,
    ) -> Float[Tensor, "batch groups _ dim"]:
        """Latents of each group.

        Args:
            x: Grouped as this block wants it.
            residual: Output of the opposite encoder block, which is added to the latents before they read.
            chosen: Latents to use, for each sample and group; None draws them in training where there are too many.
        """
        latents = self.latents.unflatten(0, (self.groups, -1)).expand(len(x), -1, -1, -1)
        if chosen is None and self.training:
            chosen = self.choose(len(x))
        if chosen is not None:
            latents = latents.gather(2, chosen[..., None].expand(-1, -1, -1, latents.shape[-1]))
        if residual is not None:
            latents = latents + (residual if self.project_residual is None else self.project_residual(residual))
        latents = read_groups(self.cross_attend, latents, x).flatten(0, 1)
        for layer in self.layers:
            latents = layer(latents, mask=AttentionMask())
        return latents.unflatten(0, (-1, self.groups))

    def choose(
        self, batch: int, *, generator: torch.Generator | None = None
    ) -> Int[Tensor, "batch groups latents"] | None:
        """As many latents as in training, drawn for each sample and group without replacement; None for all."""
        if self.train_latents == self.num_latents:
            return None
        order = torch.rand(batch, self.groups, self.num_latents, generator=generator, device=self.latents.device)
        return order.argsort(-1)[..., : self.train_latents]


def reconstruction_head(dim: int, latent_dim: int, config: HiPConfig) -> CrossAttentionBlock:
    """Positions read latents: one head, and the positions themselves are not added to what they read."""
    return CrossAttentionBlock(
        dim,
        latent_dim,
        heads=1,
        inner_dim=latent_dim,
        widening=1,
        activation=config.activation,
        query_residual=False,
        backend=config.backend,
    )


def read_groups(
    read: CrossAttentionBlock,
    queries: Float[Tensor, "batch groups queries dim"],
    context: Float[Tensor, "batch groups keys context_dim"],
    mask: Bool[Tensor, "batch groups queries keys"] | None = None,
) -> Float[Tensor, "batch groups queries dim"]:
    """Queries of each group read the context of the same group: one call, in which groups are rows of the batch."""
    pairs = AttentionMask(pairs=None if mask is None else mask.flatten(0, 1))
    return read(queries.flatten(0, 1), context.flatten(0, 1), mask=pairs).unflatten(0, queries.shape[:2])


def regroup(
    x: Float[Tensor, "batch groups n dim"], groups: int, *, how: str
) -> Float[Tensor, "batch new_groups new_n dim"]:
    """The same positions in `groups` groups.

    `reshape` joins neighbouring groups, or cuts them; `transpose_reshape` first goes through the groups position by
    position, so that each new group has some of every old one.
    """
    if how == "transpose_reshape":
        x = x.transpose(1, 2)
    return x.reshape(len(x), groups, -1, x.shape[-1])


def pack(
    values: Mapping[str, Float[Tensor, "batch _ dim"]], layout: GroupLayout
) -> Float[Tensor, "batch groups size dim"]:
    """All modalities in groups of equal size.

    As in the reference: padding is zeros, and nothing hides it from attention.
    """
    if layout.concatenated:
        return torch.cat(list(values.values()), 1)[:, None]
    packed = []
    for name, x in values.items():
        groups, filled = layout.groups[name], layout.filled(name)
        x = F.pad(x, (0, 0, 0, groups * filled - x.shape[1])).unflatten(1, (groups, filled))
        packed.append(F.pad(x, (0, 0, 0, layout.size - filled)))
    return torch.cat(packed, 1)


def unpack(x: Float[Tensor, "batch groups size dim"], layout: GroupLayout) -> dict[str, Float[Tensor, "batch _ dim"]]:
    """Each modality without padding: the inverse of `pack`."""
    if layout.concatenated:
        return dict(zip(layout.positions, x[:, 0].split(list(layout.positions.values()), 1), strict=True))
    parts = x.split(list(layout.groups.values()), 1)
    return {
        name: part[:, :, : layout.filled(name)].flatten(1, 2)[:, : layout.positions[name]]
        for name, part in zip(layout.positions, parts, strict=True)
    }


def check_inputs(inputs: Mapping[str, Tensor], expected: DataSet, masked: Mapping[str, Tensor]) -> None:
    """Compare inputs and masks with what a data set has.

    Raises:
        ValueError: A modality is missing or unknown; values or a mask of another shape; values that are not finite.
    """
    names = [m.name for m in expected.modalities]
    for what, given in (("inputs", inputs), ("masked", masked)):
        if unknown := [name for name in given if name not in names]:
            raise ValueError(f"{what} has modality {unknown[0]!r}; data set {expected.name} has {', '.join(names)}")
    if missing := [name for name in names if name not in inputs]:
        raise ValueError(f"inputs has no {missing[0]!r}; data set {expected.name} has {', '.join(names)}")
    batch = len(check_kind(names[0], inputs[names[0]], "real numbers"))
    for modality in expected.modalities:
        x, shape = inputs[modality.name], (batch, modality.positions, modality.channels)
        check_kind(modality.name, x, "real numbers")
        if x.shape != shape:
            raise ValueError(
                f"{modality.name} has shape {list(x.shape)}, expected is {list(shape)}: batch x {modality.positions} "
                f"positions x {modality.channels} channels; flatten images, sound and video to positions"
            )
        if (hidden := masked.get(modality.name)) is not None:
            check_kind(f"masked[{modality.name!r}]", hidden, "truth values")
        if hidden is not None and hidden.shape != shape[:2]:
            raise ValueError(f"masked[{modality.name!r}] has shape {list(hidden.shape)}, expected is {list(shape[:2])}")
        if not isinstance(x, FakeTensor) and not (finite := x.isfinite()).all():  # a traced input has no values
            raise ValueError(f"{modality.name}: {int((~finite).sum())} of {x.numel()} values are NaN or infinite")
