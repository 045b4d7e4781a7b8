"""What a model costs, found by running it on tensors that have shapes and no numbers.

For families whose cost is not written down as formulas in `perceivers.models.cost`, which asks here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from perceivers.models.build import build
from perceivers.models.ecp_config import ECPConfig
from perceivers.models.feature_config import TokenFeatures
from perceivers.models.hip_config import DataSet, HiPConfig
from perceivers.models.input_config import InputConfig, MultimodalInputConfig
from perceivers.models.output_config import AverageOutputConfig
from perceivers.models.perceiver_config import PerceiverIOConfig
from perceivers.models.recompute import recompute_layers, recomputed_layers

SHAPES = FakeTensorMode(allow_non_fake_inputs=True)
"""Tensors that are made in it have a shape, a type and a device, and no memory."""

TracedConfig = ECPConfig | PerceiverIOConfig | HiPConfig


class Kept(NamedTuple):
    """Bytes after a forward pass."""

    activations: int
    """What autograd keeps for the backward pass: with it, copies of weights in another precision."""
    results: int
    """What the model returned, in float32."""


def example(config: TracedConfig, rows: int) -> Tensor | dict[str, Tensor]:
    """An input of zeros, as long as the model takes: ids, one modality, or several by name."""
    match config:
        case ECPConfig():
            return torch.zeros(rows, config.max_seq_len, dtype=torch.long)
        case HiPConfig():
            return {m.name: torch.zeros(rows, m.positions, m.channels) for m in largest(config).modalities}
        case PerceiverIOConfig(input=MultimodalInputConfig(modalities=modalities)):
            return {m.name: _modality(m.input, rows) for m in modalities}
        case PerceiverIOConfig(input=source):
            assert isinstance(source, InputConfig)
            return _modality(source, rows)


def largest(config: HiPConfig) -> DataSet:
    """The data set with the most numbers a sample."""
    return max(config.data_sets, key=lambda data_set: sum(m.positions * m.channels for m in data_set.modalities))


def _modality(config: InputConfig, rows: int) -> Tensor:
    dtype = torch.long if isinstance(config.features, TokenFeatures) else torch.float32
    return torch.zeros(rows, *config.features.shape, dtype=dtype)


@lru_cache(maxsize=16)
def parameters(config: TracedConfig) -> dict[str, int]:
    """Trained numbers by part of the model: its children, and theirs where these are the parts of an encoder."""
    children = dict(_model(config).named_children())
    if isinstance(config, PerceiverIOConfig):
        encoder = children.pop("encoder")
        parts = {"latents": encoder.latents, **dict(encoder.named_children())}
        children = {"input": children.pop("input"), **parts, **children}
    return {
        name: part.numel() if isinstance(part, Tensor) else sum(p.numel() for p in part.parameters())
        for name, part in children.items()
    }


@lru_cache(maxsize=16)
def forward_flops(config: TracedConfig, *, training: bool = False) -> int:
    """Floating-point operations of the products of one forward pass over one sample, two a multiply-add.

    Pairs that a mask hides are counted as well, as far as the readable attention computes them.
    """
    readable = _readable(config)
    model = _model(readable).train(training)
    with SHAPES, FlopCounterMode(display=False) as counter:
        _call(model, readable, example(readable, 1))
    return counter.get_total_flops()


def _readable(config: TracedConfig) -> TracedConfig:
    """The same model with attention as plain products, which alone are counted on every device."""
    if not isinstance(config, PerceiverIOConfig):
        return replace(config, backend="reference")
    output = config.output
    if not isinstance(output, AverageOutputConfig):
        output = replace(output, backend="reference")
    return replace(config, encoder=replace(config.encoder, backend="reference"), output=output)


@lru_cache(maxsize=64)
def kept(config: TracedConfig, *, rows: int, bfloat16: bool, recompute: bool = False) -> Kept:
    """What a forward pass in training leaves in memory on a CPU.

    Args:
        config: The model.
        rows: Samples of a batch.
        bfloat16: Matrix products in bfloat16, the rest in float32.
        recompute: Layers keep their inputs alone (while one of them is computed again, it takes more than that).
    """
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor  # views of one storage count once
        return tensor

    def hold(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # checkpoints do not tell of what they keep
        pack(inputs[0])

    model = (_model.__wrapped__ if recompute else _model)(config).train()
    if recompute:
        for layer in recomputed_layers(model):
            layer.register_forward_pre_hook(hold)
        recompute_layers(model)
    with SHAPES:
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
        ):
            results = _call(model, config, example(config, rows))
        own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        activations = sum(t.untyped_storage().nbytes() for place, t in saved.items() if place not in own)
        return Kept(activations, 4 * sum(tensor.numel() for tensor in _tensors(results)))


@lru_cache(maxsize=4)
def _model(config: TracedConfig) -> nn.Module:
    """A model that holds no numbers."""
    with torch.device("meta"):
        model = build(config)
    with SHAPES:
        return model.to_empty(device="cpu")


def _call(model: nn.Module, config: TracedConfig, inputs: Tensor | dict[str, Tensor]) -> object:
    return model(inputs, data_set=largest(config).name) if isinstance(config, HiPConfig) else model(inputs)


def _tensors(results: object) -> Iterable[Tensor]:
    if isinstance(results, Mapping):
        return (tensor for part in results.values() for tensor in _tensors(part))
    assert isinstance(results, Tensor)
    return (results,)
