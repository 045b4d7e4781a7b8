"""Reference cases of Hierarchical Perceiver and its Perceiver IO: which they are, and how ours answers them.

A case is `NAME.json` beside `NAME.safetensors` (lists of shapes: JSON alone), see `goldens/family`;
`PERCEIVERS_GOLDENS_FAMILY` names another directory.
"""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from perceivers.convert.official_hip import (
    block_names,
    config_from_official,
    convert_params,
    cross_attention_names,
    official_names,
    self_attention_names,
)
from perceivers.models.hip import HiP, HiPBlock, pack, read_groups, regroup, unpack
from perceivers.models.hip_config import DataSet, HiPConfig, Modality
from perceivers.models.hip_groups import GroupLayout, group_layout
from perceivers.nn.attention import Backend
from perceivers.nn.blocks import CrossAttentionBlock, FeedForward, SelfAttentionBlock
from perceivers.nn.masks import AttentionMask

from .compared import check_found
from .official import Case as OfficialCase

DIRECTORY = Path(os.environ.get("PERCEIVERS_GOLDENS_FAMILY") or Path(__file__).parent / "goldens" / "family")
Results = dict[str, Tensor]


class Case(OfficialCase):
    """A case on disk."""

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        return self.tree(prefix)

    def input(self, name: str, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(self.arrays[f"in/{name}"].copy()).to(dtype)

    def mask(self, name: str) -> Tensor | None:
        """A mask that the case may have."""
        return self.input(name, torch.bool) if f"in/{name}" in self.arrays else None

    def config(self, shapes: dict[str, Any], backend: Backend = "auto") -> HiPConfig:
        """Our config; inputs have `shapes`."""
        official = self.info["config"]
        sizes = {name: shapes[name] for name in official["modalities"]}
        modalities = tuple(Modality(name=name, positions=n, channels=c) for name, (_, n, c) in sizes.items())
        data_sets = (DataSet(name="data", modalities=modalities),)
        config = config_from_official(official["class"], official["variant"] | official["kwargs"], data_sets)
        return dataclasses.replace(config, backend=backend)


def cases() -> list[Case]:
    """All cases that speak of this family, whatever their kind."""
    found = []
    for path in sorted(DIRECTORY.glob("*.json")):
        case = Case(path)
        if case.info["family"] == "hip" or (case.info["family"] == "fullsize_shapes" and case.kind == "hip"):
            found.append(case)
    check_found(found, DIRECTORY, "Hierarchical Perceiver")
    return found


def check(case: Case, dtype: torch.dtype, backend: Backend) -> None:
    """Compare everything that a case stores with ours."""
    if case.info["family"] == "fullsize_shapes":
        check_shapes(case)
        return
    reference = ("ref64/",) if dtype == torch.float64 else ()
    with case.arrays.whole("in/", "grad/", *reference):
        match case.kind:
            case "hip":
                compare(case, model_results(case, dtype, backend), dtype)
            case "hip_units":
                compare(case, unit_results(case, dtype, backend), dtype)
            case kind:
                raise AssertionError(f"{case.path} is of an unknown kind: {kind}")


def compare(case: Case, actual: Results, dtype: torch.dtype) -> None:
    """Everything stored against ours, which may have more."""
    stored = {name.removeprefix("out/") for name in case.arrays if name.startswith("out/")}
    assert not stored - actual.keys()
    for name in sorted(stored):
        ours, expected = actual[name], case.expected(name, dtype)
        assert ours.dtype in (dtype, torch.int64)
        torch.testing.assert_close(ours, expected.to(ours.dtype), **case.tolerance, msg=lambda m, n=name: f"{n}: {m}")


def check_shapes(case: Case) -> None:
    config = case.config(case.info["input_shapes"])
    with torch.device("meta"):
        parameters = dict(HiP(config).named_parameters())
    assert sum(p.numel() for p in parameters.values()) == case.info["num_params"]
    shapes = {name: tuple(shape) for name, shape in case.info["params"].items()}
    for ours, official in official_names(config).items():
        parts = [shapes.pop(name) for name in official]
        parts = [part[::-1] if name.endswith("/w") else part for part, name in zip(parts, official, strict=True)]
        assert parameters.pop(ours).shape == (sum(part[0] for part in parts), *parts[0][1:]), ours
    assert not shapes
    assert not parameters


@torch.no_grad()
def model_results(case: Case, dtype: torch.dtype, backend: Backend) -> Results:
    """What the model gives, and what its parts give on the way."""
    inputs = {name: case.input(name, dtype) for name in case.info["config"]["modalities"]}
    config = case.config({name: x.shape for name, x in inputs.items()}, backend)
    model = HiP(config)
    assert sum(p.numel() for p in model.parameters()) == case.info["num_params"]
    model.load_state_dict(convert_params(case.under("params/"), config))
    model.to(dtype).train(case.info["config"].get("is_training", False))
    results: Results = {}
    chosen = None
    if "out/subsample_indices" in case.arrays:
        chosen = torch.from_numpy(case.arrays["out/subsample_indices"]).long()
        results["subsample_indices"] = chosen
        drawn = model.choose_latents(len(chosen))
        assert drawn is not None
        assert drawn.shape == chosen.shape
    with recorded(model) as calls:
        outputs = model(inputs, chosen=chosen)
    bottleneck = case.info["config"]["class"] == "HiPClassBottleneck"
    prefix = "perceiver_block" if bottleneck else "block"
    for i in range(len(model.blocks)):
        results[f"{prefix}_{i}"] = calls[f"blocks.{i}"][0][1]
    groups = config.groups[0]
    results["grouped_inputs"] = calls["blocks.0"][0][0][0]
    results["grouped_mae_query"] = calls["head"][0][0][0].unflatten(0, (-1, groups))
    grouped = {"head": "grouped_reconstruction_head_1" if bottleneck else "grouped_reconstruction_head"}
    if config.label_modalities:
        grouped["label_head"] = "grouped_reconstruction_head"
    for ours, official in grouped.items():
        # Of several labels, which share a head, the first one's is stored.
        results[official] = calls[ours][0][1].unflatten(0, (-1, groups if ours == "head" else 1))
    results |= {f"reconstruction/{name}": value for name, value in outputs.items()}
    latents = cut_like_inputs(calls[f"blocks.{len(model.blocks) - 1}"][0][1], config.layout(config.data_sets[0]))
    return results | {f"latents_ungrouped/{name}": value for name, value in latents.items()}


@contextmanager
def recorded(model: HiP) -> Iterator[dict[str, list[tuple[Any, Tensor]]]]:
    """Arguments and results of each call of the parts that have them in the reference."""
    calls: dict[str, list[tuple[Any, Tensor]]] = {}
    parts = {name: part for name, part in model.named_modules() if name in ("head", "label_head")}
    parts |= {f"blocks.{i}": block for i, block in enumerate(model.blocks)}

    def record(name: str):
        return lambda module, args, result: calls.setdefault(name, []).append((args, result))

    handles = [part.register_forward_hook(record(name)) for name, part in parts.items()]
    yield calls
    for handle in handles:
        handle.remove()


def cut_like_inputs(latents: Tensor, layout: GroupLayout) -> Results:
    """What the official code returns as latents: cut by the padding of the inputs, which means nothing."""
    if layout.concatenated:
        starts = np.cumsum([0, *layout.positions.values()])
        return {name: latents[:, 0, start:][:, :n] for (name, n), start in zip(layout.positions.items(), starts)}  # noqa: B905
    cut = {}
    for name, part in zip(layout.positions, latents.split(list(layout.groups.values()), 1), strict=True):
        kept = part.shape[2] - (layout.size - layout.filled(name))
        padding = layout.groups[name] * layout.filled(name) - layout.positions[name]
        rows = part[:, :, :kept].flatten(1, 2)
        cut[name] = rows[:, : rows.shape[1] - padding]
    return cut


@torch.no_grad()
def unit_results(case: Case, dtype: torch.dtype, backend: Backend) -> Results:
    official = case.info["config"]
    results: Results = {}
    for i, call in enumerate(official.get("regroup", [])):
        results[f"regroup_{i}"] = regroup(case.input("x", dtype), call["num_output_groups"], how=call["regroup_type"])
    for i, call in enumerate(official.get("groupers", [])):
        values = {name: case.input(name, dtype) for name in call["modalities"]}
        layout = group_layout({name: x.shape[1] for name, x in values.items()}, call["num_groups"])
        results[f"grouped_{i}"] = pack(values, layout)
        results |= {f"ungrouped_{i}/{name}": x for name, x in unpack(results[f"grouped_{i}"], layout).items()}
    if values := {name: case.input(name, dtype) for name in official.get("concat", [])}:
        results["concat_grouped"] = pack(values, group_layout({name: x.shape[1] for name, x in values.items()}, 1))
    lat = case.input("lat", dtype)
    results |= cross_results(case, lat, dtype, backend)

    options = official["self_attention"]
    layer = SelfAttentionBlock(
        lat.shape[-1],
        heads=options.get("num_heads", 8),
        inner_dim=options.get("qk_channels"),
        widening=options.get("widening_factor", 4),
        activation="sq_relu",  # as in the reference: whatever `activation_name` says
        backend=backend,
    )
    load(layer, case, self_attention_names("", "self_attention"), dtype)
    results["self_attention"] = layer(lat.flatten(0, 1), mask=AttentionMask()).unflatten(0, lat.shape[:2])
    name = official["dense"].get("activation_name", "sq_relu")
    activation = {"gelu": "gelu_tanh"}.get(name, name)  # of jax: the tanh approximation
    dense = FeedForward(lat.shape[-1], widening=official["dense"].get("widening_factor", 4), activation=activation)
    linear = {"up": "mlp_hidden_linear", "down": "mlp_output_linear"}
    names = {f"{ours}.weight": (f"dense/{theirs}/w",) for ours, theirs in linear.items()}
    load(dense, case, names | {f"{ours}.bias": (f"dense/{theirs}/b",) for ours, theirs in linear.items()}, dtype)
    results["dense"] = dense(lat)
    return results | {"block": block_result(case, lat, dtype, backend)}


def cross_results(case: Case, lat: Tensor, dtype: torch.dtype, backend: Backend) -> Results:
    """With learned queries, a residual and a mask; and with given queries and a mask, where the case has them."""
    options = case.info["config"]["cross_attention"]

    def cross_attend(dim: int, module: str) -> CrossAttentionBlock:
        block = CrossAttentionBlock(
            dim,
            lat.shape[-1],
            heads=options.get("num_heads", 8),
            inner_dim=lat.shape[-1],
            widening=options.get("widening_factor", 1),
            activation="sq_relu",  # as in the reference: whatever `activation_name` says
            query_residual=options.get("use_post_attention_residual", False),
            zero_empty=True,
            backend=backend,
        )
        load(block, case, cross_attention_names("", module), dtype)
        return block

    table = torch.from_numpy(case.arrays["params/cross_learned/query_inputs/pos_embs"]).to(dtype)
    queries = table.unflatten(0, (lat.shape[1], -1)).expand(len(lat), -1, -1, -1)
    if "in/residual" in case.arrays:
        queries = queries + projected(case, case.input("residual", dtype), queries.shape[-1])
    masks = [case.mask(name) for name in ("attention_mask", "attention_mask_q")]
    learned = read_groups(cross_attend(options["output_num_channels"], "cross_learned"), queries, lat, masks[0])
    results = {"cross_learned_query": learned}
    if "in/query" in case.arrays:
        given = case.input("query", dtype)
        block = cross_attend(given.shape[-1], "cross_given")
        results["cross_given_query"] = read_groups(block, given, lat, masks[1])
    return results


def projected(case: Case, residual: Tensor, dim: int) -> Tensor:
    """A residual as it is added to learned queries of `dim` channels."""
    if residual.shape[-1] == dim:
        return residual
    root = "params/cross_learned/pre_attention_residual_linear"
    weight, bias = (torch.from_numpy(case.arrays[f"{root}/{name}"].copy()).to(residual.dtype) for name in "wb")
    return residual @ weight + bias


def block_result(case: Case, lat: Tensor, dtype: torch.dtype, backend: Backend) -> Tensor:
    """The block as the first one of a model."""
    o = case.info["config"]["block"]
    groups, dim = o["num_output_groups"], o["num_output_channels"]
    latents = o.get("output_index_dim_eval") or o["output_index_dim"]  # all that there are: nothing trains here
    config = HiPConfig(
        data_sets=(DataSet(name="data", modalities=(Modality(name="a", positions=24, channels=1),)),),
        groups=(groups, 1, groups),
        latents=(latents, groups, latents),
        dims=(dim,) * 3,
        depths=(o["num_self_attend_layers"],) * 3,
        heads=(o["num_self_attend_heads"],) * 3,
        cross_heads=(o.get("num_cross_attend_heads", 1),) * 3,
        widening=(o.get("self_attend_widening_factor", 4),) * 3,
        cross_widening=(o.get("cross_attend_widening_factor", 1),) * 3,
        embed_dim=lat.shape[-1],
        backend=backend,
    )
    block = HiPBlock(config, 0)
    block.cross_attend.query_residual = o.get("use_post_attention_residual", True)
    load(block, case, block_names("", "block", config, 0), dtype)
    return block(regroup(lat, groups, how=o.get("regroup_type", "reshape")) if o.get("regroup_inputs", True) else lat)


def load(module: nn.Module, case: Case, names: dict[str, tuple[str, ...]], dtype: torch.dtype) -> None:
    """Give `module` the case's parameters, by the converter's table."""
    params = case.under("params/")
    state = {}
    for ours, official in names.items():
        parts = [params[name].T if name.endswith("/w") else params[name] for name in official]
        state[ours.removeprefix(".")] = torch.from_numpy(np.concatenate(parts))
    module.load_state_dict(state)
    module.to(dtype).eval()
