import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from perceivers.convert.official_ar import config_from_official, convert_params
from perceivers.models.perceiver_ar import PerceiverAR
from perceivers.models.perceiver_ar_config import (
    InputQueries,
    LearnedQueries,
    MLPQueries,
    PerceiverARConfig,
    RotaryPositions,
    TablePositions,
)


def reference_case() -> tuple[Path, dict[str, Any]]:
    """Parameters that the official code made, with a query MLP, and the arguments it had."""
    for path in sorted((Path(__file__).parents[1] / "parity" / "goldens" / "perceiver_ar").glob("*.json")):
        model = json.loads(path.read_text()).get("model", {})
        if model.get("initial_query_embed_style") == "mlp":
            return path.with_suffix(".safetensors"), model
    raise FileNotFoundError("no reference case has a query MLP")


REFERENCE, MODEL = reference_case()
SMALL = {"num_classes": 11, "input_idx_size": [-1], "max_context_length": 31, "position_encoding_type": "rotary"}
SMALL |= {"z_index_dim": 6, "num_z_channels": 16, "input_embed_dim": 16, "max_wavelength": 31}


def official(**options: Any) -> PerceiverARConfig:
    return config_from_official(SMALL | options)


def reference_params() -> dict[str, np.ndarray]:
    return {k.removeprefix("params/"): v for k, v in load_file(REFERENCE).items() if k.startswith("params/")}


def test_what_is_left_out_has_the_official_default() -> None:
    config = config_from_official({k: v for k, v in SMALL.items() if k != "num_z_channels"} | {"z_index_dim": 7})
    assert config == PerceiverARConfig(
        vocab_size=11,
        max_seq_len=31,
        num_latents=7,
        dim=1024,
        input_dim=16,
        depth=12,
        heads=8,
        cross_heads=1,
        widening=1,
        cross_widening=1,
        positions=RotaryPositions(channel_share=0.25, max_wavelength=31),
        position_source="end",
        dropout=0.0,
    )


def test_latents_are_counted_in_positions() -> None:
    config = official(num_latents_per_position=2)
    assert (config.num_latents, config.latents_per_position) == (3, 2)


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"cross_attention_shape_for_attn": "q"}, "cross_channels", "latent"),
        ({"activation_name": "gelu"}, "activation", "gelu_tanh"),
        ({"activation_name": "swish"}, "activation", "silu"),
        ({"additional_cross_attend_after_layers": [3, 1]}, "extra_cross_attends", (1, 3)),
        ({"use_positions_from_data": True, "use_negative_rotary_positions": True}, "position_source", "data"),
        ({"use_negative_rotary_positions": True}, "position_source", "negative_end"),
        ({"initial_query_embed_style": "mlp"}, "queries", MLPQueries(layers=2)),
        ({"initial_query_embed_style": "learned"}, "queries", LearnedQueries()),
        (
            {"initial_query_embed_style": "learned", "share_learned_initial_query": True},
            "queries",
            LearnedQueries(shared=True),
        ),
        ({"initial_query_embed_style": "none"}, "queries", InputQueries()),
        ({"encoder_dropout_prob": 0.25}, "prefix_dropout", 0.25),
        (
            {"position_encoding_type": "absolute", "position_encoding": "fourier"},
            "positions",
            TablePositions(table="fourier", sizes=(31,)),
        ),
        (
            {
                "position_encoding_type": "absolute",
                "position_encoding": "random",
                "learnable_position_embeddings": True,
                "use_positions_from_data": True,
                "input_idx_size": [7, 5],
            },
            "positions",
            TablePositions(table="random", learned=True, sizes=(7, 5)),
        ),
    ],
)
def test_options(options: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(official(**options), field) == value


def test_negative_positions_are_for_rotary_ones() -> None:
    config = official(position_encoding_type="absolute", use_negative_rotary_positions=True)
    assert config.position_source == "end"


def test_scheduling_disappears_but_head_groups_with_partly_turned_heads() -> None:
    chunks = {"chunked_cross_attention": True, "chunked_cross_key_size": 8, "chunked_cross_query_size": 4}
    assert official(**chunks) == official()
    four = {"num_cross_attend_heads": 4, "fraction_to_rotate": 0.5}
    heads = four | {"cross_attention_head_group_size": 2}
    assert official(**heads) == official(**four)
    partly = official(**heads, fraction_heads_to_rotate=0.5)
    assert partly.positions == RotaryPositions(
        channel_share=0.5, head_share=0.5, cross_head_groups=2, max_wavelength=31
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_z_chanels": 16}, r"has no argument 'num_z_chanels' \(nearest: num_z_channels\)"),
        ({"mask_style": "stride"}, "mask_style='stride' is not built here; built are 'final_block'"),
        ({"train_input_positions": 5}, "train_input_positions=5 is not built here; built are 0"),
        ({"position_encoding_type": "relative"}, "'relative' is not built here; built are 'rotary', 'absolute'"),
        ({"position_encoding": "linear"}, "position_encoding='linear' is not built"),
        ({"initial_query_embed_style": "rnn"}, "initial_query_embed_style='rnn' is not built"),
        ({"cross_attention_shape_for_attn": "v"}, "cross_attention_shape_for_attn='v' is not built"),
        ({"activation_name": "glu"}, "activation_name='glu' is not built here; built are 'sq_relu', 'relu'"),
        ({"initial_query_embed_activation_name": "glu"}, "initial_query_embed_activation_name='glu' is not built"),
        ({"num_latents_per_position": 4}, "num_latents_per_position=4 must divide z_index_dim=6"),
        (
            {"position_encoding_type": "absolute", "use_positions_from_data": True},
            "give the size of each position axis",
        ),
    ],
)
def test_what_is_not_built_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        official(**options)


