"""Layers, positions, patches and processors of the official Perceiver IO on their own."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from perceivers.convert.official_perceiver import in_our_layout
from perceivers.convert.official_perceiver_names import (
    attention,
    cross_attention,
    feed_forward,
    head_names,
    input_names,
    self_attention,
)
from perceivers.convert.official_perceiver_parts import input_config, positions_config
from perceivers.convert.parameters import Names, linear, norms
from perceivers.models.input_config import InputConfig
from perceivers.models.inputs import Input, build_positions
from perceivers.models.output_config import AudioHead, ClassHead, GridHead, Head, LinearHead, PatchHead, UpsampleHead
from perceivers.models.output_heads import build_head
from perceivers.nn.activations import activate
from perceivers.nn.attention import Attention
from perceivers.nn.blocks import CrossAttentionBlock, FeedForward, SelfAttentionBlock
from perceivers.nn.grids import FourierGrid, grid_coordinates
from perceivers.nn.images import depth_to_space, neighbourhoods, space_to_depth
from perceivers.nn.masks import AttentionMask

from .compared import Compared, given, load, official_state
from .official import Case


def check_attention(case: Case, dtype: torch.dtype) -> None:
    compared, config = Compared(case, dtype), case.info["config"]
    q, kv = given(case, "q", dtype), given(case, "kv", dtype)
    queries, keys = (valid(case, name, x) for name, x in (("query_mask", q), ("kv_mask", kv)))
    mask = own = AttentionMask()
    if queries is not None or keys is not None:
        real = [torch.ones(x.shape[:2]).bool() if m is None else m for m, x in ((queries, q), (keys, kv))]
        mask = AttentionMask(pairs=real[0][:, :, None] & real[1][:, None])
        own = AttentionMask(pairs=real[1][:, :, None] & real[1][:, None])
        compared.maybe("mask", lambda: mask.pairs.to(dtype))
    dim, context_dim = q.shape[-1], kv.shape[-1]

    compared.close("attention", _attention(case, q, kv, mask))

    c, s = config["cross_attention"], config["self_attention"]
    cross = CrossAttentionBlock(
        dim,
        context_dim,
        heads=c["num_heads"],
        inner_dim=c.get("qk_channels") or (dim if c.get("shape_for_attn", "kv") == "q" else context_dim),
        value_dim=c.get("v_channels"),
        widening=c.get("widening_factor", 1),
        activation="gelu_tanh",
        zero_empty=True,
        query_residual=c.get("use_query_residual", True),
    )
    load(cross, {k.removeprefix("x."): v for k, v in cross_attention("x", "cross_attention").items()}, case)
    compared.close("cross_attention", cross.to(dtype)(q, kv, mask=mask))
    block = SelfAttentionBlock(
        context_dim,
        heads=s["num_heads"],
        inner_dim=s.get("qk_channels"),
        widening=s.get("widening_factor", 4),
        activation="gelu_tanh",
    )
    block.attention.zero_empty = True  # the model never masks its latents
    load(block, {k.removeprefix("x."): v for k, v in self_attention("x", "self_attention").items()}, case)
    compared.close("self_attention", block.to(dtype)(kv, mask=own))

    mlp = FeedForward(dim, widening=config["mlp_widening_factor"], activation="gelu_tanh")
    load(mlp, {k.removeprefix("x."): v for k, v in feed_forward("x", "mlp").items()}, case)
    compared.close("mlp", mlp.to(dtype)(q))
    norm = nn.LayerNorm(dim)
    load(norm, {k.removeprefix("x."): v for k, v in norms("x", "layer_norm").items()}, case)
    compared.close("layer_norm", norm.to(dtype)(q))
    compared.close("gelu", activate(q, "gelu_tanh"))
    compared.done()


def valid(case: Case, name: str, x: Tensor) -> Tensor | None:
    """A mask that the case may have, of the rows of `x`."""
    if f"in/{name}" not in case.arrays:
        return None
    mask = case.tensor(f"in/{name}").bool()
    assert mask.shape == x.shape[:2]
    return mask


def _attention(case: Case, q: Tensor, kv: Tensor, mask: AttentionMask) -> Tensor:
    """With any number of output channels, of which ours has as many as the queries: so many at a time."""
    a, dim = case.info["config"]["attention"], q.shape[-1]
    qk_dim = a.get("qk_channels") or dim
    value_dim = a.get("v_channels") or qk_dim
    state = official_state({k.removeprefix("x."): v for k, v in attention("x", "attention").items()}, case)
    parts = []
    for rows in torch.arange(a.get("output_channels") or value_dim).split(dim):
        reader = Attention(
            dim, kv.shape[-1], heads=a["num_heads"], inner_dim=qk_dim, value_dim=value_dim, zero_empty=True
        )
        last = {name: torch.zeros_like(reader.state_dict()[name]) for name in ("to_out.weight", "to_out.bias")}
        for name, value in last.items():
            value[: len(rows)] = state[name][rows]
        reader.load_state_dict(state | last)
        parts.append(reader.to(q.dtype)(q, kv, mask=mask)[..., : len(rows)])
    return torch.cat(parts, -1)


def check_positions(case: Case, dtype: torch.dtype) -> None:
    compared, config = Compared(case, dtype), case.info["config"]

    def rows(name: str) -> Tensor:
        """As many rows as the case has of a result."""
        return torch.zeros(len(case.arrays[f"out/{name}"]), 1, dtype=dtype)

    for i, call in enumerate(config.get("fourier", ())):
        grid = FourierGrid(
            tuple(call["index_dims"]),
            bands=call["num_bands"],
            max_resolution=tuple(call["max_resolution"]) if call.get("max_resolution") else None,
            cosines=not call.get("sine_only", False),
            coordinates=call.get("concat_pos", True),
        )
        features = grid(rows(f"fourier_{i}"), coordinates=given(case, call["pos"], dtype) if "pos" in call else None)
        assert features.shape[-1] == grid.dim
        compared.close(f"fourier_{i}", features)
    for i, shape in enumerate(config.get("linear", ())):
        compared.close(f"linear_{i}", grid_coordinates(tuple(shape), torch.zeros(1, dtype=dtype)).unflatten(0, shape))
    tables = projectors = 0
    for i, call in enumerate(config.get("built", ())):
        built = positions_config(call)
        module = build_positions(built, tuple(call["index_dims"]))
        names: dict[str, tuple[str, ...]] = {}
        if built.kind == "learned":
            table = "table" if built.project_dim is None else "base.table"
            names[table] = (_nth("trainable_position_encoding", tables) + "/pos_embs",)
            tables += 1
        if built.project_dim is not None:
            names |= linear("project", _nth("position_encoding_projector", projectors) + "/linear")
            projectors += 1
        load(module, names, case)
        compared.close(f"built_{i}", module.to(dtype)(rows(f"built_{i}")))
    for i, call in enumerate(config.get("subsampled", ())):
        shape = tuple(call["output_index_dims"])
        positions = build_positions(positions_config(call | {"position_encoding_type": "fourier"}), shape)
        points = case.tensor(f"in/{call['points']}")
        compared.close(f"subsampled_{i}", positions(rows(f"subsampled_{i}"), points=points))
        compared.close(f"full_{i}", positions(rows(f"full_{i}")))
    compared.done()


def _nth(name: str, count: int) -> str:
    return f"{name}_{count}" if count else name


def check_patches(case: Case, dtype: torch.dtype) -> None:
    compared, config = Compared(case, dtype), case.info["config"]
    for i, call in enumerate(config["space_to_depth"]):
        options = {"patch": call["spatial_block_size"], "time_patch": call.get("temporal_block_size", 1)}
        x = given(case, call["x"], dtype)
        patches = space_to_depth(x, **options)
        compared.close(f"s2d_{i}", patches)
        compared.close(f"s2d_inv_{i}", depth_to_space(patches, **options))
    for i, call in enumerate(config["extract_patches"]):
        windows = neighbourhoods(
            given(case, call["x"], dtype),
            kernel=tuple(call["sizes"][1:3]),
            stride=tuple(call["strides"][1:3]),
            dilation=tuple(call["rates"][1:3]),
            padded=call["padding"] == "SAME",
        )
        compared.close(f"patches_{i}", windows)
    flow = given(case, "flow", dtype)
    around = neighbourhoods(flow.flatten(0, 1), kernel=(3, 3)).unflatten(0, flow.shape[:2])
    compared.close("patches_for_flow", around)
    compared.done()


def check_processors(case: Case, dtype: torch.dtype) -> None:
    compared, config = Compared(case, dtype), case.info["config"]
    for i, call in enumerate(config.get("pre", ())):
        x = given(case, call["x"], dtype)
        module = Input(_input(call, tuple(x.shape[1:])))
        names = input_names("", module.config, str)
        module.load_state_dict(_converted(case, f"pre_{i}", names, module))
        positions = given(case, call["pos"], dtype) if "pos" in call else None
        tokens = module.to(dtype).eval()(x, positions=positions)
        shape = case.tensor(f"out/pre_{i}").shape[:-1]  # network_input_is_1d=False keeps the grid
        compared.close(f"pre_{i}", tokens.tokens.unflatten(1, shape[1:]))
        compared.close(f"pre_nopos_{i}", tokens.features.unflatten(1, shape[1:]))
    for i, call in enumerate(config.get("post", ())):
        x = given(case, call["x"], dtype)
        if call["type"] == "identity":
            compared.close(f"post_{i}", x)
            continue
        head = _head(call, tuple(x.shape[1:-1]))
        module = build_head(head, x.shape[-1])
        assert module is not None
        names = head_names("", head, str)
        if call.get("postproc_type") == "conv1x1":
            names = linear("", "image_postprocessor/~/conv2_d")
            stride = call.get("spatial_upsample", 1)  # as the reference has it: it leaves points out
            x = x[:, ::stride, ::stride]
        else:
            x = x.flatten(1, -2)
        module.load_state_dict(_converted(case, f"post_{i}", names, module))
        compared.close(f"post_{i}", module.to(dtype)(x))
    compared.done()


def _input(call: Mapping[str, Any], shape: tuple[int, ...]) -> InputConfig:
    arguments = {name: value for name, value in call.items() if name not in ("x", "pos", "network_input_is_1d")}
    return input_config({"input_preprocessor": arguments, "patches_for_flow": False}, shape)


def _head(call: Mapping[str, Any], grid: tuple[int, ...]) -> Head:
    shape = tuple(call.get("input_reshape_size") or grid)
    match call.get("postproc_type", "pixels") if call["type"] == "image" else call["type"]:
        case "conv":
            time = call.get("temporal_upsample", 1)
            factor = 4 if time == 1 else call.get("spatial_upsample", 1)
            return UpsampleHead(shape=shape, channels=call["n_outputs"], factor=factor, time_factor=time)
        case "patches":
            return PatchHead(
                shape=shape, patch=call.get("spatial_upsample", 1), time_patch=call.get("temporal_upsample", 1)
            )
        case "pixels":
            return GridHead(shape=shape)
        case "conv1x1":
            return LinearHead(channels=call["n_outputs"])
        case "audio":
            return AudioHead(samples_per_patch=call.get("samples_per_patch", 96))
        case "projection":
            return LinearHead(channels=call["num_outputs"])
        case "classification":
            return ClassHead(classes=call["num_classes"])
        case other:
            raise AssertionError(f"unknown head {other}")


def _converted(case: Case, name: str, names: Names, module: nn.Module) -> dict[str, Tensor]:
    """The parameters of one processor, by the converter's table, whose first part of a name is the class."""
    given = case.tree(f"params/{name}/") | case.tree(f"state/{name}/")
    state = {key: value for key, value in module.state_dict().items() if key.endswith("num_batches_tracked")}
    for ours, (official,) in names.items():
        key = ours.removeprefix(".")
        state[key] = in_our_layout(official, given.pop(official.partition("/")[2]), dim=module.state_dict()[key].ndim)
    left = [other for other in given if not other.endswith(("hidden", "counter"))]
    assert not left, f"nothing of ours is made of {left}"
    return state
