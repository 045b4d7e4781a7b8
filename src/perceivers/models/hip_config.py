"""What a Hierarchical Perceiver is, and the published variants. Imports no torch."""

from collections import Counter
from typing import Literal

from perceivers.models.hip_groups import GroupLayout, group_layout
from perceivers.nn.options import ActivationName, BackendName, check_activation
from perceivers.records import record


@record
class Modality:
    """One kind of input: a flat list of positions."""

    name: str
    """Letters, digits and underscores."""
    positions: int
    """Pixels, samples, classes, ...: always as many."""
    channels: int
    """Numbers at each position."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"modality {self.name!r}: a name has letters, digits and underscores, and no digit first")
        for field in ("positions", "channels"):
            if (value := getattr(self, field)) < 1:
                raise ValueError(f"modality {self.name}: {field}={value} must be at least 1")


@record
class DataSet:
    """Modalities that come together; their order is the order of their groups."""

    name: str
    """Says at each call which modalities to expect, where a model knows several data sets."""
    modalities: tuple[Modality, ...]
    """What each sample has. A modality of the same name in two data sets shares its weights."""

    def __post_init__(self) -> None:
        if twice := [name for name, count in Counter(m.name for m in self.modalities).items() if count > 1]:
            raise ValueError(f"data set {self.name} has two modalities called {twice[0]}")


@record
class HiPConfig:
    """Hierarchical Perceiver (Carreira et al. 2022, https://arxiv.org/abs/2202.10890), or Perceiver IO as one block.

    Each tuple has an entry a block: encoder blocks, the processor in the middle, and as many decoder blocks. A single
    block of one group is the Perceiver IO of the paper's code.
    """

    kind: Literal["hip"] = "hip"
    data_sets: tuple[DataSet, ...]
    """What goes in and is reconstructed. All weights but those of modalities are shared by the data sets."""
    groups: tuple[int, ...] = (16, 1, 16)
    """Groups; only positions of one group see each other. The processor has one."""
    latents: tuple[int, ...] = (128, 64, 128)
    """Latents of a group."""
    dims: tuple[int, ...] = (128, 1024, 128)
    """Channels."""
    depths: tuple[int, ...] = (2, 1, 1)
    """Self-attention layers after the cross-attend."""
    heads: tuple[int, ...] = (4, 32, 4)
    """Heads of the self-attention layers."""
    cross_heads: tuple[int, ...] = (1, 1, 1)
    """Heads of the cross-attend, which splits the channels that come in."""
    widening: tuple[int, ...] = (4, 4, 4)
    """Width of the self-attention layers' feed-forward layers, in multiples of dims."""
    cross_widening: tuple[int, ...] = (1, 1, 1)
    """Width of the cross-attend's feed-forward layer, in multiples of dims."""
    embed_dim: int = 32
    """Channels of embedded inputs, of positions and of reconstructions before their last layer."""
    embed_scale: float = 1.0
    """Initial weights of the layers that embed inputs, in multiples of the reference's. Positions start small, so that
    it takes long until they count beside inputs; a small number lets both count from the start."""
    label_modalities: tuple[str, ...] = ()
    """Modalities that enter and leave at the processor (the class bottleneck); they take no group."""
    project_positions: bool = False
    """Multiply positions by a square matrix: one for the first modality of every data set, one for the second, ..."""
    regroup: Literal["reshape", "transpose_reshape"] = "reshape"
    """Between blocks, neighbouring groups merge (or a group divides), or every new group gets some of each old one."""
    train_latents: int | None = None
    """Latents of the processor in training, a random subset for each sample; None = all."""
    eval_latents: int | None = None
    """Latents of the processor outside training, when training uses a random subset; None = as in `latents`."""
    dropout: float = 0.0
    """Share of channels dropped in training from what each self-attention layer adds."""
    drop_path: float = 0.0
    """Share of samples for which a branch of a self-attention layer is left out in training."""
    activation: ActivationName = "sq_relu"
    """Activation of all feed-forward layers. As in the reference: there it is squared ReLU, whatever
    `activation_name` says."""
    backend: BackendName = "auto"
    """How attention is computed; all give the same numbers."""

    def __post_init__(self) -> None:
        self._check_blocks()
        self._check_processor_latents()
        self._check_hierarchy()
        self._check_data_sets()
        check_activation(self.activation)
        for name in ("dropout", "drop_path"):
            if not 0 <= (share := getattr(self, name)) < 1:
                raise ValueError(f"{name}={share} must lie in [0, 1)")

    def _check_blocks(self) -> None:
        """As many entries everywhere, none too small, heads that divide what they split."""
        for name in ("groups", "latents", "dims", "depths", "heads", "cross_heads", "widening", "cross_widening"):
            values = getattr(self, name)
            if len(values) != len(self.groups):
                raise ValueError(f"{name} has {len(values)} entries, groups {len(self.groups)}: each block needs one")
            if (smallest := min(values, default=1)) < (lowest := 0 if name == "depths" else 1):
                raise ValueError(f"{name}={values}: {smallest} must be at least {lowest}")
        if self.embed_dim < 1:
            raise ValueError(f"embed_dim={self.embed_dim} must be at least 1")
        if self.embed_scale <= 0:
            raise ValueError(f"embed_scale={self.embed_scale} must be above 0")
        for i in range(len(self.groups)):
            for name, width in (("heads", self.dims[i]), ("cross_heads", self.input_dim(i))):
                if width % (heads := getattr(self, name)[i]):
                    raise ValueError(f"block {i}: {name}={heads} must divide the {width} channels that it splits")

    def _check_hierarchy(self) -> None:
        """An hourglass whose blocks fit each other."""
        count = len(self.groups)
        if count % 2 == 0:
            raise ValueError(f"got {count} blocks; their number is odd: encoders, one processor, as many decoders")
        if (middle := self.groups[self.processor]) != 1:
            raise ValueError(
                f"groups={self.groups}: the processor, block {self.processor}, has {middle} groups and must have 1"
            )
        for i in range(1, count):
            for latents in {self.latents[i - 1], *(self.processor_latents if i - 1 == self.processor else ())}:
                if (come := self.groups[i - 1] * latents) % self.groups[i]:
                    raise ValueError(
                        f"block {i}: {self.groups[i - 1]} groups x {latents} latents = {come} latents "
                        f"do not divide into {self.groups[i]} groups"
                    )
        for i in range(self.processor + 1, count):
            pair = count - 1 - i
            if (self.groups[i], self.latents[i]) != (self.groups[pair], self.latents[pair]):
                raise ValueError(
                    f"block {i} has {self.groups[i]} groups x {self.latents[i]} latents, but adds the output of block "
                    f"{pair}, which has {self.groups[pair]} x {self.latents[pair]}: they must be the same"
                )

    def _check_processor_latents(self) -> None:
        usual, train, evaluation = self.latents[self.processor], self.train_latents, self.eval_latents
        if train is not None and evaluation is not None:
            raise ValueError(f"train_latents={train} and eval_latents={evaluation}: give one, `latents` is the other")
        if train is not None and not 1 <= train <= usual:
            raise ValueError(f"train_latents={train} must lie in 1..{usual}, the processor's latents")
        if evaluation is not None and evaluation < usual:
            raise ValueError(f"eval_latents={evaluation} must be at least {usual}, the processor's latents in training")

    def _check_data_sets(self) -> None:
        if not self.data_sets:
            raise ValueError("data_sets is empty: name the modalities of at least one data set")
        if twice := [name for name, count in Counter(d.name for d in self.data_sets).items() if count > 1]:
            raise ValueError(f"two data sets are called {twice[0]}")
        known: dict[str, Modality] = {}
        for data_set in self.data_sets:
            for modality in data_set.modalities:
                other = known.setdefault(modality.name, modality)
                if other != modality:
                    raise ValueError(
                        f"modality {modality.name} has {other.positions} positions x {other.channels} channels in one "
                        f"data set and {modality.positions} x {modality.channels} in another: give it another name"
                    )
            if not (grouped := self.grouped(data_set)):
                raise ValueError(f"data set {data_set.name} has no modality that enters at the first block")
            if len(grouped) > self.groups[0] > 1:
                group_layout(grouped, self.groups[0])
        if unknown := [name for name in self.label_modalities if name not in known]:
            raise ValueError(f"label_modalities has {unknown[0]!r}; the data sets have {', '.join(known)}")

    @property
    def processor(self) -> int:
        """The middle block."""
        return len(self.groups) // 2

    @property
    def processor_latents(self) -> tuple[int, int]:
        """Latents of the processor in training, and outside of it; the larger number has weights."""
        usual = self.latents[self.processor]
        return self.train_latents or usual, self.eval_latents or usual

    def input_dim(self, block: int) -> int:
        """Channels that a block reads."""
        return self.dims[block - 1] if block else self.embed_dim

    def grouped(self, data_set: DataSet) -> dict[str, int]:
        """Positions of the modalities that enter at the first block."""
        return {m.name: m.positions for m in data_set.modalities if m.name not in self.label_modalities}

    def layout(self, data_set: DataSet) -> GroupLayout:
        """Groups of the first block."""
        return group_layout(self.grouped(data_set), self.groups[0])


def hip_mini(data_sets: tuple[DataSet, ...]) -> HiPConfig:
    """HiP-Mini."""
    return HiPConfig(data_sets=data_sets)


def hip_16(data_sets: tuple[DataSet, ...]) -> HiPConfig:
    """HiP-16."""
    return HiPConfig(
        data_sets=data_sets,
        groups=(16, 4, 1, 1, 1, 4, 16),
        latents=(128, 256, 256, 64, 256, 256, 128),
        dims=(128, 256, 512, 1024, 512, 256, 128),
        depths=(2, 2, 18, 2, 1, 1, 1),
        heads=(4, 8, 16, 32, 16, 8, 4),
        cross_heads=(1,) * 7,
        widening=(4,) * 7,
        cross_widening=(1,) * 7,
    )


def hip_256(data_sets: tuple[DataSet, ...]) -> HiPConfig:
    """HiP-256."""
    return HiPConfig(
        data_sets=data_sets,
        groups=(256, 64, 16, 4, 1, 1, 1, 4, 16, 64, 256),
        latents=(32, 64, 128, 256, 256, 64, 256, 256, 128, 64, 32),
        dims=(64, 96, 128, 256, 512, 1024, 256, 128, 64, 32, 16),
        depths=(1, 1, 2, 2, 18, 2, 1, 1, 1, 1, 1),
        heads=(1, 2, 4, 8, 16, 32, 16, 8, 4, 2, 1),
        cross_heads=(1,) * 11,
        widening=(4,) * 11,
        cross_widening=(1,) * 11,
        embed_dim=16,
    )


def hip_16x3(data_sets: tuple[DataSet, ...]) -> HiPConfig:
    """HiP-16 of three wide blocks."""
    return HiPConfig(data_sets=data_sets, latents=(128, 256, 128), depths=(2, 18, 2))


def io_mini(data_sets: tuple[DataSet, ...]) -> HiPConfig:
    """The smallest Perceiver IO of the paper's code."""
    return _perceiver_io(data_sets, latents=128, dim=128, depth=2, heads=2, cross_heads=1, widening=2, cross_widening=1)


def io_c_50m(data_sets: tuple[DataSet, ...]) -> HiPConfig:
    """Perceiver IO, "50M"."""
    return _perceiver_io(
        data_sets, latents=1024, dim=512, depth=8, heads=8, cross_heads=8, widening=4, cross_widening=4
    )


def io_c_150m(data_sets: tuple[DataSet, ...]) -> HiPConfig:
    """Perceiver IO, "150M"."""
    return _perceiver_io(
        data_sets, latents=1024, dim=896, depth=12, heads=16, cross_heads=16, widening=4, cross_widening=4
    )


def _perceiver_io(
    data_sets: tuple[DataSet, ...],
    *,
    latents: int,
    dim: int,
    depth: int,
    heads: int,
    cross_heads: int,
    widening: int,
    cross_widening: int,
) -> HiPConfig:
    return HiPConfig(
        data_sets=data_sets,
        groups=(1,),
        latents=(latents,),
        dims=(dim,),
        depths=(depth,),
        heads=(heads,),
        cross_heads=(cross_heads,),
        widening=(widening,),
        cross_widening=(cross_widening,),
        embed_dim=dim,
    )
