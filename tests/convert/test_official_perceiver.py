import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from perceivers.convert.official_perceiver import convert_params
from perceivers.convert.official_perceiver_config import config_from_official
from perceivers.convert.official_perceiver_names import official_names
from perceivers.models.feature_config import AudioFeatures, MelFeatures, PatchFeatures, PixelFeatures, TokenFeatures
from perceivers.models.input_config import (
    FourierPositions,
    InputConfig,
    LearnedPositions,
    Modality,
    MultimodalInputConfig,
)
from perceivers.models.output_config import (
    AudioHead,
    ClassHead,
    GridQueries,
    InputQueries,
    LinearHead,
    MultimodalOutputConfig,
    OutputModality,
    QueryOutputConfig,
)
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig
from perceivers.models.perceiver_io import build_perceiver_io

KWARGS: dict[str, Any] = {
    "input_preprocessor": {
        "prep_type": "conv",
        "num_channels": 5,
        "fourier_position_encoding_kwargs": {"num_bands": 2, "max_resolution": [3, 4]},
    },
    "encoder": {
        "num_self_attends_per_block": 2,
        "num_blocks": 3,
        "z_index_dim": 3,
        "num_z_channels": 10,
        "num_self_attend_heads": 5,
    },
    "decoder": {"type": "classification", "num_classes": 7, "trainable_position_encoding_kwargs": {"num_channels": 4}},
}
CONFIG = config_from_official(KWARGS, shape=(9, 13, 3))


