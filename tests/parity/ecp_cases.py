"""Reference cases of the ECP family: what is in them, and what of ours must give the same.

A case is `NAME.json` beside `NAME.safetensors`; `PERCEIVERS_GOLDENS_FAMILY` names another directory.
"""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from perceivers.convert.official_ecp import config_from_official, convert_params
from perceivers.models.ecp import ECP
from perceivers.models.ecp_config import ECPConfig

from .compared import check_found
from .official import Case as OfficialCase

DIRECTORY = Path(os.environ.get("PERCEIVERS_GOLDENS_FAMILY") or Path(__file__).parent / "goldens" / "family")
CLASSES = {
    "ecp": "ECPAttentionTransformer",
    "double": "DoubleAttentionTransformer",
    "compressed": "CompressedDoubleAttentionTransformer",
    "ssplit": "sSplitAttentionTransformer",
    "perceiver_ar": "PerceiverARTransformer",
}
"""The official class that a case calls so."""


class Case(OfficialCase):
    """A case on disk."""

    @property
    def tolerance(self) -> dict[str, Any]:
        return self.info.get("suggested_tolerance", {"rtol": 1e-4, "atol": 2e-5})

    def outputs(self) -> set[str]:
        return {name.removeprefix("out/") for name in self.arrays if name.startswith("out/")}

    def gradients(self, dtype: torch.dtype) -> dict[str, np.ndarray]:
        """Gradients by official name: of the float64 run where it is wanted and stored."""
        reference = self.tree("ref64/grad/") if dtype == torch.float64 else {}
        return {**self.tree("grad/"), **reference}

    @cached_property
    def config(self) -> ECPConfig:
        return config_from_official(CLASSES[self.info["config"]["model"]], self.info["config"]["kwargs"])

    def compare(self, name: str, actual: Tensor) -> None:
        """`actual` against what is stored, of the run in its precision where there is one; nothing may be stored."""
        if f"out/{name}" not in self.arrays:
            return
        expected = self.expected(name, actual.dtype).to(actual.dtype)
        torch.testing.assert_close(actual.detach(), expected, **self.tolerance, msg=lambda text: f"{name}: {text}")


def cases() -> list[Case]:
    found = [Case(path) for path in sorted(DIRECTORY.glob("*.json"))]
    found = [case for case in found if case.info["family"] == "ecp"]
    check_found(found, DIRECTORY, "the ECP family")
    return found


def check(case: Case, dtype: torch.dtype, backend: str) -> None:
    """Compare every number that the case has."""
    reference = ("ref64/",) if dtype == torch.float64 else ()
    with case.arrays.whole("in/", "grad/", *reference):
        match case.kind:
            case "ecp":
                check_model(case, dtype, backend)
            case "ecp_rotary":
                check_rotary(case, dtype)
            case kind:
                pytest.fail(f"{case.path} is of an unknown kind: {kind}")


