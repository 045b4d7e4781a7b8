"""Weights of the authors' ECP models (MetaMain/ECPTransformer, PyTorch) to ours.

Every tensor keeps its shape and gets another name; what the authors' code has and never uses is dropped.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from perceivers.convert.parameters import check_fit, nearest
from perceivers.models.ecp import ECP
from perceivers.models.ecp_config import ECPConfig, Pattern

__all__ = ["Converted", "config_from_official", "convert_params"]

OFFICIAL: dict[str, tuple[Pattern, tuple[str, ...]]] = {
    "ECPAttentionTransformer": ("ecp", ("num_segments",)),
    "DoubleAttentionTransformer": ("double", ("latent_len",)),
    "CompressedDoubleAttentionTransformer": ("compressed", ("latent_len", "compression_size")),
    "sSplitAttentionTransformer": ("ssplit", ("latent_len", "num_segments")),
    "PerceiverARTransformer": ("perceiver_ar", ("latent_len",)),
}
"""Our pattern for each official class, and the arguments that only some classes have."""
_COMMON = ("num_unique_tokens", "dim", "num_layers", "sequence_len")
_DEFAULTS: dict[str, Any] = {"heads": 8, "causal": True, "ff_mult": 4, "ff_dropout": 0.05, "attn_dropout": 0.05}

NAMES = {"token_embedding": "token_emb", "norm": "to_logits.0", "logits": "to_logits.1"}
"""Official name of each module of ours."""
LAYER_NAMES = {
    "norm_attention": "0.norm",
    "attention.to_q": "0.fn.to_q",
    "attention.to_kv": "0.fn.to_kv",
    "attention.key_norm": "0.fn.norm",
    "attention.to_out": "0.fn.to_out",
    "attention.to_first_out": "0.fn.to_out_0",
    "attention.compress": "0.fn.projection_hist",
    "norm": "1.norm",
    "feed_forward.up": "1.fn.net.0",
    "feed_forward.down": "1.fn.net.3",
}
"""The same inside a layer."""


class Converted(NamedTuple):
    """What became of official parameters."""

    state: dict[str, Tensor]
    """For `ECP.load_state_dict`."""
    dropped: list[str]
    """Official names without a counterpart, as the authors' code never uses them: ECP's norm of keys and values, whose
    result is thrown away; the compression of all layers but the first; and the rotary frequencies, a constant."""


def config_from_official(name: str, kwargs: Mapping[str, Any]) -> ECPConfig:
    """Our config for an official class and its arguments; what is left out has the official default.

    The authors' versions: keys and values are tied, and normalised in all but ECP; the first segment of ECP has
    an output projection of its own; positions turn queries and keys in the first layer, and in all of double attention.

    Args:
        name: Of the official class.
        kwargs: Its arguments.

    Raises:
        ValueError: An unknown class or argument, a missing one, or one that this package does not build.
    """
    if name not in OFFICIAL:
        raise ValueError(f"the authors have no model {name!r}{nearest(name, OFFICIAL)}: choose {', '.join(OFFICIAL)}")
    pattern, own = OFFICIAL[name]
    required = (*_COMMON, *own)
    known = {*required, *_DEFAULTS}
    if unknown := sorted(kwargs.keys() - known):
        raise ValueError(f"the official {name} has no argument {unknown[0]!r}{nearest(unknown[0], known)}")
    if missing := [argument for argument in required if argument not in kwargs]:
        raise ValueError(f"arguments of the official {name}: {', '.join(missing)} missing")
    o = {**_DEFAULTS, **kwargs}
    if not o["causal"]:
        raise ValueError("causal=False is not built here: a token would read what it predicts")
    if o["ff_dropout"] != o["attn_dropout"]:
        raise ValueError(
            f"ff_dropout={o['ff_dropout']} and attn_dropout={o['attn_dropout']} differ: layers have one dropout here; "
            "give both the same"
        )
    latents = o.get("latent_len")
    return ECPConfig(
        pattern=pattern,
        vocab_size=o["num_unique_tokens"],
        max_seq_len=o["sequence_len"],
        num_latents=latents,
        segment_len=_segment_len(o["sequence_len"] - (latents or 0), o.get("num_segments", 1)),
        compressed_len=o.get("compression_size", 1),
        dim=o["dim"],
        depth=o["num_layers"],
        heads=o["heads"],
        widening=o["ff_mult"],
        dropout=o["ff_dropout"],
        tied_kv=True,
        rotary="all" if pattern == "double" else "first",
        key_norm=pattern != "ecp",
        first_output=pattern == "ecp",
    )


def _segment_len(tokens: int, segments: int) -> int:
    if tokens % segments:
        raise ValueError(f"num_segments={segments} must divide {tokens} tokens evenly: {tokens / segments:g} each")
    return max(tokens // segments, 1)


def convert_params(params: Mapping[str, np.ndarray], config: ECPConfig) -> Converted:
    """Our `state_dict` for an official one, as arrays; names may begin with `model.`, that of the training wrapper.

    Raises:
        ValueError: Lists parameters that are missing, unknown or of another shape.
    """
    params = {name.removeprefix("model."): value for name, value in params.items()}
    with torch.device("meta"):
        wanted = {_official_name(name, config): (name, p.shape) for name, p in ECP(config).state_dict().items()}
    dropped = sorted(name for name in params if _is_dead(name, config))
    found = {name: value for name, value in params.items() if name not in dropped}
    usual = 10_000.0 ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    unusual = [
        f"{name} are not the usual rotary frequencies, the only ones that are built here"
        for name in dropped
        if name.endswith(".freqs") and not (params[name].shape == usual.shape and np.allclose(params[name], usual))
    ]
    check_fit(found, {name: tuple(shape) for name, (_, shape) in wanted.items()}, unusual)
    return Converted({ours: torch.from_numpy(found[name].copy()) for name, (ours, _) in wanted.items()}, dropped)


def _is_dead(name: str, config: ECPConfig) -> bool:
    """Whether the authors' code keeps this without using it."""
    match = re.fullmatch(r"layers\.(\d+)\.0\.fn\.(norm|projection_hist|pos_emb)\.\w+", name)
    if match is None:
        return False
    layer, module = int(match[1]), match[2]
    if layer >= config.depth:
        return False
    return (
        module == "pos_emb"
        or (module == "norm" and config.pattern == "ecp")
        or (module == "projection_hist" and config.pattern == "compressed" and layer > 0)
    )


def _official_name(ours: str, config: ECPConfig) -> str:
    module, kind = ours.rsplit(".", 1)
    if not module.startswith("layers."):
        return f"{NAMES[module]}.{kind}"
    _, layer, inside = module.split(".", 2)
    official = LAYER_NAMES[inside]
    if inside == "attention.to_out" and config.pattern in ("compressed", "perceiver_ar"):
        official = "0.fn.w_out"
    return f"layers.{layer}.{official}.{kind}"
