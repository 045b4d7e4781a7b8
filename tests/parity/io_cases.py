"""Reference cases of Perceiver and Perceiver IO, and what is compared in each."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perceivers.convert.official_perceiver import convert_params
from perceivers.convert.official_perceiver_config import config_from_official
from perceivers.convert.official_perceiver_names import cross_attention, official_names, self_attention
from perceivers.models import perceiver_published
from perceivers.models.flow import tile_origins, tiled_flow
from perceivers.models.input_config import FourierPositions, LearnedPositions
from perceivers.models.inputs import Input
from perceivers.models.output_config import GridQueries
from perceivers.models.outputs import MultimodalOutput, QueryOutput
from perceivers.models.perceiver_io import PerceiverIO, build_perceiver_io, decode_in_chunks
from perceivers.nn.images import neighbourhoods
from perceivers.nn.masks import AttentionMask

from . import io_units
from .compared import Compared, check_found, given, load
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
    check_found(found, DIRECTORY, ", ".join(FAMILIES))
    return found


def model_of(case: Case, info: dict[str, Any], dtype: torch.dtype, **options: Any) -> PerceiverIO:
    """Our model with the case's parameters."""
    config = config_from_official(info, **options)
    model = build_perceiver_io(config)
    model.load_state_dict(convert_params(case.tree("params/"), config, state=case.tree("state/")))
    return model.to(dtype).eval()


def check(case: Case, dtype: torch.dtype) -> None:
    """Compare everything that the case has, and read all that it gives."""
    reference = ("ref64/",) if dtype == torch.float64 else ()
    with case.arrays.whole("in/", "grad/", *reference), torch.no_grad():
        check_kind(case, dtype)


def check_kind(case: Case, dtype: torch.dtype) -> None:
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


def mask_of(case: Case, name: str) -> Tensor | None:
    """A mask that the case may have."""
    return case.tensor(f"in/{name}").bool() if f"in/{name}" in case.arrays else None


def check_perceiver(case: Case, dtype: torch.dtype) -> None:
    compared = Compared(case, dtype)
    x = given(case, "inputs", dtype)
    model = model_of(case, case.info["config"], dtype, shape=tuple(x.shape[1:]))
    output, mask = model.output, mask_of(case, "input_mask")
    positions = given_positions(case, model, dtype)
    query_mask, points = asked(case, output)

    encoded = model.encode(x, mask=mask, positions=positions)
    compared.maybe("preprocessed_inputs", lambda: encoded.inputs.tokens)
    compared.maybe("inputs_without_pos", lambda: encoded.inputs.features)
    compared.maybe("encoder_cross_attend", lambda: next(model.encoder.steps(encoded.inputs.tokens, mask=mask))[1])
    compared.maybe("latents", lambda: encoded.latents)
    compared.close("output", model.decode(encoded, query_mask=query_mask, points=points))
    compared.maybe("flow_patches", lambda: flow_patches(x))
    if isinstance(output, QueryOutput):
        queries = output.make_queries(encoded.latents, encoded.inputs, points)
        read = output.attend(encoded.latents, queries, query_mask=query_mask)
        compared.maybe("decoder_query", lambda: queries)
        compared.maybe("decoder_cross_attend", lambda: read)
        compared.maybe("decoder_output_unscaled", lambda: output.linear(read))
    compared.done()


def given_positions(case: Case, model: PerceiverIO, dtype: torch.dtype) -> Tensor | None:
    """Positions of the input in place of the grid's."""
    if "in/pos" not in case.arrays:
        return None
    assert isinstance(model.input, Input)
    if not isinstance(model.input.config.positions, FourierPositions):
        case.arrays.skip("in/pos", because="the official code does not use given positions where they are learned")
        return None
    return given(case, "pos", dtype)


