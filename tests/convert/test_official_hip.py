import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from perceivers.convert.official_hip import config_from_official, convert_params, official_names
from perceivers.models.hip import HiP
from perceivers.models.hip_config import DataSet, HiPConfig, Modality, hip_16, hip_mini, io_mini

IMAGE = Modality(name="image", positions=7, channels=3)
LABEL = Modality(name="label", positions=2, channels=5)
DATA = (DataSet(name="pictures", modalities=(IMAGE, LABEL)),)
MINI = {
    "num_groups": [3, 1, 3],
    "num_self_attends_per_block": [1, 1, 1],
    "z_index_dim": [2, 3, 2],
    "num_z_channels": [4, 6, 4],
    "num_cross_attend_heads": [1, 1, 1],
    "num_self_attend_heads": [2, 3, 1],
    "cross_attend_widening_factor": [1, 1, 1],
    "self_attend_widening_factor": [2, 2, 2],
    "num_embedding_channels": 5,
}
IO = {name: values[0] if isinstance(values, list) else values for name, values in MINI.items() if name != "num_groups"}


def official(config: HiPConfig) -> dict[str, np.ndarray]:
    """Official parameters of the right shapes, with different numbers everywhere."""
    state = HiP(config).state_dict()
    params = {}
    for i, (ours, names) in enumerate(official_names(config).items()):
        for j, (name, part) in enumerate(zip(names, state[ours].chunk(len(names)), strict=True)):
            shape = part.T.shape if name.endswith("/w") else part.shape
            params[name] = np.random.default_rng((i, j)).normal(size=tuple(shape)).astype(np.float32)
    return params


def test_weights_are_transposed_and_keys_and_values_joined() -> None:
    config = config_from_official("HiP", MINI, DATA)
    params = official(config)
    state = convert_params(params, config)
    HiP(config).load_state_dict(state)
    attention = "perceiver/block_1/~/hi_p_cross_attention/attention"
    keys_values = np.concatenate([params[f"{attention}/{name}_linear/w"].T for name in ("key", "value")])
    assert np.array_equal(state["blocks.1.cross_attend.attention.to_kv.weight"], keys_values)
    table = params["perceiver/block_0/~/hi_p_cross_attention/query_inputs/pos_embs"]
    assert np.array_equal(state["blocks.0.latents"], table)


@pytest.mark.parametrize(
    ("model", "kwargs"),
    [
        ("HiP", {"num_position_encoding_channels": 11}),
        ("HiP", {"num_z_channels": [4, 6, 8]}),  # the decoder projects what it adds
        ("HiPClassBottleneck", {"label_modalities": ["label", "label_of_another_data_set"]}),
    ],
)
def test_every_official_parameter_has_one_place(model: str, kwargs: dict[str, Any]) -> None:
    config = config_from_official(model, MINI | kwargs, DATA)
    names = official_names(config)
    assert names.keys() == HiP(config).state_dict().keys()
    parts = [part for group in names.values() for part in group]
    assert len(parts) == len(set(parts))
    convert_params(official(config), config)


def test_perceiver_io_is_one_block() -> None:
    config = config_from_official("PerceiverIO", IO | {"z_index_dim_eval": 5}, DATA)
    assert (config.groups, config.latents, config.eval_latents) == ((1,), (2,), 5)
    assert convert_params(official(config), config)["blocks.0.latents"].shape == (5, 4)


def test_options_of_the_official_model() -> None:
    kwargs = {"regroup_type": "transpose_reshape", "dropout_prob": 0.1, "drop_path_rate": 0.2}
    config = config_from_official("HiP", MINI | kwargs | {"processor_index_dim_eval": 6}, DATA)
    assert (config.regroup, config.dropout, config.drop_path) == ("transpose_reshape", 0.1, 0.2)
    assert (config.train_latents, config.eval_latents) == (None, 6)
    assert not config.project_positions
    assert not config_from_official("HiP", MINI | {"num_position_encoding_channels": 5}, DATA).project_positions
    assert config_from_official("HiP", MINI | {"activation_name": "gelu"}, DATA) == config_from_official(
        "HiP", MINI, DATA
    )