def check_rotary(case: Case, dtype: torch.dtype) -> None:
    size, seq = case.info["config"]["dim"], case.info["config"]["seq"]
    model = ECP(ECPConfig(dim=size, heads=1, depth=1)).to(dtype)
    rotation = model.rotation(torch.arange(seq)[None])
    usual = 10_000 ** (-torch.arange(0, size, 2) / size)
    case.compare("base_freqs", usual)
    case.compare("freqs", torch.arange(seq)[:, None] * usual.repeat_interleave(2))
    # Ones and zeros become the cosine and the sine of each pair's angle.
    units = torch.tensor([1.0, 0.0]).repeat(size // 2).to(dtype).expand(1, 1, seq, -1)
    turned = rotation(units)[0, 0].unflatten(-1, (-1, 2))
    angles = case.tensor("out/freqs")[:, ::2]
    torch.testing.assert_close(turned.float(), torch.stack([angles.cos(), angles.sin()], -1), **case.tolerance)
    case.compare("rotated", rotation(case.tensor("in/x").to(dtype)[:, None])[:, 0])
    assert case.outputs() == {"freqs", "base_freqs", "rotated"}


def check_model(case: Case, dtype: torch.dtype, backend: str) -> None:
    config = ECPConfig(**{**vars(case.config), "backend": backend})
    model = ECP(config)
    state, dropped = convert_params(case.tree("params/"), config)
    model.load_state_dict(state)
    model.to(dtype).eval()
    assert set(dropped) == {*case.info.get("unused_params", ()), *case.info.get("buffers", ())}
    size = sum(tensor.numel() for tensor in state.values())
    assert size + sum(case.arrays[f"params/{name}"].size for name in dropped) == case.info["num_params"]

    compared = check_forward(case, model, dtype)
    compared |= check_loss(case, model)
    if "out/dependency" in case.arrays:
        compared |= check_dependency(case, model, dtype)
    if "generate" in case.info["config"]:
        compared |= check_generation(case, model)
    assert case.outputs() <= compared


def check_forward(case: Case, model: ECP, dtype: torch.dtype) -> set[str]:
    """What each layer's attention and feed-forward layer give, all logits, and those that `forward` gives."""
    seen: dict[str, Tensor] = {}
    hooks = []
    for i, layer in enumerate(model.layers):
        for name in ("attention", "feed_forward"):
            label = f"layer_{i}_{name.replace('_', '')}"
            hook = getattr(layer, name).register_forward_hook
            hooks.append(hook(lambda _module, _inputs, out, label=label: seen.update({label: out})))
    inputs = case.tensor("in/tokens")[:, :-1]
    logits = model.predict(model.states(inputs))
    assert logits.dtype == dtype
    for hook in hooks:
        hook.remove()
    for label, value in seen.items():
        case.compare(label, value)
    case.compare("logits", logits)
    # As products of other shapes, which some processors sum in another order.
    torch.testing.assert_close(model(inputs), logits[:, -model.config.num_targets :])
    return {*seen, "logits"}


def check_loss(case: Case, model: ECP) -> set[str]:
    """The loss of the last positions, its gradients where they are stored, and their norms."""
    tokens, scored = case.tensor("in/tokens"), case.info["config"]["wrapper_latent_len"]
    logits = model(tokens[:, :-1], num_latents=scored)
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, -scored:].flatten())
    case.compare("loss", loss)
    loss.backward()
    gradients: dict[str, Any] = {name: p.grad for name, p in model.named_parameters()}
    norms = case.info.get("grad_l2_norms", {})
    one_each = {name: np.full(case.arrays[f"params/{name}"].shape, norm) for name, norm in norms.items()}
    for name, norm in (convert_params(one_each, model.config).state if norms else {}).items():
        torch.testing.assert_close(gradients[name].norm().item(), norm.flatten()[0].item(), rtol=1e-4, atol=1e-6)
    stored = case.gradients(loss.dtype)
    assert bool(stored) == case.info["config"].get("store_grads", bool(stored))
    if stored:
        for name, expected in convert_params(stored, model.config).state.items():
            torch.testing.assert_close(
                gradients[name].to(expected.dtype), expected, **case.tolerance, msg=lambda text, name=name: name + text
            )
    return {"loss"}


def check_dependency(case: Case, model: ECP, dtype: torch.dtype) -> set[str]:
    """Which tokens each row of the last layer depends on, by gradients."""
    embedded: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, out: Tensor) -> None:
        out.retain_grad()
        embedded.append(out)

    hook = model.token_embedding.register_forward_hook(keep)
    expected = case.tensor("out/dependency")
    logits = model.predict(model.states(case.tensor("in/tokens")[:1, :-1]))
    hook.remove()
    # A random sum: a plain one could have a gradient of zero.
    weights = torch.randn(logits.shape[-1], generator=torch.Generator(logits.device).manual_seed(1)).to(dtype)
    for row, columns in enumerate(expected):
        (gradient,) = torch.autograd.grad((logits[0, row] * weights).sum(), embedded[0], retain_graph=True)
        assert torch.equal(gradient[0].abs().sum(-1) > 0, columns.bool()), row
    return {"dependency"}


@torch.no_grad()
def check_generation(case: Case, model: ECP) -> set[str]:
    """The official sampler where k is 1: the likeliest token after the newest `sequence_len`."""
    settings = case.info["config"]["generate"]
    length = case.config.max_seq_len
    row = case.tensor("in/tokens")[0, :length].tolist()
    row = row[: settings.get("prompt_len") or length]
    given = len(row)
    assert int((1 - settings["filter_thres"]) * case.config.vocab_size) == 1
    for _ in range(settings["steps"]):
        row.append(int(model(torch.tensor([row[-length:]]))[0, -1].argmax()))
    assert row[given:] == case.tensor("out/generated")[0].tolist()
    return {"generated"}
