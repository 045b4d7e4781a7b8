"""Arguments of the classes of the official Perceiver IO, with their defaults: what is unknown is refused by name.

Names of modules are not among them: weights are found under the default ones.
"""

from collections.abc import Mapping
from typing import Any

from perceivers.convert.parameters import nearest

NEEDED = object()
"""An argument without a default."""

_POSITIONS: dict[str, Any] = {
    "position_encoding_type": "fourier",
    "fourier_position_encoding_kwargs": None,
    "trainable_position_encoding_kwargs": None,
    "project_pos_dim": -1,
}
FOURIER = {"num_bands": NEEDED, "max_resolution": None, "sine_only": False, "concat_pos": True}
TRAINABLE = {"num_channels": 128, "init_scale": 0.02}

_INPUT: dict[str, Any] = _POSITIONS | {"n_extra_pos_mlp": 0, "concat_or_add_pos": "concat"}
PREPROCESSORS: dict[str, dict[str, Any]] = {
    "image": _INPUT
    | {
        "prep_type": "conv",
        "spatial_downsample": 4,
        "temporal_downsample": 1,
        "num_channels": 64,
        "conv_after_patching": False,
        "conv2d_use_batchnorm": True,
    },
    "audio": _INPUT | {"prep_type": "patches", "samples_per_patch": 96},
    "onehot": {},
}
ENCODER: dict[str, Any] = {
    "num_self_attends_per_block": 6,
    "num_blocks": 8,
    "z_index_dim": 512,
    "num_z_channels": 1024,
    "qk_channels": None,
    "v_channels": None,
    "num_cross_attend_heads": 1,
    "num_self_attend_heads": 8,
    "cross_attend_widening_factor": 1,
    "self_attend_widening_factor": 1,
    "dropout_prob": 0.0,
    "z_pos_enc_init_scale": 0.02,
    "cross_attention_shape_for_attn": "kv",
    "use_query_residual": True,
}
_QUERIES: dict[str, Any] = _POSITIONS | {
    "position_encoding_type": "trainable",
    # As in the reference: these two change no number.
    "subsampled_index_dims": None,
    "num_z_channels": 1024,
    "qk_channels": None,
    "v_channels": None,
    "use_query_residual": False,
    "output_w_init": None,
    "concat_preprocessed_input": False,
    "num_heads": 1,
    "final_project": True,
}
DECODERS: dict[str, dict[str, Any]] = {
    # As in the reference: `final_avg_before_project` changes nothing.
    "projection": {"num_classes": NEEDED, "final_avg_before_project": False},
    "basic": _QUERIES | {"output_num_channels": NEEDED, "output_index_dims": NEEDED},
    "classification": _QUERIES | {"num_classes": NEEDED},
    "flow": _QUERIES
    | {"output_image_shape": NEEDED, "output_num_channels": 2, "rescale_factor": 100.0, "output_index_dims": None},
}
POSTPROCESSORS: dict[str, dict[str, Any]] = {
    "image": {
        "postproc_type": "pixels",
        "spatial_upsample": 1,
        "temporal_upsample": 1,
        "n_outputs": -1,
        "input_reshape_size": None,
    },
    "audio": {"postproc_type": "patches", "samples_per_patch": 96},
    "identity": {},
    "classification": {"num_classes": NEEDED},
    "projection": {"num_outputs": NEEDED},
}
PERCEIVER = {
    "input_preprocessor": None,
    "encoder": NEEDED,
    "decoder": NEEDED,
    "output_postprocessor": None,
    "patches_for_flow": False,
    "output_scale": 1,
}
TEXT: dict[str, Any] = dict.fromkeys(("vocab_size", "d_model", "max_seq_len", "encoder", "decoder"), NEEDED)
MULTIMODAL: dict[str, Any] = dict.fromkeys(
    (
        "num_frames",
        "audio_samples_per_frame",
        "samples_per_patch",
        "num_classes",
        "img_sz",
        "audio_bands",
        "image_bands",
        "min_padding_size",
        "spatial_downsample",
        "temporal_downsample",
        "mask_probs",
        "decoder_num_z_channels",
        "output_num_channels",
        "label_query_channels",
        "encoder",
    ),
    NEEDED,
) | {"n_extra_pos_mlp": 0}


def arguments(name: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of the official `name`, those that are left out with their `defaults`.

    Raises:
        ValueError: An unknown argument or a missing one.
    """
    if unknown := sorted(given.keys() - defaults.keys()):
        raise ValueError(f"the official {name} has no argument {unknown[0]!r}{nearest(unknown[0], defaults)}")
    if missing := [key for key, value in defaults.items() if value is NEEDED and key not in given]:
        raise ValueError(f"arguments of the official {name}: {', '.join(missing)} missing")
    return {**defaults, **given}


def of_type(part: str, given: Mapping[str, Any], types: Mapping[str, Mapping[str, Any]], usual: str) -> dict[str, Any]:
    """`arguments` of the class that the entry `type` names, `usual` where there is none; `type` stays an entry.

    Raises:
        ValueError: An unknown type or argument, or a missing argument.
    """
    kind = given.get("type", usual)
    if kind not in types:
        raise ValueError(f"{part} {kind!r} is not one of {', '.join(map(repr, types))}")
    rest = {name: value for name, value in given.items() if name != "type"}
    return {**arguments(f"{kind} {part}", rest, types[kind]), "type": kind}


def check_choice(values: Mapping[str, Any], name: str, *allowed: Any) -> None:
    """Check that the argument `name` has one of the `allowed` values.

    Raises:
        ValueError: Another one.
    """
    if values[name] not in allowed:
        raise ValueError(f"{name}={values[name]!r} is not one of {', '.join(map(repr, allowed))}")
