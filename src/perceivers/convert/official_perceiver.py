"""Weights of the official Perceiver and Perceiver IO (deepmind-research, JAX and Haiku) to ours.

Checked against parameters that the official code made, and against the names and shapes of its published models.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perceivers.convert.official_perceiver_names import official_names
from perceivers.convert.parameters import check_counterparts, misnamed, refuse
from perceivers.models.feature_config import AudioFeatures, ConvFeatures, MelFeatures, PatchFeatures, PointFeatures
from perceivers.models.input_config import MultimodalInputConfig
from perceivers.models.output_config import AverageOutputConfig
from perceivers.models.perceiver_config import PerceiverIOConfig
from perceivers.models.perceiver_io import build_perceiver_io

__all__ = ["convert_params", "in_our_layout"]


def convert_params(
    params: Mapping[str, np.ndarray | Tensor],
    config: PerceiverIOConfig,
    *,
    state: Mapping[str, np.ndarray | Tensor] | None = None,
) -> dict[str, Tensor]:
    """Our `state_dict` for official parameters, named `<Haiku module path>/<name>`.

    Linear weights are transposed, convolutions permuted; key and value projections become one layer.

    Args:
        params: Official parameters; of tensors on the meta device only names and shapes are checked.
        config: Of the model.
        state: Haiku's state, named likewise: running averages of batch norm. Its debiasing counters are left.

    Raises:
        ValueError: Lists parameters that are missing, unknown or of another shape; or the config has a part that the
            official code has not.
    """
    _check_official(config)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in build_perceiver_io(config).state_dict().items()}
    counters = {name for name in shapes if name.endswith("num_batches_tracked")}
    averages = {name: value for name, value in (state or {}).items() if name.endswith("_ema/average")}
    given = {**params, **averages}
    sources = official_names(config)
    check_counterparts(sources, shapes.keys() - counters)
    wanted = {name for names in sources.values() for name in names}
    problems = misnamed(given, wanted)
    converted = {}
    for ours, names in sources.items():
        if all(name in given for name in names):
            parts = [in_our_layout(name, given[name], dim=len(shapes[ours])) for name in names]
            if not _fits([part.shape for part in parts], shapes[ours]):
                found = ", ".join(f"{name} {list(given[name].shape)}" for name in names)
                problems.append(f"{found} does not fit {ours} {list(shapes[ours])}")
            else:
                converted[ours] = torch.cat(parts)
    refuse(problems)
    return converted | {name: torch.tensor(0) for name in counters}


def in_our_layout(name: str, value: np.ndarray | Tensor, *, dim: int) -> Tensor:
    """An official parameter in our layout, for a parameter of `dim` axes."""
    tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    if name.endswith("/w"):
        if tensor.ndim == 4 and dim == 2:  # a 1 x 1 convolution is a linear layer here
            tensor = tensor.flatten(0, -2)
        if "transp" in name:  # [*kernel, out, in], the kernel the other way round
            kernel = list(range(tensor.ndim - 2))
            return tensor.flip(kernel).permute(tensor.ndim - 1, tensor.ndim - 2, *kernel)
        return tensor.T if tensor.ndim == 2 else tensor.permute(3, 2, 0, 1)
    return tensor.flatten() if dim == 1 else tensor


def _fits(parts: list[torch.Size], shape: torch.Size) -> bool:
    same = {part[1:] for part in parts} == {shape[1:]}
    return same and sum(part[0] for part in parts) == shape[0]


def _check_official(config: PerceiverIOConfig) -> None:
    """Check what the official code has in one form only, and has no weights for.

    Raises:
        ValueError: An option says otherwise.
    """
    source, output = config.input, config.output
    inputs = [m.input for m in source.modalities] if isinstance(source, MultimodalInputConfig) else [source]
    wanted: list[tuple[str, Any, Any]] = [
        ("encoder.activation", config.encoder.activation, "gelu_tanh"),
        ("encoder.empty", config.encoder.empty, "zeros"),
    ]
    if not isinstance(output, AverageOutputConfig):
        wanted += [("output.activation", output.activation, "gelu_tanh"), ("output.widening", output.widening, 1)]
    for one in inputs:
        match one.features:
            case PatchFeatures(normalize=normalize):
                wanted.append(("features.normalize", normalize, False))
            case ConvFeatures(padding=padding):
                wanted.append(("features.padding", padding, "same"))
            case AudioFeatures(channels=channels, tokens=tokens) if channels > 1:
                wanted.append(("features.tokens", tokens, "numbers"))
            case MelFeatures() | PointFeatures():
                raise ValueError(f"the official code reads no {one.features.kind}")
    for name, value, official in wanted:
        if value != official:
            raise ValueError(f"{name}={value!r}: the official code has {official!r} alone, which its weights are for")
