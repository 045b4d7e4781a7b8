"""Padded rows and masks in every float type, as such and under autocast, with both back ends.

A padded row gives what the row alone gives, within the type's rounding, and nothing is NaN or infinite, gradients
included.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from perceivers.models.ecp import ECP
from perceivers.models.ecp_config import ECPConfig
from perceivers.models.feature_config import TokenFeatures
from perceivers.models.hip import HiP
from perceivers.models.hip_config import DataSet, HiPConfig, Modality
from perceivers.models.input_config import InputConfig, LearnedPositions
from perceivers.models.output_config import GridQueries, QueryOutputConfig, TiedHead
from perceivers.models.perceiver_ar import PerceiverAR
from perceivers.models.perceiver_ar_config import PerceiverARConfig
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig, ResamplerConfig
from perceivers.models.perceiver_io import build_perceiver_io
from perceivers.models.resampler import PerceiverResampler
from perceivers.nn.attention import Backend

SEQ, LENGTH, LATENTS = 13, 7, 5

Case = tuple[nn.Module, Callable[[nn.Module], Tensor], Callable[[nn.Module], Tensor]]
"""A model, what it makes of a padded row among others, and of the row alone."""


def perceiver_ar(backend: Backend, **options: Any) -> Case:
    config = {"vocab_size": 43, "max_seq_len": SEQ, "num_latents": LATENTS, "dim": 12, "depth": 2, "heads": 2}
    config |= {"cross_heads": 2, "dropout": 0.0, "zero_logits": False, "backend": backend}
    model = PerceiverAR(PerceiverARConfig(**(config | options)))
    tokens = torch.randint(3, 43, (2, SEQ))
    positions = torch.arange(1, SEQ + 1).expand(2, -1)[..., None]
    lengths = torch.tensor([SEQ, LENGTH])

    def padded(model: nn.Module) -> Tensor:
        return model(tokens, positions=positions, lengths=lengths)[1]

    def alone(model: nn.Module) -> Tensor:
        return model(tokens[1:, :LENGTH], positions=positions[1:, :LENGTH])[0]

    return model, padded, alone


def ecp(backend: Backend, pattern: Any) -> Case:
    options: dict[str, Any] = {} if pattern == "ecp" else {"num_latents": 3}
    segments = {"segment_len": 3} if pattern in ("ecp", "ssplit") else {}
    sizes = {"vocab_size": 43, "max_seq_len": 12, "dim": 12, "depth": 2, "heads": 2, "dropout": 0.0}
    model = ECP(ECPConfig(pattern=pattern, backend=backend, **(sizes | options | segments)))
    tokens, lengths = torch.randint(3, 43, (2, 12)), torch.tensor([12, 7])

    def padded(model: nn.Module) -> Tensor:
        return model(tokens, lengths=lengths, num_latents=3)[1]

    def beside_another(model: nn.Module) -> Tensor:
        other = torch.where(torch.arange(12) < 7, tokens, 5)
        return model(other, lengths=torch.tensor([7, 7]), num_latents=3)[1]

    return model, padded, beside_another


def perceiver_io(backend: Backend, empty: Any = "zeros") -> Case:
    positions = LearnedPositions(channels=8)
    model = build_perceiver_io(
        PerceiverIOConfig(
            input=InputConfig(
                features=TokenFeatures(vocab_size=11, seq_len=SEQ, dim=8), positions=positions, combine="add"
            ),
            encoder=EncoderConfig(num_latents=3, dim=8, blocks=2, depth=1, heads=2, backend=backend, empty=empty),
            output=QueryOutputConfig(
                queries=GridQueries(shape=(SEQ,), positions=positions),
                channels=None,
                head=TiedHead(vocab_size=11),
                backend=backend,
            ),
        )
    )
    tokens = torch.randint(0, 11, (3, SEQ))
    real = torch.arange(SEQ) < torch.tensor([SEQ, LENGTH, 0])[:, None]  # the last row is wholly padding

    def padded(model: nn.Module) -> Tensor:
        return model(tokens, mask=real, query_mask=real)

    def other_padding(model: nn.Module) -> Tensor:
        return model(torch.where(real, tokens, 4), mask=real, query_mask=real)

    return model, padded, other_padding


def hip(backend: Backend) -> Case:
    data_set = DataSet(name="a", modalities=(Modality(name="x", positions=5, channels=3),))
    three: dict[str, Any] = {"groups": (7, 1, 7), "latents": (2, 7, 2), "dims": (8, 8, 8), "heads": (2, 2, 2)}
    model = HiP(HiPConfig(data_sets=(data_set,), **three, depths=(1, 1, 1), embed_dim=8, backend=backend))
    x = torch.randn(2, 5, 3)
    hidden = torch.tensor([[True] * 5, [False, True, False, True, True]])

    def many(model: nn.Module) -> Tensor:
        dtype = next(model.parameters()).dtype
        return model({"x": x.to(dtype)}, masked={"x": hidden})["x"][1]

    def one(model: nn.Module) -> Tensor:
        dtype = next(model.parameters()).dtype
        return model({"x": x[1:].to(dtype)}, masked={"x": hidden[1:]})["x"][0]

    return model, many, one


def resampler(backend: Backend) -> Case:
    model = PerceiverResampler(ResamplerConfig(dim=8, num_latents=3, depth=2, heads=2, frames=5, backend=backend))
    x = torch.randn(2, 5, 3, 8)
    real = torch.arange(5) < torch.tensor([5, 2])[:, None]

    def padded(model: nn.Module) -> Tensor:
        return model(x.to(next(model.parameters()).dtype), mask=real)[1]

    def alone(model: nn.Module) -> Tensor:
        return model(x[1:].to(next(model.parameters()).dtype), mask=real[1:])[0]

    return model, padded, alone


MAKERS: dict[str, Callable[[Backend], Case]] = {
    "ar": perceiver_ar,
    "ar_two_latents": lambda backend: perceiver_ar(backend, latents_per_position=2),
    "ar_end": lambda backend: perceiver_ar(backend, position_source="end"),
    **{f"ecp_{pattern}": lambda backend, p=pattern: ecp(backend, p) for pattern in ("ecp", "double", "perceiver_ar")},
    "io": perceiver_io,
    "io_average": lambda backend: perceiver_io(backend, "average"),
    "hip": hip,
    "resampler": resampler,
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def in_type(model: nn.Module, dtype: torch.dtype, how: str) -> AbstractContextManager[object]:
    """Weights in `dtype`, or products."""
    if how == "autocast":
        return torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext()
    model.to(dtype)
    return nullcontext()


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("how", ["weights", "autocast"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_padding_changes_nothing(make: Callable[..., Case], dtype: torch.dtype, how: str, backend: Backend) -> None:
    torch.manual_seed(3)
    model, padded, alone = make(backend)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    with in_type(model.eval(), dtype, how):
        result = padded(model)
        result.float().square().mean().backward()
        with torch.no_grad():
            expected, seen = alone(model), padded(model)
    assert result.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    tolerance = 20 * torch.finfo(dtype).eps
    kept = slice(-min(len(result), len(expected)), None)
    for one in (result, seen):
        torch.testing.assert_close(one.float()[kept], expected.float()[kept], rtol=tolerance, atol=tolerance)
