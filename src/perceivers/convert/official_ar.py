"""Weights of the official Perceiver AR (google-research/perceiver-ar, JAX and Haiku) to ours.

Checked against parameters that the official code made.
"""

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from perceivers.convert.parameters import Names, joined, linear, nearest, norms, numbered
from perceivers.models.perceiver_ar import PerceiverAR
from perceivers.models.perceiver_ar_config import (
    InputQueries,
    LearnedQueries,
    MLPQueries,
    PerceiverARConfig,
    RotaryPositions,
    TablePositions,
)
from perceivers.nn.options import ActivationName

__all__ = ["config_from_official", "convert_params", "official_names"]

_DEFAULTS: dict[str, Any] = {
    "activation_name": "sq_relu",
    "additional_cross_attend_after_layers": None,
    "chunked_cross_attention": False,
    "chunked_cross_key_size": 4096,
    "chunked_cross_query_size": 1024,
    "concat_pos": True,
    "cross_attend_widening_factor": 1,
    "cross_attention_head_group_size": 0,
    "cross_attention_shape_for_attn": "kv",
    "dropout_prob": 0.0,
    "encoder_dropout_prob": 0.0,
    "encoder_use_query_residual": True,
    "final_layer_init_zeros": True,
    "fraction_heads_to_rotate": 1.0,
    "fraction_to_rotate": 0.25,
    "include_initial_cross_attention": True,
    "initial_query_embed_activation_name": "sq_relu",
    "initial_query_embed_num_layers": 2,
    "initial_query_embed_style": "none",
    "initial_query_offsetting": False,
    "input_embed_dim": 1024,
    "latent_dropout_prob": 0.0,
    "learnable_position_embeddings": False,
    "mask_style": "final_block",
    "max_wavelength": 8192,
    "num_cross_attend_heads": 1,
    "num_latents_per_position": 1,
    "num_transformer_heads": 8,
    "num_transformers_per_block": 12,
    "num_z_channels": 1024,
    "position_encoding": "sinusoidal",
    "share_learned_initial_query": False,
    "train_input_positions": 0,
    "transformer_widening_factor": 1,
    "use_negative_rotary_positions": False,
    "use_positions_from_data": False,
    "z_index_dim": 1024,
    "z_pos_enc_init_scale": 0.02,
}
_REQUIRED = ("num_classes", "input_idx_size", "max_context_length", "position_encoding_type")

_ACTIVATIONS: dict[str, ActivationName] = {name: name for name in get_args(ActivationName)}
_ACTIVATIONS["gelu"] = _ACTIVATIONS.pop("gelu_tanh")  # jax.nn.gelu is the tanh approximation
_ACTIVATIONS |= {"swish": "silu", "hard_silu": "hard_swish"}


def config_from_official(kwargs: Mapping[str, Any]) -> PerceiverARConfig:
    """Our config for the arguments of the official `PerceiverAR`; what is left out has the official default.

    What only schedules the work (chunks, head groups) has no counterpart, with one exception: where only a share of
    the heads turns, the official code takes it of each head group.

    Raises:
        ValueError: An unknown argument, a missing one, or one that this package does not build.
    """
    known = {*_DEFAULTS, *_REQUIRED}
    if unknown := sorted(kwargs.keys() - known):
        raise ValueError(f"the official PerceiverAR has no argument {unknown[0]!r}{nearest(unknown[0], known)}")
    if missing := [name for name in _REQUIRED if name not in kwargs]:
        raise ValueError(f"arguments of the official PerceiverAR: {', '.join(missing)} missing")
    o = {**_DEFAULTS, **kwargs}
    _reject_unbuilt(o)
    per_position = o["num_latents_per_position"]
    if o["z_index_dim"] % per_position:
        raise ValueError(f"num_latents_per_position={per_position} must divide z_index_dim={o['z_index_dim']}")
    return PerceiverARConfig(
        vocab_size=o["num_classes"],
        max_seq_len=o["max_context_length"],
        num_latents=o["z_index_dim"] // per_position,
        dim=o["num_z_channels"],
        input_dim=o["input_embed_dim"],
        depth=o["num_transformers_per_block"],
        heads=o["num_transformer_heads"],
        cross_heads=o["num_cross_attend_heads"],
        widening=o["transformer_widening_factor"],
        cross_widening=o["cross_attend_widening_factor"],
        cross_channels="input" if o["cross_attention_shape_for_attn"] == "kv" else "latent",
        query_residual=o["encoder_use_query_residual"],
        initial_cross_attend=o["include_initial_cross_attention"],
        extra_cross_attends=tuple(sorted(o["additional_cross_attend_after_layers"] or ())),
        positions=_positions(o),
        position_source=_position_source(o),
        queries=_queries(o),
        query_offset=o["initial_query_offsetting"],
        latents_per_position=per_position,
        latent_init_std=o["z_pos_enc_init_scale"],
        activation=_ACTIVATIONS[o["activation_name"]],
        dropout=o["dropout_prob"],
        prefix_dropout=o["encoder_dropout_prob"],
        latent_dropout=o["latent_dropout_prob"],
        zero_logits=o["final_layer_init_zeros"],
    )