def official(config: PerceiverIOConfig = CONFIG) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Parameters and state as the official code would have them."""
    rng = np.random.default_rng(0)
    shapes = {name: value.shape for name, value in build_perceiver_io(config).state_dict().items()}
    params, state = {}, {}
    for ours, names in official_names(config).items():
        for i, name in enumerate(names):
            shape = [shapes[ours][0] // len(names), *shapes[ours][1:]]
            if name.endswith("/w"):
                shape = [shape[2], shape[3], shape[1], shape[0]] if len(shape) == 4 else shape[::-1]
            if "batchnorm" in name:
                shape = [1, 1, 1, *shape]
            values = rng.normal(size=shape).astype(np.float32) + i
            (state if name.endswith("_ema/average") else params)[name] = values
    state |= {name.replace("average", "hidden"): value + 1 for name, value in state.items()}
    return params, state


def test_everything_is_converted() -> None:
    params, state = official()
    converted = convert_params(params, CONFIG, state=state)
    build_perceiver_io(CONFIG).load_state_dict(converted)
    root = "perceiver_encoder/~/self_attention_1/attention"
    both = np.concatenate([params[f"{root}/linear_1/w"].T, params[f"{root}/linear_2/w"].T])
    assert np.array_equal(converted["encoder.blocks.0.1.attention.to_kv.weight"].numpy(), both)
    conv = params["image_preprocessor/~/conv2_d_downsample/~/conv/w"]
    assert converted["input.features.convs.0.weight"][4, 2, 1, 6] == conv[1, 6, 2, 4]
    average = state["image_preprocessor/~/conv2_d_downsample/~/batchnorm/~/var_ema/average"]
    assert np.array_equal(converted["input.features.norms.0.running_var"].numpy(), average.flatten())


def test_what_does_not_fit_is_listed() -> None:
    params, state = official()
    name = "perceiver_encoder/~/trainable_position_encoding/pos_embs"
    wrong = params | {"perceiver_encoder/~/self_attention_9/mlp/linear/b": np.zeros(10)}
    with pytest.raises(ValueError, match=r"unknown perceiver_encoder/~/self_attention_9/mlp/linear/b \(nearest: "):
        convert_params(wrong, CONFIG, state=state)
    with pytest.raises(ValueError, match=rf"missing {name}"):
        convert_params({key: value for key, value in params.items() if key != name}, CONFIG, state=state)
    with pytest.raises(ValueError, match=rf"{name} \[3, 9\] does not fit encoder.latents \[3, 10\]"):
        convert_params(params | {name: np.zeros((3, 9))}, CONFIG, state=state)
    with pytest.raises(ValueError, match=r"missing .*batchnorm/~/mean_ema/average"):
        convert_params(params, CONFIG)


def test_shapes_can_be_checked_without_values() -> None:
    params, state = official()
    empty = [{k: torch.empty(v.shape, device="meta") for k, v in tree.items()} for tree in (params, state)]
    converted = convert_params(empty[0], CONFIG, state=empty[1])
    assert converted["encoder.latents"].is_meta


PIXELS = InputConfig(features=PixelFeatures(shape=(5, 7, 3)), positions=FourierPositions(bands=2))
SMALL = EncoderConfig(num_latents=3, dim=10, blocks=2, depth=1, heads=5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            PerceiverIOConfig(input=PIXELS, encoder=EncoderConfig(cross_attends=2)),
            "reads its input once",
        ),
        (
            PerceiverIOConfig(
                input=PIXELS,
                encoder=SMALL,
                output=QueryOutputConfig(queries=InputQueries(), head=LinearHead(channels=3)),
            ),
            "queries that are the input's tokens: the official code has them for optical flow alone",
        ),
        (
            PerceiverIOConfig(
                input=PIXELS,
                encoder=SMALL,
                output=QueryOutputConfig(queries=GridQueries(positions=FourierPositions(bands=5, layers=2))),
            ),
            "layers=2 of queries: official decoders have no extra layers",
        ),
        (
            PerceiverIOConfig(input=PIXELS, encoder=dataclasses.replace(SMALL, activation="relu")),
            "encoder.activation='relu': the official code has 'gelu_tanh' alone",
        ),
        (
            PerceiverIOConfig(input=PIXELS, encoder=dataclasses.replace(SMALL, empty="average")),
            "encoder.empty='average': the official code has 'zeros' alone",
        ),
        (
            PerceiverIOConfig(
                input=InputConfig(features=PatchFeatures(shape=(4, 8, 3), normalize=True)), encoder=SMALL
            ),
            "features.normalize=True",
        ),
        (
            PerceiverIOConfig(
                input=InputConfig(features=AudioFeatures(samples=10, samples_per_patch=5, channels=2)), encoder=SMALL
            ),
            "features.tokens='moments': the official code has 'numbers' alone",
        ),
        (
            PerceiverIOConfig(
                input=InputConfig(features=TokenFeatures(vocab_size=7, seq_len=5, dim=11, window=3)), encoder=SMALL
            ),
            "the official code has nothing like input.features.conv.bias",
        ),
        (
            PerceiverIOConfig(input=InputConfig(features=MelFeatures(samples=2048)), encoder=SMALL),
            "the official code reads no mel",
        ),
    ],
)
def test_what_the_official_code_has_not(config: PerceiverIOConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert_params({}, config)


def changed(part: str, **options: Any) -> dict[str, Any]:
    return KWARGS | {part: KWARGS[part] | options}


BASIC = KWARGS | {
    "decoder": {
        "output_num_channels": 12,
        "output_index_dims": [2, 3],
        "trainable_position_encoding_kwargs": {"num_channels": 4},
        "project_pos_dim": 7,
    }
}
FOURIER = {"num_bands": 2, "max_resolution": [5]}


@pytest.mark.parametrize(
    ("kwargs", "shape", "added"),
    [
        (BASIC, (9, 13, 3), "basic_decoder/~/position_encoding_projector/linear/w"),
        (
            changed("decoder", project_pos_dim=7),
            (9, 13, 3),
            "classification_decoder/~/basic_decoder/~/position_encoding_projector/linear/w",
        ),
        (
            BASIC | {"output_postprocessor": {"type": "audio", "samples_per_patch": 5}},
            (9, 13, 3),
            "audio_postprocessor/linear/w",
        ),
        (
            BASIC | {"output_postprocessor": {"type": "projection", "num_outputs": 5}},
            (9, 13, 3),
            "projection_postprocessor/linear/b",
        ),
        (
            BASIC | {"output_postprocessor": {"postproc_type": "conv", "n_outputs": 2, "input_reshape_size": [2, 3]}},
            (9, 13, 3),
            "image_postprocessor/~/conv2_d_upsample/~/transp_conv_2/w",
        ),
        (KWARGS | {"input_preprocessor": None}, (5, 11), None),
        (KWARGS | {"input_preprocessor": {"type": "onehot"}}, (11,), None),
        (
            KWARGS
            | {
                "input_preprocessor": {
                    "type": "audio",
                    "samples_per_patch": 3,
                    "fourier_position_encoding_kwargs": FOURIER,
                    "project_pos_dim": 7,
                    "n_extra_pos_mlp": 2,
                }
            },
            (9, 2),
            "audio_preprocessor/~_build_network_inputs/linear_1/w",
        ),
    ],
    ids=["basic", "class", "audio_out", "projection", "upsample", "raw", "onehot", "two_channels"],
)
def test_forms_of_official_models(kwargs: dict[str, Any], shape: tuple[int, ...], added: str | None) -> None:
    """Each is built, runs, and takes official parameters of the names that its modules have."""
    config = config_from_official(kwargs, shape=shape)
    model = build_perceiver_io(config).eval()
    model(torch.randn(2, *shape))
    names = official_names(config)
    sizes = {ours: value.shape for ours, value in model.state_dict().items() if "num_batches" not in ours}
    assert names.keys() == sizes.keys()
    assert added is None or any(added in official for official in names.values())


def test_transposed_convolutions_turn_round() -> None:
    """JAX's kernels are [rows, columns, out, in], mirrored: as the official code's upsampling pictures has them."""
    output = {"postproc_type": "conv", "n_outputs": 2, "input_reshape_size": [2, 3]}
    config = config_from_official(BASIC | {"output_postprocessor": output}, shape=(9, 13, 3))
    params, state = official(config)
    converted = convert_params(params, config, state=state)
    kernel = params["image_postprocessor/~/conv2_d_upsample/~/transp_conv_1/w"]
    assert kernel.shape == (4, 4, 4, 12)
    assert converted["output.head.convs.0.weight"][5, 3, 0, 1] == kernel[3, 2, 3, 5]


@pytest.mark.parametrize("name", ["audio", "image", "label"])
def test_projected_queries_of_several_modalities(name: str) -> None:
    queries = GridQueries(shape=(2, 1, 3) if name == "image" else (1,), positions=LearnedPositions(project_dim=7))
    heads: dict[str, Any] = {
        "audio": AudioHead(samples_per_patch=3),
        "image": LinearHead(channels=3),
        "label": ClassHead(classes=5),
    }
    modality = OutputModality(name=name, queries=queries, head=heads[name])
    config = PerceiverIOConfig(input=PIXELS, encoder=SMALL, output=MultimodalOutputConfig(modalities=(modality,)))
    names = official_names(config)
    root = {
        "audio": "basic_decoder",
        "image": "basic_video_autoencoding_decoder/~/basic_decoder",
        "label": "classification_decoder/~/basic_decoder",
    }[name]
    assert names[f"output.queries.{name}.base.table"] == (f"{root}/~/trainable_position_encoding/pos_embs",)
    assert names[f"output.queries.{name}.project.weight"] == (f"{root}/~/position_encoding_projector/linear/w",)


def test_modalities_of_one_class_are_numbered() -> None:
    patches = InputConfig(features=PatchFeatures(shape=(4, 8, 3), channels=5))
    both = MultimodalInputConfig(
        modalities=(Modality(name="left", input=patches), Modality(name="right", input=patches))
    )
    names = official_names(PerceiverIOConfig(input=both, encoder=SMALL))
    assert names["input.inputs.left.features.linear.weight"] == ("image_preprocessor/patches_linear/w",)
    assert names["input.inputs.right.features.linear.weight"] == ("image_preprocessor_1/patches_linear/w",)


@pytest.mark.parametrize(
    ("kwargs", "options", "message"),
    [
        (KWARGS, {"kind": "hip"}, "kind 'hip' is not one of 'perceiver', 'mlm', 'multimodal'"),
        (KWARGS | {"decodr": 1}, {}, r"the official model has no argument 'decodr' \(nearest: decoder\)"),
        ({"decoder": {}}, {}, "arguments of the official model: encoder missing"),
        (
            {"encoder": {}, "decoder": {}},
            {},
            r"without an input_preprocessor an input is \(tokens, channels\), not of shape \(9, 13, 3\)",
        ),
        ({"d_model": 3}, {"kind": "mlm"}, "vocab_size, max_seq_len, encoder, decoder missing"),
        (changed("encoder", num_block=3), {}, r"PerceiverEncoder has no argument 'num_block' \(nearest: num_blocks\)"),
        (changed("encoder", v_channels=5), {}, "v_channels=5 must be num_z_channels=10"),
        (changed("decoder", type="raft"), {}, "decoder 'raft' is not one of 'projection', 'basic'"),
        (changed("input_preprocessor", prep_type="raft"), {}, "prep_type='raft' is not one of 'conv', 'patches'"),
        (changed("input_preprocessor", spatial_downsample=8), {}, "spatial_downsample=8 must be a power of 4"),
        (
            changed("input_preprocessor", position_encoding_type="none"),
            {},
            "position_encoding_type='none' is not 'fourier' or 'trainable'",
        ),
        (changed("encoder", cross_attention_shape_for_attn="v"), {}, "shape_for_attn='v' is not one of 'kv', 'q'"),
        (changed("input_preprocessor", concat_or_add_pos="mul"), {}, "concat_or_add_pos='mul' is not one of 'concat'"),
        (changed("input_preprocessor", temporal_downsample=2), {}, "temporal_downsample=2 must be 1 for prep_type="),
        (changed("input_preprocessor", samples_per_patch=2), {}, "image preprocessor has no argument 'samples_per_pa"),
        (changed("input_preprocessor", type="sound"), {}, "preprocessor 'sound' is not one of 'image', 'audio', 'one"),
        (
            changed("input_preprocessor", fourier_position_encoding_kwargs=None),
            {},
            "position_encoding_type='fourier' needs fourier_position_encoding_kwargs",
        ),
        (
            changed("input_preprocessor", fourier_position_encoding_kwargs={"num_bands": 2, "sine": True}),
            {},
            r"fourier_position_encoding_kwargs has no argument 'sine' \(nearest: sine_only\)",
        ),
        (changed("decoder", position_encoding_type="none"), {}, "position_encoding_type='none' leaves no queries"),
        (changed("decoder", output_w_init="ones"), {}, "output_w_init='ones' is not one of None, 'zeros'"),
        (changed("decoder", output_num_channels=3), {}, "classification decoder has no argument 'output_num_channels'"),
        (KWARGS | {"output_scale": 20}, {}, "output_scale=20 is for a flow decoder, not for 'classification'"),
        (
            KWARGS | {"output_postprocessor": {"type": "projection", "num_outputs": 3}},
            {},
            "output_postprocessor is built after a decoder of type 'basic', not after 'classification'",
        ),
        (
            BASIC | {"output_postprocessor": {"type": "image", "postproc_type": "raft"}},
            {},
            "postproc_type='raft' is not one of 'pixels', 'patches', 'conv'",
        ),
        (
            BASIC | {"output_postprocessor": {"type": "image", "postproc_type": "patches"}},
            {},
            "postproc_type='patches' needs input_reshape_size",
        ),
        (KWARGS | {"patches_for_flow": True}, {}, "patches_for_flow is built with prep_type='patches'"),
    ],
)
def test_arguments_that_are_wrong_say_why(kwargs: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_official(kwargs, **({"shape": (9, 13, 3)} | options))


def test_a_text_models_results_are_not_projected() -> None:
    kwargs = {
        "vocab_size": 11,
        "d_model": 6,
        "max_seq_len": 5,
        "encoder": KWARGS["encoder"],
        "decoder": {"output_index_dims": 5, "output_num_channels": 6},
    }
    with pytest.raises(ValueError, match="a masked language model's decoder has final_project=False"):
        config_from_official(kwargs, kind="mlm")
