"""Reference cases of Perceiver and Perceiver IO, and what is compared in each."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perceivers.convert.official_perceiver import convert_params, cross_attention, self_attention
from perceivers.convert.official_perceiver_config import config_from_official
from perceivers.convert.parameters import linear
from perceivers.models import perceiver_published
from perceivers.models.flow import tile_origins, tiled_flow
from perceivers.models.output_config import AverageOutputConfig
from perceivers.models.outputs import MultimodalOutput, QueryOutput
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig
from perceivers.models.perceiver_io import PerceiverIO, build_perceiver_io, decode_in_chunks
from perceivers.nn.images import neighbourhoods
from perceivers.nn.masks import AttentionMask

from . import io_units
from .compared import Compared, given, load
from .official import Case

DIRECTORY = Path(os.environ.get("PERCEIVERS_GOLDENS_FAMILY") or Path(__file__).parent / "goldens" / "family")
FAMILIES = ("perceiver", "perceiver_io", "perceiver_io_units")
SHAPES = ("perceiver", "mlm", "multimodal")
"""Kinds of these families among the lists of names and shapes of published models."""

PUBLISHED = {
    "imagenet_conv_preprocessing": perceiver_published.imagenet_conv,
    "imagenet_fourier_position_encoding": perceiver_published.imagenet_fourier,
    "masked_language_modelling": perceiver_published.masked_language_model,
    "optical_flow": perceiver_published.optical_flow,
    "video_autoencoding": perceiver_published.video_autoencoder,
}


def cases() -> list[Case]:
    """All cases of these families."""
    found = []
    for path in sorted(DIRECTORY.glob("*.json")):
        info = json.loads(path.read_text())
        if info["family"] in FAMILIES or (info["family"] == "fullsize_shapes" and info["kind"] in SHAPES):
            found.append(Case(path))
    if not found:
        raise FileNotFoundError(f"{DIRECTORY} has no reference cases (*.json) of {', '.join(FAMILIES)}")
    return found


def model_of(case: Case, info: dict[str, Any], dtype: torch.dtype, **options: Any) -> PerceiverIO:
    """Our model with the case's parameters."""
    config = config_from_official(info, **options)
    model = build_perceiver_io(config)
    model.load_state_dict(convert_params(case.tree("params/"), config, state=case.tree("state/")))
    return model.to(dtype).eval()


@torch.no_grad()
def check(case: Case, dtype: torch.dtype) -> None:
    """Compare everything that the case has."""
    match case.kind:
        case "perceiver":
            check_perceiver(case, dtype)
        case "multi_cross":
            check_iterated(case, dtype)
        case "mlm":
            check_text(case, dtype)
        case "multimodal":
            check_multimodal(case, dtype)
        case "multimodal_chunked":
            check_chunked(case, dtype)
        case "flow_tiled":
            check_tiled(case, dtype)
        case "attention_units":
            io_units.check_attention(case, dtype)
        case "pos_units":
            io_units.check_positions(case, dtype)
        case "patch_units":
            io_units.check_patches(case, dtype)
        case "prep_units":
            io_units.check_processors(case, dtype)
        case kind:
            raise AssertionError(f"{case.path} is of an unknown kind: {kind}")


def check_perceiver(case: Case, dtype: torch.dtype) -> None:
    compared = Compared(case, dtype)
    x = given(case, "inputs", dtype)
    model = model_of(case, case.info["config"], dtype, shape=tuple(x.shape[1:]))
    mask = case.tensor("in/input_mask").bool() if "in/input_mask" in case.arrays else None
    positions = given(case, "pos", dtype) if "in/pos" in case.arrays else None
    query_mask = case.tensor("in/query_mask").bool() if "in/query_mask" in case.arrays else None
    points = case.tensor("in/subsampled_output_points") if "in/subsampled_output_points" in case.arrays else None

    encoded = model.encode(x, mask=mask, positions=positions)
    assert encoded.inputs.features is not None
    compared.close("preprocessed_inputs", encoded.inputs.tokens)
    compared.close("inputs_without_pos", encoded.inputs.features)
    _, crossed = next(model.encoder.steps(encoded.inputs.tokens, mask=mask))
    compared.close("encoder_cross_attend", crossed)
    compared.close("latents", encoded.latents)
    compared.close("output", model.decode(encoded, query_mask=query_mask, points=points))
    compared.maybe("flow_patches", lambda: flow_patches(x))
    if isinstance(output := model.output, QueryOutput):
        queries = output.make_queries(encoded.latents, encoded.inputs, points)
        read = output.attend(encoded.latents, queries, query_mask=query_mask)
        compared.close("decoder_query", queries)
        compared.close("decoder_cross_attend", read)
        compared.maybe("decoder_output_unscaled", lambda: output.linear(read))
    compared.done()


def flow_patches(frames: Tensor) -> Tensor:
    """Neighbourhoods of both frames, as they are before the linear layer."""
    return neighbourhoods(frames.flatten(0, 1), kernel=(3, 3)).unflatten(0, frames.shape[:2])