def _reject_unbuilt(o: Mapping[str, Any]) -> None:
    built = {
        "position_encoding_type": ("rotary", "absolute"),
        "position_encoding": ("sinusoidal", "fourier", "random"),
        "initial_query_embed_style": ("none", "mlp", "learned"),
        "cross_attention_shape_for_attn": ("kv", "q"),
        "mask_style": ("final_block",),
        "train_input_positions": (0,),
        "activation_name": tuple(_ACTIVATIONS),
        "initial_query_embed_activation_name": tuple(_ACTIVATIONS),
    }
    for name, values in built.items():
        if o[name] not in values:
            raise ValueError(f"{name}={o[name]!r} is not built here; built are {', '.join(map(repr, values))}")


def _positions(o: Mapping[str, Any]) -> RotaryPositions | TablePositions:
    if o["position_encoding_type"] == "rotary":
        # An unchunked cross-attend with partly turned heads is the one place where groups change a number.
        group = o["cross_attention_head_group_size"] if o["fraction_heads_to_rotate"] < 1 else 0
        return RotaryPositions(
            channel_share=o["fraction_to_rotate"],
            head_share=o["fraction_heads_to_rotate"],
            cross_head_groups=o["num_cross_attend_heads"] // group if group else 1,
            max_wavelength=o["max_wavelength"],
        )
    if o["use_positions_from_data"] and -1 in o["input_idx_size"]:
        raise ValueError("input_idx_size=-1 with use_positions_from_data=True: give the size of each position axis")
    # As in the reference: positions that the model counts have one axis, and further tables are never made.
    read = o["input_idx_size"] if o["use_positions_from_data"] else o["input_idx_size"][:1]
    return TablePositions(
        table=o["position_encoding"],
        learned=o["learnable_position_embeddings"],
        sizes=tuple(o["max_context_length"] if size == -1 else size for size in read),
    )


def _position_source(o: Mapping[str, Any]) -> Any:
    if o["use_positions_from_data"]:
        return "data"
    rotary = o["position_encoding_type"] == "rotary"
    return "negative_end" if rotary and o["use_negative_rotary_positions"] else "end"


def _queries(o: Mapping[str, Any]) -> InputQueries | MLPQueries | LearnedQueries:
    match o["initial_query_embed_style"]:
        case "mlp":
            return MLPQueries(
                layers=o["initial_query_embed_num_layers"],
                activation=_ACTIVATIONS[o["initial_query_embed_activation_name"]],
            )
        case "learned":
            return LearnedQueries(shared=o["share_learned_initial_query"])
        case _:
            return InputQueries()


def convert_params(params: Mapping[str, np.ndarray], config: PerceiverARConfig) -> dict[str, Tensor]:
    """Our `state_dict` for official parameters, named `<Haiku module path>/<name>`.

    Linear weights are transposed; key and value projections become one layer.

    Raises:
        ValueError: Lists parameters that are missing, unknown or of another shape.
    """
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in PerceiverAR(config).state_dict().items()}
    return joined(params, official_names(config), shapes)


def official_names(config: PerceiverARConfig) -> Names:
    """For each name of our `state_dict` the official parameters that it is made of, joined along the first axis."""
    root = "perceiver_ar/~"
    names: Names = {"token_embedding.weight": (f"{root}/embed/embeddings",)}
    if isinstance(config.positions, TablePositions):
        for axis in range(len(config.table_sizes)):
            names[f"position_tables.axis{axis}"] = (f"{root}/embed_{axis + 1}/embeddings",)
    match config.queries:
        case LearnedQueries():
            names["queries.learned"] = ("perceiver_ar/q_embed_learned",)
        case MLPQueries(layers=layers):  # the MLP is made first, so it counts first
            for i in range(layers):
                names |= linear(f"queries.mlp.{i}", f"{root}/{numbered('linear', i)}")
            names |= linear("queries.linear", f"{root}/{numbered('linear', layers)}")
        case InputQueries():
            names |= linear("queries.linear", f"{root}/linear")
    if config.latents_per_position > 1:
        names["latent_offsets"] = (f"{root}/z_pos_enc/pos_embs",)
    cross_attends = ["cross_attend"] if config.initial_cross_attend else []
    cross_attends += [f"extra_cross_attends.{layer}" for layer in sorted(config.extra_cross_attends)]
    for i, ours in enumerate(cross_attends):
        norm_names = ("norm_latents", "norm_context", "norm")
        names |= _block(ours, f"{root}/{numbered('cross_attention', i)}", norm_names)
    for i in range(config.depth):
        names |= _block(f"layers.{i}", f"{root}/{numbered('self_attention', i)}", ("norm_attention", "norm"))
    return names | norms("norm", "perceiver_ar/layer_norm") | linear("logits", f"{root}/logits")


def _block(ours: str, official: str, norm_names: tuple[str, ...]) -> Names:
    attention = f"{official}/attention"
    names = linear(f"{ours}.attention.to_q", f"{attention}/linear")
    names |= linear(f"{ours}.attention.to_kv", f"{attention}/linear_1", f"{attention}/linear_2")
    names |= linear(f"{ours}.attention.to_out", f"{attention}/linear_3")
    names |= linear(f"{ours}.feed_forward.up", f"{official}/dense/linear")
    names |= linear(f"{ours}.feed_forward.down", f"{official}/dense/linear_1")
    for i, norm in enumerate(norm_names):
        names |= norms(f"{ours}.{norm}", f"{official}/{numbered('layer_norm', i)}")
    return names
