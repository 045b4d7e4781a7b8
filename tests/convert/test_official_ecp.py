from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from perceivers.convert.official_ecp import OFFICIAL, config_from_official, convert_params
from perceivers.models.ecp import ECP
from perceivers.models.ecp_config import ECPConfig

ECP_CLASS = "ECPAttentionTransformer"
COMMON: dict[str, Any] = {"num_unique_tokens": 17, "dim": 12, "heads": 2, "num_layers": 2, "sequence_len": 15}
OWN: dict[str, dict[str, Any]] = {
    "ECPAttentionTransformer": {"num_segments": 3},
    "DoubleAttentionTransformer": {"latent_len": 6},
    "CompressedDoubleAttentionTransformer": {"latent_len": 6, "compression_size": 4},
    "sSplitAttentionTransformer": {"latent_len": 6, "num_segments": 3},
    "PerceiverARTransformer": {"latent_len": 6},
}


def config_of(name: str, **changes: Any) -> ECPConfig:
    return config_from_official(name, {**COMMON, **OWN[name], **changes})


def official_params(name: str) -> dict[str, np.ndarray]:
    """Parameters as the official class would have them, those that it never uses included."""
    generator = np.random.default_rng(3)
    out = "w_out" if name in ("CompressedDoubleAttentionTransformer", "PerceiverARTransformer") else "to_out"
    shapes: dict[str, tuple[int, ...]] = {
        "token_emb.weight": (17, 12),
        "to_logits.0.weight": (12,),
        "to_logits.0.bias": (12,),
        "to_logits.1.weight": (17, 12),
        "to_logits.1.bias": (17,),
    }
    for i in range(2):
        layer = {"0.norm": (12,), "0.fn.norm": (6,), f"0.fn.{out}": (12, 12), "1.norm": (12,)}
        layer |= {"1.fn.net.0": (48, 12), "1.fn.net.3": (12, 48)}
        if name == ECP_CLASS:
            layer["0.fn.to_out_0"] = (12, 12)
        if name == "CompressedDoubleAttentionTransformer":
            layer["0.fn.projection_hist"] = (4, 9)
        for module, shape in layer.items():
            shapes |= {f"layers.{i}.{module}.weight": shape, f"layers.{i}.{module}.bias": shape[:1]}
        shapes |= {f"layers.{i}.0.fn.to_q.weight": (12, 12), f"layers.{i}.0.fn.to_kv.weight": (12, 12)}
    params = {key: generator.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    frequencies = (10_000.0 ** (-np.arange(0, 6, 2) / 6)).astype(np.float32)
    return params | {f"layers.{i}.0.fn.pos_emb.freqs": frequencies for i in range(2)}


def test_what_the_authors_versions_are() -> None:
    configs = {name: config_of(name) for name in OFFICIAL}
    assert [config.pattern for config in configs.values()] == ["ecp", "double", "compressed", "ssplit", "perceiver_ar"]
    assert all(config.tied_kv for config in configs.values())
    assert [config.rotary for config in configs.values()] == ["first", "all", "first", "first", "first"]
    assert [config.key_norm for config in configs.values()] == [False, True, True, True, True]
    assert [config.first_output for config in configs.values()] == [True, False, False, False, False]
    ecp = configs[ECP_CLASS]
    assert (ecp.segment_len, ecp.num_latents, ecp.widening, ecp.dropout) == (5, None, 4, 0.05)
    ssplit = configs["sSplitAttentionTransformer"]
    assert (ssplit.segment_len, ssplit.num_latents, ssplit.context_len) == (3, 6, 9)
    assert configs["CompressedDoubleAttentionTransformer"].compressed_len == 4


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("wrapped", [False, True])
def test_every_parameter_finds_its_place_or_is_listed(name: str, wrapped: bool) -> None:
    params, config = official_params(name), config_of(name)
    given = {f"model.{key}": value for key, value in params.items()} if wrapped else params
    state, dropped = convert_params(given, config)
    model = ECP(config)
    model.load_state_dict(state)
    assert torch.isfinite(model(torch.ones(1, 15, dtype=torch.long))).all()
    dead = {f"layers.{i}.0.fn.pos_emb.freqs" for i in range(2)}
    if name == ECP_CLASS:
        dead |= {f"layers.{i}.0.fn.norm.{kind}" for i in range(2) for kind in ("weight", "bias")}
    if name == "CompressedDoubleAttentionTransformer":
        dead |= {f"layers.1.0.fn.projection_hist.{kind}" for kind in ("weight", "bias")}
    assert dropped == sorted(dead)
    values = sorted(float(value.sum()) for key, value in params.items() if key not in dead)
    assert values == pytest.approx(sorted(float(tensor.sum()) for tensor in state.values()), rel=1e-4, abs=1e-4)


def test_weights_are_copied() -> None:
    params = official_params(ECP_CLASS)
    state = convert_params(params, config_of(ECP_CLASS)).state
    assert torch.equal(
        state["layers.1.attention.to_first_out.bias"], torch.tensor(params["layers.1.0.fn.to_out_0.bias"])
    )
    state["token_embedding.weight"].zero_()
    assert params["token_emb.weight"].any()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ECPTransformer", {}, "the authors have no model 'ECPTransformer' .nearest: ECPAttentionTransformer.: choose"),
        (ECP_CLASS, {"latent_len": 6}, "official ECPAttentionTransformer has no argument 'latent_len'"),
        (ECP_CLASS, {"head": 6}, "has no argument 'head' .nearest: heads."),
        (ECP_CLASS, {"causal": False}, "causal=False is not built here"),
        (ECP_CLASS, {"num_segments": 4}, r"num_segments=4 must divide 15 tokens evenly: 3\.75 each"),
        ("sSplitAttentionTransformer", {"num_segments": 2}, r"num_segments=2 must divide 9 tokens evenly: 4\.5 each"),
        (ECP_CLASS, {"ff_dropout": 0.1}, r"ff_dropout=0\.1 and attn_dropout=0\.05 differ"),
    ],
)
def test_arguments_that_do_not_fit(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_official(name, {**COMMON, **OWN.get(name, {}), **changes})


def test_missing_arguments() -> None:
    with pytest.raises(
        ValueError, match="arguments of the official ECPAttentionTransformer: dim, num_segments missing"
    ):
        config_from_official(ECP_CLASS, {k: v for k, v in COMMON.items() if k != "dim"})


def test_parameters_that_do_not_fit() -> None:
    params, config = official_params(ECP_CLASS), config_of(ECP_CLASS)
    renamed = {key.replace("to_kv", "to_kvs"): value for key, value in params.items()}
    message = r"missing layers\.0\.0\.fn\.to_kv\.weight \(nearest: layers\.0\.0\.fn\.to_kvs\.weight\); missing .*"
    with pytest.raises(
        ValueError, match=message + r"unknown layers\.0\.0\.fn\.to_kvs\.weight \(nearest: .*to_kv\.weight"
    ):
        convert_params(renamed, config)
    with pytest.raises(ValueError, match=r"token_emb\.weight has shape \[17, 12\], the config asks for \[19, 12\]"):
        convert_params(params, replace(config, vocab_size=19))
    deeper = r"missing layers\.2\.0\.fn\.to_out\.bias.*; and 8 more"
    with pytest.raises(ValueError, match=deeper):
        convert_params(params, replace(config, depth=3))
    params["layers.0.0.fn.pos_emb.freqs"] = np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"layers\.0\.0\.fn\.pos_emb\.freqs are not the usual rotary frequencies"):
        convert_params(params, config)


def test_a_norm_that_is_used_is_not_dropped() -> None:
    """All but ECP use theirs, and a layer that the config does not have is unknown."""
    params = official_params(ECP_CLASS)
    with pytest.raises(ValueError, match=r"unknown layers\.1\.0\.fn\.norm\.bias"):
        convert_params(params, replace(config_of(ECP_CLASS), depth=1))
