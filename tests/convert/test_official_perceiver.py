from typing import Any

import numpy as np
import pytest
import torch

from perceivers.convert.official_perceiver import convert_params, official_names
from perceivers.convert.official_perceiver_config import config_from_official
from perceivers.models.feature_config import PixelFeatures
from perceivers.models.input_config import FourierPositions, InputConfig
from perceivers.models.output_config import GridQueries, LinearHead, QueryOutputConfig
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


def official() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Parameters and state as the official code would have them."""
    rng = np.random.default_rng(0)
    shapes = {name: value.shape for name, value in build_perceiver_io(CONFIG).state_dict().items()}
    params, state = {}, {}
    for ours, names in official_names(CONFIG).items():
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
                output=QueryOutputConfig(queries=GridQueries(), head=LinearHead(channels=3)),
            ),
            "the official code has no head 'linear' for one modality",
        ),
    ],
)
def test_what_the_official_code_has_not(config: PerceiverIOConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        official_names(config)


def changed(part: str, **options: Any) -> dict[str, Any]:
    return KWARGS | {part: KWARGS[part] | options}


@pytest.mark.parametrize(
    ("kwargs", "options", "message"),
    [
        (KWARGS, {"kind": "hip"}, "kind 'hip' is not one of 'perceiver', 'mlm', 'multimodal'"),
        (KWARGS | {"decodr": 1}, {}, r"the official model has no argument 'decodr' \(nearest: decoder\)"),
        ({"encoder": {}, "decoder": {}}, {}, "arguments of the official model: input_preprocessor missing"),
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
