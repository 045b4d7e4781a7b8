"""Perceivers of transformers: stored numbers of its models, and, where it is installed, models handed to and fro."""

import dataclasses
import importlib
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import perceivers
from perceivers.convert.huggingface import read_huggingface, weights_from_huggingface, write_huggingface
from perceivers.convert.huggingface_config import ARCHITECTURES, config_from_huggingface
from perceivers.convert.huggingface_export import config_to_huggingface
from perceivers.convert.huggingface_pictures import picture_size, reading_from_huggingface
from perceivers.data.picture_files import fitted
from perceivers.data.picture_loader import scaled
from perceivers.data.text import (
    PERCEIVER_MASK,
    PERCEIVER_PAD,
    PERCEIVER_SPECIALS,
    decode_perceiver_bytes,
    decode_perceiver_text,
    encode_perceiver_text,
)
from perceivers.models import perceiver_published
from perceivers.models.output_config import AverageOutputConfig, GridHead, QueryOutputConfig
from perceivers.models.perceiver_config import PerceiverIOConfig
from perceivers.models.perceiver_io import PerceiverIO, build_perceiver_io
from perceivers.nn.images import neighbourhoods

from .compared import Compared, given
from .huggingface_cases import READS, cases, channels_last, reads_patches, saved
from .official import Case


@pytest.mark.parametrize("case", cases("hf"), ids=lambda case: case.path.stem)
@torch.no_grad()
def test_numbers(case: Case, tmp_path: Path) -> None:
    """In float32, as transformers makes positions in no other."""
    kind = case.info["config"]["inputs_kind"]
    size = tuple(case.arrays["in/inputs"].shape[-2:]) if kind == "image" else (224, 224)
    model, tokenizer = read_huggingface(saved(case, tmp_path), size=size)
    assert tokenizer == READS[case.info["config"]["class"]]
    with case.arrays.whole("in/", "grad/"):
        compare(case, model, kind)


def compare(case: Case, model: PerceiverIO, kind: str) -> None:
    """Everything that the case stores."""
    compared = Compared(case, torch.float32)
    mask = case.tensor("in/attention_mask").bool() if "in/attention_mask" in case.arrays else None
    match kind:
        case "tokens":
            x = case.tensor("in/input_ids")
        case "image":
            x = channels_last(given(case, "inputs", torch.float32))
        case "flow":
            x, model = channels_last(given(case, "inputs", torch.float32)), reads_patches(model)
        case "multimodal":
            x = {name: given(case, name, torch.float32) for name in ("audio", "image", "label")}
            x["image"] = channels_last(x["image"])
        case _:
            raise AssertionError(f"{case.path} has unknown inputs: {kind}")
    chosen = [name for name in ("audio", "image", "label") if f"in/subsampling_{name}" in case.arrays]
    points = {name: case.tensor(f"in/subsampling_{name}") for name in chosen} or None
    model.eval()
    encoded = model.encode(x, mask=mask)
    compared.maybe("preprocessed_inputs", lambda: encoded.inputs.tokens)
    compared.maybe("last_hidden_state", lambda: encoded.latents)
    result = model.decode(encoded, points=points)
    for name, logits in result.items() if isinstance(result, dict) else [("", result)]:
        compared.close(f"logits_{name}".rstrip("_"), logits)
    if "in/labels" in case.arrays:
        labels = case.tensor("in/labels").flatten()
        compared.close("loss", nn.functional.cross_entropy(result.flatten(0, -2), labels))
    compared.done()


@pytest.mark.parametrize("case", cases("hf_tokenizer"), ids=lambda case: case.path.stem)
def test_tokenizer(case: Case) -> None:
    for call in case.info["encode"]:
        assert encode_perceiver_text(call["text"]).tolist() == call["ids"]
    for call in case.info["decode"]:
        ids = np.array(call["ids"], np.int32)
        assert decode_perceiver_text(ids) == call["text"]
        assert decode_perceiver_bytes(ids) == call["text_skip_special"]
    assert case.info["specials"] == {name: i for i, name in enumerate(PERCEIVER_SPECIALS)}
    assert case.info["specials"]["[MASK]"] == PERCEIVER_MASK
    if (padded := case.info.get("padded")) is not None:
        ids, length = encode_perceiver_text(padded["text"]).tolist(), padded["max_length"]
        assert ids + [PERCEIVER_PAD] * (length - len(ids)) == padded["ids"]
        assert [int(i < len(ids)) for i in range(length)] == padded["attention_mask"]  # a written [PAD] is read