def check_iterated(case: Case, dtype: torch.dtype) -> None:
    """Repeated cross-attends; the case is put together from official layers, so its names are its own."""
    compared = Compared(case, dtype)
    x, core = given(case, "inputs", dtype), case.info["config"]["core"]
    classes = case.info["config"]["num_classes"]
    kwargs = {"input_preprocessor": case.info["config"]["input_preprocessor"], "encoder": {}}
    kwargs["decoder"] = {"type": "projection", "num_classes": classes}
    source = config_from_official(kwargs, shape=tuple(x.shape[1:])).input
    encoder = EncoderConfig(
        num_latents=core["z_index_dim"],
        dim=core["num_z_channels"],
        blocks=core["num_iterations"],
        depth=core["num_self_attends_per_block"],
        block_sharing=core["block_sharing"],
        cross_attends=core["num_iterations"],
        cross_sharing=core["cross_sharing"],
        heads=core["num_self_attend_heads"],
        cross_heads=core["num_cross_attend_heads"],
        widening=core["self_attend_widening_factor"],
        cross_widening=core["cross_attend_widening_factor"],
    )
    model = build_perceiver_io(
        PerceiverIOConfig(input=source, encoder=encoder, output=AverageOutputConfig(classes=classes))
    )
    names = linear("output.linear", "projection_decoder/~/logits") | {"encoder.latents": ("latents/pos_embs",)}
    for i in range(len(model.encoder.cross_attends)):
        names |= cross_attention(f"encoder.cross_attends.{i}", f"cross_attend_{i}")
    for i, block in enumerate(model.encoder.blocks):
        for j in range(len(block)):
            names |= self_attention(f"encoder.blocks.{i}.{j}", f"self_attend_{i}_{j}")
    load(model, names, case)
    model.to(dtype)

    encoded = model.encode(x)
    compared.close("preprocessed_inputs", encoded.inputs.tokens)
    for i, (name, latents) in enumerate(model.encoder.steps(encoded.inputs.tokens)):
        compared.close(f"after_{name.removesuffix('_attend')}_{i // 2}", latents)
    compared.close("latents", encoded.latents)
    compared.close("output", model.decode(encoded))
    compared.done()


def check_text(case: Case, dtype: torch.dtype) -> None:
    compared = Compared(case, dtype)
    model = model_of(case, case.info["config"], dtype, kind="mlm")
    mask, labels = case.tensor("in/input_mask").bool(), case.tensor("in/labels")
    encoded = model.encode(case.tensor("in/inputs"), mask=mask)
    compared.close("embedded_inputs", encoded.inputs.tokens)
    _, crossed = next(model.encoder.steps(encoded.inputs.tokens, mask=mask))
    compared.close("encoder_cross_attend", crossed)
    compared.close("latents", encoded.latents)
    queries = model.output.make_queries(encoded.latents)
    compared.close("output_embeddings", model.output.attend(encoded.latents, queries, query_mask=mask))
    logits = model.decode(encoded, query_mask=mask)
    compared.close("output", logits)
    compared.close("loss", nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1))
    compared.done()


def check_multimodal(case: Case, dtype: torch.dtype) -> None:
    compared = Compared(case, dtype)
    model = model_of(case, case.info["config"], dtype, kind="multimodal")
    output = model.output
    assert isinstance(output, MultimodalOutput)
    points = {
        name.removeprefix("in/subsampling_"): case.tensor(name)
        for name in case.arrays
        if name.startswith("in/subsampling_")
    }
    encoded = model.encode({name: given(case, name, dtype) for name in ("audio", "image", "label")})
    compared.close("preprocessed_inputs", encoded.inputs.tokens)
    compared.close("latents", encoded.latents)
    queries = torch.cat(list(output.make_queries(encoded.latents, points).values()), 1)
    compared.close("decoder_query", queries)
    read = output.cross_attend(queries, encoded.latents, mask=AttentionMask())
    compared.close("decoder_output", output.linear(read))
    for name, result in model.decode(encoded, points=points).items():
        compared.close(f"output_{name}", result)
    compared.done()


def check_chunked(case: Case, dtype: torch.dtype) -> None:
    compared = Compared(case, dtype)
    config = case.info["config"]
    model = model_of(case, config["model"], dtype, kind="multimodal")
    x = {name: given(case, name, dtype) for name in ("audio", "image", "label")}
    points = {
        "image": x["image"][0, ..., 0].numel(),
        "audio": x["audio"].shape[1] // config["model"]["samples_per_patch"],
    }
    results = decode_in_chunks(model, model.encode(x), points=points, chunks=config["nchunks"])
    for name, result in results.items():
        compared.close(f"output_{name}", result.reshape(x[name].shape))
    compared.done()


def check_tiled(case: Case, dtype: torch.dtype) -> None:
    compared = Compared(case, dtype)
    config = case.info["config"]
    tile, overlap = tuple(config["patch_size"]), config["min_overlap"]
    frames = torch.stack([given(case, "im1", dtype), given(case, "im2", dtype)])[None]
    model = model_of(case, config["model"], dtype, shape=(2, *tile, 3))
    compared.close("output", tiled_flow(model, frames, tile=tile, overlap=overlap))
    compared.equal("grid_indices", torch.tensor(tile_origins(tuple(frames.shape[2:4]), tile, overlap=overlap)))
    compared.done()


def check_shapes(case: Case) -> None:
    """Names and shapes of a published model, on the meta device."""
    kind, shapes = case.kind, case.info["input_shapes"]
    options = {"shape": tuple(shapes["inputs"][1:])} if kind == "perceiver" else {}
    config = config_from_official(case.info["config"], kind=kind, **options)
    assert config == PUBLISHED[case.path.stem.removeprefix("fullsize_")]()
    params = {name: torch.empty(shape, device="meta") for name, shape in case.info["params"].items()}
    state = {name: torch.empty(shape, device="meta") for name, shape in (case.info["state"] or {}).items()}
    with torch.device("meta"):
        model = build_perceiver_io(config)
    converted = convert_params(params, config, state=state)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert sum(p.numel() for p in model.parameters()) == case.info["num_params"]