def asked(case: Case, output: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """The mask of the queries and the chosen points, where the official decoder uses them."""
    masked, points = mask_of(case, "query_mask"), None
    basic = isinstance(output, QueryOutput) and case.info["config"]["decoder"].get("type", "basic") == "basic"
    if "in/subsampled_output_points" in case.arrays:
        points = case.tensor("in/subsampled_output_points")
        queries = output.config.queries if isinstance(output, QueryOutput) else None
        if not isinstance(queries, GridQueries) or isinstance(queries.positions, LearnedPositions):
            points = None  # the official code gives all points of a learned grid
    return (masked if basic else None), points  # other official decoders take no notice of the mask


def flow_patches(frames: Tensor) -> Tensor:
    """Neighbourhoods of both frames, as they are before the linear layer."""
    return neighbourhoods(frames.flatten(0, 1), kernel=(3, 3)).unflatten(0, frames.shape[:2])


ITERATED = ("num_iterations", "cross_sharing", "block_sharing")
"""Options of repeated cross-attends that the official encoder has not."""


def check_iterated(case: Case, dtype: torch.dtype) -> None:
    """Repeated cross-attends; the case is put together from official layers, so its names are its own."""
    compared = Compared(case, dtype)
    x, mask = given(case, "inputs", dtype), mask_of(case, "input_mask")
    core = dict(case.info["config"]["core"])
    iterations, cross_sharing, block_sharing = (core.pop(name) for name in ITERATED)
    decoder = {"type": "projection", "num_classes": case.info["config"]["num_classes"]}
    kwargs = {"input_preprocessor": case.info["config"]["input_preprocessor"], "encoder": core, "decoder": decoder}
    config = config_from_official(kwargs, shape=tuple(x.shape[1:]))
    repeated = {"blocks": iterations, "cross_attends": iterations, "cross_sharing": cross_sharing}
    encoder = dataclasses.replace(config.encoder, **repeated, block_sharing=block_sharing)
    model = build_perceiver_io(dataclasses.replace(config, encoder=encoder))
    names = official_names(config)
    names = {ours: official for ours, official in names.items() if not ours.startswith("encoder.")}
    names |= {"encoder.latents": ("latents/pos_embs",)}
    for i in range(len(model.encoder.cross_attends)):
        names |= cross_attention(f"encoder.cross_attends.{i}", f"cross_attend_{i}")
    for i, block in enumerate(model.encoder.blocks):
        for j in range(len(block)):
            names |= self_attention(f"encoder.blocks.{i}.{j}", f"self_attend_{i}_{j}")
    load(model, names, case)
    model.to(dtype)

    encoded = model.encode(x, mask=mask, positions=given_positions(case, model, dtype))
    compared.maybe("preprocessed_inputs", lambda: encoded.inputs.tokens)
    for i, (name, latents) in enumerate(model.encoder.steps(encoded.inputs.tokens, mask=mask)):
        stored = f"after_{name.removesuffix('_attend')}_{i // 2}"
        compared.maybe(stored, lambda latents=latents: latents)
    compared.maybe("latents", lambda: encoded.latents)
    compared.close("output", model.decode(encoded))
    compared.done()


def check_text(case: Case, dtype: torch.dtype) -> None:
    compared = Compared(case, dtype)
    model = model_of(case, case.info["config"], dtype, kind="mlm")
    mask = mask_of(case, "input_mask")
    query_mask = mask if "in/query_mask" not in case.arrays else mask_of(case, "query_mask")
    stored = {**case.tree("grad/"), **(case.tree("ref64/grad/") if dtype == torch.float64 else {})}
    with torch.set_grad_enabled(bool(stored)):
        encoded = model.encode(case.tensor("in/inputs"), mask=mask)
        queries = model.output.make_queries(encoded.latents)
        logits = model.decode(encoded, query_mask=query_mask)
    compared.maybe("embedded_inputs", lambda: encoded.inputs.tokens)
    compared.maybe("encoder_cross_attend", lambda: next(model.encoder.steps(encoded.inputs.tokens, mask=mask))[1])
    compared.maybe("latents", lambda: encoded.latents)
    compared.maybe("output_embeddings", lambda: model.output.attend(encoded.latents, queries, query_mask=query_mask))
    compared.close("output", logits)
    if "in/labels" in case.arrays:
        labels = case.tensor("in/labels").flatten()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels, ignore_index=-1)
        compared.close("loss", loss)
        if stored:
            loss.backward()
    if stored:
        assert model.config is not None
        ours = dict(model.named_parameters())
        for name, expected in convert_params(stored, model.config).items():
            torch.testing.assert_close(ours[name].grad, expected.to(dtype), **case.tolerance)
    compared.done()


def check_multimodal(case: Case, dtype: torch.dtype) -> None:
    compared = Compared(case, dtype)
    x = {name: given(case, name, dtype) for name in ("audio", "image", "label")}
    model = model_of(case, case.info["config"], dtype, kind="multimodal", shape=tuple(x["audio"].shape[1:]))
    output = model.output
    assert isinstance(output, MultimodalOutput)
    points = {name: case.tensor(f"in/subsampling_{name}") for name in x if f"in/subsampling_{name}" in case.arrays}
    if "in/query_mask" in case.arrays:
        case.arrays.skip("in/query_mask", because="the official decoder of several modalities takes no notice of it")
    mask = mask_of(case, "input_mask")
    encoded = model.encode(x, mask=mask)
    compared.maybe("preprocessed_inputs", lambda: encoded.inputs.tokens)
    compared.maybe("encoder_cross_attend", lambda: next(model.encoder.steps(encoded.inputs.tokens, mask=mask))[1])
    compared.maybe("latents", lambda: encoded.latents)
    queries = torch.cat(list(output.make_queries(encoded.latents, points).values()), 1)
    compared.maybe("decoder_query", lambda: queries)
    read = output.cross_attend(queries, encoded.latents, mask=AttentionMask())
    compared.maybe("decoder_output", lambda: output.linear(read))
    for name, result in model.decode(encoded, points=points).items():
        compared.close(f"output_{name}", result)
    compared.done()


def check_chunked(case: Case, dtype: torch.dtype) -> None:
    compared = Compared(case, dtype)
    config = case.info["config"]
    x = {name: given(case, name, dtype) for name in ("audio", "image", "label")}
    model = model_of(case, config["model"], dtype, kind="multimodal", shape=tuple(x["audio"].shape[1:]))
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
    frames = torch.stack([given(case, "im1", dtype), given(case, "im2", dtype)], -4)
    frames = frames if frames.ndim == 5 else frames[None]
    model = model_of(case, config["model"], dtype, shape=(2, *tile, frames.shape[-1]))
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
