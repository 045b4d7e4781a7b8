"""Weights of the official Hierarchical Perceiver (google-deepmind/hierarchical_perceiver, JAX and Haiku) to ours.

Checked against parameters that the official code made; trained ones, which its authors announced, were not at hand.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perceivers.convert.parameters import Names, joined, linear, nearest, norms, numbered
from perceivers.models.hip import HiP
from perceivers.models.hip_config import DataSet, HiPConfig

__all__ = ["config_from_official", "convert_params", "official_names"]

# Per block, in the arguments of `HiP` (tuples) and `PerceiverIO` (numbers), and in our config.
_BLOCKS = {
    "num_self_attends_per_block": "depths",
    "z_index_dim": "latents",
    "num_z_channels": "dims",
    "num_cross_attend_heads": "cross_heads",
    "num_self_attend_heads": "heads",
    "cross_attend_widening_factor": "cross_widening",
    "self_attend_widening_factor": "widening",
}
_SHARED = (
    "num_embedding_channels",
    "num_position_encoding_channels",
    "activation_name",
    "dropout_prob",
    "drop_path_rate",
)
_HIP = ("num_groups", *_BLOCKS, *_SHARED, "regroup_type", "processor_index_dim_train", "processor_index_dim_eval")
_ARGUMENTS = {
    "HiP": _HIP,
    "HiPClassBottleneck": (*_HIP, "label_modalities"),
    "PerceiverIO": (*_BLOCKS, *_SHARED, "z_index_dim_train", "z_index_dim_eval"),
}
_REQUIRED = (*_BLOCKS, "num_embedding_channels")


def config_from_official(model: str, kwargs: Mapping[str, Any], data_sets: tuple[DataSet, ...]) -> HiPConfig:
    """Our config for an official model.

    As in the reference: `activation_name` changes nothing, and of `num_position_encoding_channels` it only matters
    whether it differs from `num_embedding_channels`.

    Args:
        model: `HiP`, `HiPClassBottleneck` or `PerceiverIO`.
        kwargs: Its arguments, those of a variant included.
        data_sets: What it is called with.

    Raises:
        ValueError: Another model, an unknown argument or a missing one.
    """
    if model not in _ARGUMENTS:
        raise ValueError(f"official model {model!r}: choose one of {', '.join(_ARGUMENTS)}")
    if unknown := sorted(kwargs.keys() - set(_ARGUMENTS[model])):
        raise ValueError(f"the official {model} has no argument {unknown[0]!r}{nearest(unknown[0], _ARGUMENTS[model])}")
    required = _REQUIRED if model == "PerceiverIO" else ("num_groups", *_REQUIRED)
    required = (*required, "label_modalities") if model == "HiPClassBottleneck" else required
    if missing := [name for name in required if name not in kwargs]:
        raise ValueError(f"arguments of the official {model}: {', '.join(missing)} missing")
    is_io = model == "PerceiverIO"
    blocks: dict[str, Any] = {ours: (kwargs[name],) if is_io else tuple(kwargs[name]) for name, ours in _BLOCKS.items()}
    positions = kwargs.get("num_position_encoding_channels")
    present = {modality.name for data_set in data_sets for modality in data_set.modalities}
    processor = "z_index_dim" if is_io else "processor_index_dim"
    return HiPConfig(
        data_sets=data_sets,
        groups=(1,) if is_io else tuple(kwargs["num_groups"]),
        **blocks,
        embed_dim=kwargs["num_embedding_channels"],
        # The official test names labels of data sets that are not there.
        label_modalities=tuple(name for name in kwargs.get("label_modalities", ()) if name in present),
        project_positions=positions is not None and positions != kwargs["num_embedding_channels"],
        regroup=kwargs.get("regroup_type", "reshape"),
        train_latents=kwargs.get(f"{processor}_train"),
        eval_latents=kwargs.get(f"{processor}_eval"),
        dropout=kwargs.get("dropout_prob", 0.0),
        drop_path=kwargs.get("drop_path_rate", 0.0),
    )


def convert_params(params: Mapping[str, np.ndarray], config: HiPConfig) -> dict[str, Tensor]:
    """Our `state_dict` for official parameters, named `<Haiku module path>/<name>`.

    Linear weights are transposed; key and value projections become one layer.

    Raises:
        ValueError: Lists parameters that are missing, unknown or of another shape.
    """
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in HiP(config).state_dict().items()}
    if config.activation != "sq_relu":
        raise ValueError(f"activation={config.activation!r}: the official code has 'sq_relu' alone")
    bottleneck = any("/perceiver_block_" in name for name in params)
    return joined(params, official_names(config, bottleneck=bottleneck), shapes)


def official_names(config: HiPConfig, *, bottleneck: bool = False) -> Names:
    """For each name of our `state_dict` the official parameters that it is made of, joined along the first axis.

    Those of a `HiPClassBottleneck` are called otherwise, also where none of its labels is there (`bottleneck`).
    """
    bottleneck = bottleneck or bool(config.label_modalities)
    root = "perceiver"
    names: Names = {}
    for data_set in config.data_sets:
        labels = [m.name for m in data_set.modalities if m.name in config.label_modalities]
        for modality in (m.name for m in data_set.modalities):
            # The official code makes an embedder for all grouped modalities, then one for each label.
            count = labels.index(modality) + 1 if modality in labels else 0
            embedder, positions = numbered("embedder", count), numbered("position_encoder", count)
            names |= linear(f"modalities.{modality}.embed", f"{root}/{embedder}/~embed/embed_{modality}")
            names |= linear(f"modalities.{modality}.unembed", f"{root}/{embedder}/~unembed/unembed_{modality}")
            names[f"modalities.{modality}.positions"] = (f"{root}/{positions}/pos_emb_mae_{modality}/pos_embs",)
        for i in range(len(config.grouped(data_set)) * config.project_positions):
            projection = numbered("position_encoding_linear", i)
            names[f"position_projections.{i}.weight"] = (f"{root}/position_encoder/{projection}/w",)
    for i in range(len(config.groups)):
        prefix = "perceiver_block" if bottleneck else "block"
        names |= block_names(f"blocks.{i}", f"{root}/{prefix}_{i}", config, i)
    heads = {"head": int(bottleneck)} | ({"label_head": 0} if config.label_modalities else {})
    for head, i in heads.items():
        names |= cross_attention_names(head, f"{root}/{numbered('reconstruction_head', i)}/hi_p_cross_attention")
    return names


def block_names(ours: str, official: str, config: HiPConfig, index: int) -> Names:
    """As `official_names`, of one block."""
    cross_attention = f"{official}/~/hi_p_cross_attention"
    names = cross_attention_names(f"{ours}.cross_attend", cross_attention)
    names[f"{ours}.latents"] = (f"{cross_attention}/query_inputs/pos_embs",)
    if index > config.processor and config.dims[index] != config.dims[len(config.dims) - 1 - index]:
        names |= linear(f"{ours}.project_residual", f"{cross_attention}/pre_attention_residual_linear")
    for layer in range(config.depths[index]):
        names |= self_attention_names(f"{ours}.layers.{layer}", f"{official}/~/self_attend_id_{layer}")
    return names


def cross_attention_names(ours: str, official: str) -> Names:
    """As `official_names`, of one `HiPCrossAttention` without its latents."""
    return _attention(ours, official, ("norm_latents", "norm_context", "norm"))


def self_attention_names(ours: str, official: str) -> Names:
    """As `official_names`, of one `SelfAttention`."""
    return _attention(ours, official, ("norm_attention", "norm"))


def _attention(ours: str, official: str, norm_names: tuple[str, ...]) -> Names:
    attention = f"{official}/attention"
    names = linear(f"{ours}.attention.to_q", f"{attention}/query_linear")
    names |= linear(f"{ours}.attention.to_kv", f"{attention}/key_linear", f"{attention}/value_linear")
    names |= linear(f"{ours}.attention.to_out", f"{attention}/attention_output_linear")
    names |= linear(f"{ours}.feed_forward.up", f"{official}/dense/mlp_hidden_linear")
    names |= linear(f"{ours}.feed_forward.down", f"{official}/dense/mlp_output_linear")
    for i, norm in enumerate(norm_names):
        names |= norms(f"{ours}.{norm}", f"{official}/{numbered('layer_norm', i)}")
    return names