TINY: dict[str, Any] = {
    "num_latents": 5,
    "d_latents": 12,
    "num_blocks": 2,
    "num_self_attends_per_block": 2,
    "num_self_attention_heads": 3,
    "num_cross_attention_heads": 1,
    "d_model": 8,
    "max_position_embeddings": 11,
    "image_size": 7,
    "train_size": [5, 7],
    "num_frames": 2,
    "audio_samples_per_frame": 15,
    "samples_per_patch": 5,
    "output_shape": [1, 2, 8, 12],
    "output_num_channels": 13,
    "_label_trainable_num_channels": 17,
    "num_labels": 11,
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in ARCHITECTURES] + [
    (
        "PerceiverForMaskedLM",
        {"qk_channels": 6, "v_channels": 12, "num_cross_attention_heads": 2, "hidden_act": "gelu_new"},
    ),
    ("PerceiverForOpticalFlow", {"cross_attention_shape_for_attention": "q", "use_query_residual": False}),
    ("PerceiverForMultimodalAutoencoding", {"cross_attention_shape_for_attention": "q"}),
    (
        "PerceiverForImageClassificationFourier",
        {"self_attention_widening_factor": 2, "cross_attention_widening_factor": 3, "hidden_act": "relu"},
    ),
]
SIZE = (17, 13)


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("transformers", reason="needs the extra `hf`: pip install 'perceivers[hf]'")
        for name in ARCHITECTURES:  # they are imported when they are first used
            getattr(module, name)
    module.logging.disable_progress_bar()
    return module


def random_model(transformers: ModuleType, name: str, options: dict[str, Any]) -> nn.Module:
    """A model of transformers none of whose parameters is zero or one."""
    torch.manual_seed(7)
    model = getattr(transformers, name)(transformers.PerceiverConfig(**(TINY | options)))
    for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
        tensor.data = 0.3 * torch.randn_like(tensor)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_var = 1 + torch.rand_like(norm.running_mean)
    return model.eval()