def test_labels_that_the_data_lack_are_left_out() -> None:
    config = config_from_official("HiPClassBottleneck", MINI | {"label_modalities": ["other", "label"]}, DATA)
    assert config.label_modalities == ("label",)


def test_variants_are_the_official_ones() -> None:
    wide = (DataSet(name="d", modalities=(Modality(name="image", positions=1024, channels=3),)),)
    mini = {"num_groups": (16, 1, 16), "num_self_attends_per_block": (2, 1, 1), "z_index_dim": (128, 64, 128)}
    mini |= {"num_z_channels": (128, 1024, 128), "num_self_attend_heads": (4, 32, 4), "num_embedding_channels": 32}
    mini |= {"self_attend_widening_factor": (4, 4, 4)}
    assert config_from_official("HiP", MINI | mini, wide) == hip_mini(wide)
    assert io_mini(wide).widening == (2,)
    assert hip_16(wide).depths == (2, 2, 18, 2, 1, 1, 1)


@pytest.mark.parametrize(
    ("model", "kwargs", "message"),
    [
        ("Hip", MINI, "official model 'Hip': choose one of HiP, HiPClassBottleneck, PerceiverIO"),
        ("HiP", MINI | {"num_group": 3}, r"the official HiP has no argument 'num_group' \(nearest: num_groups\)"),
        ("HiP", IO, "arguments of the official HiP: num_groups missing"),
        ("HiPClassBottleneck", MINI, "arguments of the official HiPClassBottleneck: label_modalities missing"),
    ],
)
def test_bad_arguments_are_refused(model: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_official(model, kwargs, DATA)


def test_missing_unknown_and_misshapen_parameters_are_listed() -> None:
    config = config_from_official("HiP", MINI, DATA)
    params = official(config)
    params["perceiver/embedder/~embed/embed_imag/w"] = params.pop("perceiver/embedder/~embed/embed_image/w")
    params["perceiver/embedder/~embed/embed_label/b"] = np.zeros(7, np.float32)
    with pytest.raises(ValueError, match="do not fit the config") as error:
        convert_params(params, config)
    assert "missing perceiver/embedder/~embed/embed_image/w (nearest: perceiver/embedder/~embed/embed_imag/w)" in str(
        error.value
    )
    assert "unknown perceiver/embedder/~embed/embed_imag/w" in str(error.value)
    assert "perceiver/embedder/~embed/embed_label/b has shape [7], the config asks for [5]" in str(error.value)


def test_conversion_keeps_the_precision_of_the_file() -> None:
    config = config_from_official("HiP", MINI, DATA)
    params = {name: value.astype(np.float64) for name, value in official(config).items()}
    assert convert_params(params, config)["head.norm.weight"].dtype == torch.float64


def test_a_class_bottleneck_without_its_labels_has_other_names() -> None:
    """As the official test has it: labels of data sets that are not there."""
    config = config_from_official("HiPClassBottleneck", MINI | {"label_modalities": ["elsewhere"]}, DATA)
    assert config.label_modalities == ()
    params = official(config)
    plain = convert_params(params, config)
    renamed = {}
    for name, value in params.items():
        name = name.replace("/block_", "/perceiver_block_").replace("/reconstruction_head/", "/reconstruction_head_1/")
        renamed[name] = value
    assert renamed.keys() != params.keys()
    assert all(torch.equal(value, plain[name]) for name, value in convert_params(renamed, config).items())


def test_another_activation_has_no_official_weights() -> None:
    config = dataclasses.replace(config_from_official("HiP", MINI, DATA), activation="gelu_tanh")
    with pytest.raises(ValueError, match="activation='gelu_tanh': the official code has 'sq_relu' alone"):
        convert_params({}, config)