def test_missing_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="input_idx_size, position_encoding_type missing"):
        config_from_official({"num_classes": 5, "max_context_length": 7})


def test_linear_layers_are_transposed_and_keys_joined_with_values() -> None:
    params = reference_params()
    state = convert_params(params, config_from_official(MODEL))
    attention = "perceiver_ar/~/self_attention_1/attention"
    keys, values = params[f"{attention}/linear_1/w"], params[f"{attention}/linear_2/w"]
    np.testing.assert_array_equal(state["layers.1.attention.to_kv.weight"], np.concatenate([keys.T, values.T]))
    np.testing.assert_array_equal(state["logits.weight"], params["perceiver_ar/~/logits/w"].T)
    np.testing.assert_array_equal(state["queries.mlp.1.weight"], params["perceiver_ar/~/linear_1/w"].T)
    np.testing.assert_array_equal(state["queries.linear.weight"], params["perceiver_ar/~/linear_2/w"].T)
    PerceiverAR(config_from_official(MODEL)).load_state_dict(state)


def test_parameters_that_do_not_fit_are_listed() -> None:
    params = reference_params()
    params["perceiver_ar/~/logit/w"] = params.pop("perceiver_ar/~/logits/w")
    params["perceiver_ar/layer_norm/scale"] = np.ones(5, np.float32)
    with pytest.raises(ValueError, match="do not fit the config") as caught:
        convert_params(params, config_from_official(MODEL))
    message = str(caught.value)
    assert "missing perceiver_ar/~/logits/w (nearest: perceiver_ar/~/logit/w)" in message
    assert "unknown perceiver_ar/~/logit/w (nearest: perceiver_ar/~/logits/w)" in message
    assert "perceiver_ar/layer_norm/scale has shape [5], the config asks for [32]" in message
    assert "\n" not in message


def test_long_lists_are_cut() -> None:
    with pytest.raises(ValueError, match=r"missing .*; and \d+ more$"):
        convert_params({}, config_from_official(MODEL))