def answers(name: str, theirs: nn.Module, ours: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What both say about the same random input, which each gets in its own layout."""
    torch.manual_seed(11)
    mask, points, options = None, None, {}
    match name:
        case "PerceiverForMaskedLM" | "PerceiverForSequenceClassification":
            x = theirs_x = torch.randint(262, (3, 11))
            mask = torch.rand(3, 11) < 0.7
            mask[0], mask[1] = True, False
            options = {"attention_mask": mask.long()}
        case "PerceiverForOpticalFlow":
            x = torch.randn(2, 2, 5, 7, 3)
            around = neighbourhoods(x.flatten(0, 1), kernel=(3, 3)).unflatten(0, (2, 2))
            theirs_x = around.movedim(-1, -3)
        case "PerceiverForMultimodalAutoencoding":
            x = {"audio": torch.randn(2, 30, 1), "image": torch.randn(2, 2, 8, 12, 3), "label": torch.randn(2, 11)}
            theirs_x = x | {"image": x["image"].movedim(-1, -3)}
            points = {"audio": torch.tensor([5, 0, 3]), "image": torch.tensor([191, 7])}
            options = {"subsampled_output_points": points}
        case _:
            rows, columns = (7, 7) if name.endswith("Learned") else SIZE
            x = torch.randn(2, rows, columns, 3)
            theirs_x = x.movedim(-1, -3)
    with torch.no_grad():
        there = theirs(theirs_x, **options).logits
        here = ours(x, mask=mask, points=points)
    return there if isinstance(there, dict) else {"": there}, here if isinstance(here, dict) else {"": here}


def assert_equal_answers(name: str, theirs: nn.Module, ours: nn.Module) -> None:
    there, here = answers(name, theirs, ours)
    assert there.keys() == here.keys()
    for key, expected in there.items():
        torch.testing.assert_close(here[key], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_both_ways(name: str, options: dict[str, Any], transformers: ModuleType, tmp_path: Path) -> None:
    """A model of transformers opens here and answers alike; written again, it is the same there, tensor by tensor."""
    theirs = random_model(transformers, name, options)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, reads = read_huggingface(tmp_path / "theirs", size=SIZE)
    assert reads == READS[name]
    assert_equal_answers(name, theirs, ours.eval())

    write_huggingface(ours, tmp_path / "ours")
    again = getattr(transformers, name).from_pretrained(tmp_path / "ours").eval()
    assert_equal_answers(name, again, ours)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in theirs.state_dict().items())


def test_load_opens_a_model_of_transformers(transformers: ModuleType, tmp_path: Path) -> None:
    theirs = random_model(transformers, "PerceiverForMaskedLM", {})
    theirs.save_pretrained(tmp_path)
    loaded = perceivers.load(tmp_path)
    assert loaded.tokenizer == "masked_bytes"
    assert_equal_answers("PerceiverForMaskedLM", theirs, loaded.model)

    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert_equal_answers("PerceiverForMaskedLM", theirs, perceivers.load(tmp_path).model)


def test_flow_in_pixels_goes_back_in_pixels(transformers: ModuleType, tmp_path: Path) -> None:
    """transformers divides by 100 and does no more, so the factor of 20 goes into the weights."""
    theirs = random_model(transformers, "PerceiverForOpticalFlow", {})
    theirs.save_pretrained(tmp_path / "theirs")
    plain, _ = read_huggingface(tmp_path / "theirs")
    pixels, _ = read_huggingface(tmp_path / "theirs", flow_scale=0.2)
    x = torch.randn(1, 2, 5, 7, 3)
    with torch.no_grad():
        torch.testing.assert_close(pixels.eval()(x), 20 * plain.eval()(x))
    write_huggingface(pixels, tmp_path / "pixels")
    again = transformers.PerceiverForOpticalFlow.from_pretrained(tmp_path / "pixels").eval()
    assert_equal_answers("PerceiverForOpticalFlow", again, pixels)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_and_shapes_of_full_size(name: str, transformers: ModuleType) -> None:
    """The sizes that transformers takes by default, which are those of the language model; no values."""
    with torch.device("meta"):
        theirs = getattr(transformers, name)(transformers.PerceiverConfig(num_cross_attention_heads=1))
    values = theirs.config.to_dict() | {"architectures": [name]}
    config = config_from_huggingface(values)
    state = weights_from_huggingface(theirs.state_dict(), config)
    assert sum(v.numel() for v in state.values()) == sum(v.numel() for v in theirs.state_dict().values())


@pytest.mark.parametrize("name", ["masked_language_model", "imagenet_fourier", "optical_flow", "video_autoencoder"])
def test_models_with_the_official_activation_go_there(name: str, transformers: ModuleType, tmp_path: Path) -> None:
    """Published configs, made small: with GELU as the official code has it."""
    config = small(getattr(perceiver_published, name)())
    torch.manual_seed(5)
    ours = build_perceiver_io(config).eval()
    values = write_huggingface(ours, tmp_path)
    assert values["hidden_act"] == "gelu_pytorch_tanh"
    theirs = getattr(transformers, values["architectures"][0]).from_pretrained(tmp_path).eval()
    there, here = answers(values["architectures"][0], theirs, ours)
    for key, expected in there.items():
        torch.testing.assert_close(here[key], expected, rtol=1e-3, atol=1e-4)


def small(config: PerceiverIOConfig) -> PerceiverIOConfig:
    """The same model of the sizes that `answers` asks."""
    sizes: dict[str, Any] = {"num_latents": 5, "dim": 12, "depth": 2, "heads": 3, "cross_heads": 1}
    encoder = dataclasses.replace(config.encoder, **sizes, qk_dim=None, value_dim=None, empty="average")
    there = config_from_huggingface(
        TINY | {"architectures": [config_to_huggingface(config)["architectures"][0]]}, size=SIZE
    )
    output = there.output
    assert not isinstance(output, AverageOutputConfig)
    output = dataclasses.replace(output, activation="gelu_tanh")
    if isinstance(config.output, QueryOutputConfig) and isinstance(config.output.head, GridHead):
        output = dataclasses.replace(output, head=GridHead(shape=(5, 7), scale=config.output.head.scale))
    return PerceiverIOConfig(input=there.input, encoder=encoder, output=output)


PROCESSORS: list[dict[str, Any]] = [
    {},
    {"size": {"height": 20, "width": 24}, "crop_size": {"height": 25, "width": 25}},
    {"do_center_crop": False, "resample": 2, "size": {"height": 9, "width": 14}},
    {"image_mean": [0.5, 0.25, 0.75], "image_std": [0.5, 0.25, 1.0], "rescale_factor": 1 / 127.5},
    {"do_normalize": False, "do_rescale": False},
]


@pytest.mark.parametrize("options", PROCESSORS, ids=["default", "crop", "stretch", "numbers", "bytes"])
@pytest.mark.parametrize("size", [(61, 47), (30, 90)])
def test_pictures_are_read_as_its_processor_reads_them(
    options: dict[str, Any], size: tuple[int, int], transformers: ModuleType, tmp_path: Path
) -> None:
    image = pytest.importorskip("PIL.Image")
    pil = importlib.import_module("transformers.models.perceiver.image_processing_pil_perceiver")
    processor = pil.PerceiverImageProcessorPil(**options)
    processor.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    theirs = processor(image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    reading = reading_from_huggingface(tmp_path, {"architectures": ["PerceiverForImageClassificationFourier"]})
    rows_columns = picture_size(tmp_path)
    assert rows_columns is not None
    ours = scaled(fitted(pixels, rows_columns, channels=3, reading=reading), mean=reading.mean, std=reading.std)
    np.testing.assert_allclose(ours.movedim(-1, 0).numpy(), theirs, rtol=1e-4, atol=1e-4)


def test_the_tokenizer_of_transformers(transformers: ModuleType) -> None:
    tokenizer = transformers.PerceiverTokenizer()
    for text in ("naïve [MASK][CLS] 日本", "", "[mask] [PAD]"):
        ids = encode_perceiver_text(text)
        assert tokenizer(text).input_ids == ids.tolist()
        assert tokenizer.decode(ids.tolist()) == decode_perceiver_text(ids)
