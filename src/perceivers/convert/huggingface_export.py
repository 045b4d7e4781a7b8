"""Our config to config.json of a Perceiver in `transformers`. Imports no torch."""

from collections.abc import Iterator
from typing import Any

from perceivers.convert.huggingface_config import (
    ACTIVATIONS,
    ARCHITECTURES,
    FLOW_SCALE,
    MODEL_TYPE,
    SIZE,
    config_from_huggingface,
)
from perceivers.models.feature_config import (
    Conv1x1Features,
    ConvFeatures,
    FlowFeatures,
    PixelFeatures,
    TokenFeatures,
)
from perceivers.models.input_config import FourierPositions, InputConfig, MultimodalInputConfig
from perceivers.models.output_config import ClassHead, GridHead, MultimodalOutputConfig, QueryOutputConfig, TiedHead
from perceivers.models.perceiver_config import PerceiverIOConfig
from perceivers.nn.options import ActivationName
from perceivers.records import to_dict

__all__ = ["config_to_huggingface"]

_IGNORED = {"backend", "cross_sharing", "dropout", "empty", "init_std", "spacing", "zero_channels"}
"""Fields that results of a trained model do not depend on, but for rounding and for rows that are masked as a whole."""


def config_to_huggingface(config: PerceiverIOConfig) -> dict[str, Any]:
    """What config.json must hold for transformers to build the same model.

    Raises:
        ValueError: None of its classes builds this model; says what it would build instead.
    """
    architecture, values = _architecture(config)
    encoder = config.encoder
    values = {"architectures": [architecture], "model_type": MODEL_TYPE} | values
    values |= {
        "num_latents": encoder.num_latents,
        "d_latents": encoder.dim,
        "num_blocks": encoder.blocks,
        "num_self_attends_per_block": encoder.depth,
        "num_self_attention_heads": encoder.heads,
        "num_cross_attention_heads": encoder.cross_heads,
        "qk_channels": encoder.qk_dim,
        "v_channels": encoder.value_dim,
        "cross_attention_shape_for_attention": "kv" if encoder.cross_channels == "input" else "q",
        "self_attention_widening_factor": encoder.widening,
        "cross_attention_widening_factor": encoder.cross_widening,
        "hidden_act": hidden_act(encoder.activation),
        "use_query_residual": encoder.query_residual,
        "attention_probs_dropout_prob": 0.0,
    }
    if encoder.dim % encoder.cross_heads:
        raise ValueError(
            f"transformers wants cross_heads={encoder.cross_heads} to divide encoder.dim={encoder.dim}, though nothing "
            "depends on it"
        )
    source, head = config.input, getattr(config.output, "head", None)
    shape = source.features.shape if isinstance(source, InputConfig) else ()
    theirs = config_from_huggingface(
        values,
        size=(shape[0], shape[1]) if len(shape) == 3 else SIZE,
        flow_scale=head.scale if isinstance(head, GridHead) else FLOW_SCALE,
    )
    if differences := list(_differences(_comparable(config), _comparable(theirs), "")):
        raise ValueError(f"{architecture} of transformers is another model: {'; '.join(differences[:6])}")
    return values


def hidden_act(activation: ActivationName) -> str:
    """What transformers calls an activation.

    Raises:
        ValueError: It has none like it.
    """
    for name, ours in ACTIVATIONS.items():
        if ours == activation:
            return name
    raise ValueError(
        f"transformers has no activation called {activation!r}; of ours it has {', '.join(ACTIVATIONS.values())}"
    )


def _architecture(config: PerceiverIOConfig) -> tuple[str, dict[str, Any]]:
    """The class whose models are of this kind, and what it takes from config.json besides the encoder."""
    features = config.input.features if isinstance(config.input, InputConfig) else None
    match features, config.output:
        case TokenFeatures(), QueryOutputConfig(head=TiedHead()):
            return "PerceiverForMaskedLM", _text_values(features)
        case TokenFeatures(), QueryOutputConfig(head=ClassHead(), channels=int(classes)):
            return "PerceiverForSequenceClassification", _text_values(features) | _labels(classes)
        case Conv1x1Features(), QueryOutputConfig(head=ClassHead(), channels=int(classes)):
            return "PerceiverForImageClassificationLearned", {"image_size": features.shape[0], **_labels(classes)}
        case PixelFeatures(), QueryOutputConfig(head=ClassHead(), channels=int(classes)):
            return "PerceiverForImageClassificationFourier", _labels(classes)
        case ConvFeatures(), QueryOutputConfig(head=ClassHead(), channels=int(classes)):
            return "PerceiverForImageClassificationConvProcessing", _labels(classes)
        case FlowFeatures(), QueryOutputConfig(head=GridHead()):
            return "PerceiverForOpticalFlow", {"train_size": list(features.grid)}
        case None, MultimodalOutputConfig():
            return "PerceiverForMultimodalAutoencoding", _film_values(config)
    raise ValueError(
        f"no class of transformers has this input ({features.kind if features else 'multimodal'}) and this output "
        f"({config.output.kind}); it has {', '.join(ARCHITECTURES)}"
    )


def _text_values(tokens: TokenFeatures) -> dict[str, Any]:
    return {"vocab_size": tokens.vocab_size, "max_position_embeddings": tokens.seq_len, "d_model": tokens.dim}


def _labels(classes: int) -> dict[str, Any]:
    names = [f"LABEL_{i}" for i in range(classes)]
    return {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}


def _film_values(config: PerceiverIOConfig) -> dict[str, Any]:
    assert isinstance(config.input, MultimodalInputConfig)
    assert isinstance(config.output, MultimodalOutputConfig)
    inputs = {modality.name: modality.input for modality in config.input.modalities}
    queries = {modality.name: modality.queries for modality in config.output.modalities}
    if not inputs.keys() == queries.keys() == {"audio", "image", "label"}:
        raise ValueError(
            "PerceiverForMultimodalAutoencoding reads and gives audio, image and label; this model reads "
            f"{', '.join(inputs)} and gives {', '.join(queries)}"
        )
    audio, positions = inputs["audio"].features, inputs["image"].positions
    resolution = positions.max_resolution if isinstance(positions, FourierPositions) else None
    frames, side = resolution[:2] if resolution else (1, 1)
    return {
        "num_frames": frames,
        "image_size": side,
        "audio_samples_per_frame": audio.shape[0] // frames,
        "samples_per_patch": audio.dim,
        "output_shape": [1, *queries["image"].shape],
        "output_num_channels": config.output.channels,
        "_label_trainable_num_channels": queries["label"].dim,
        **_labels(inputs["label"].features.dim),
    }


def _comparable(config: PerceiverIOConfig) -> dict[str, Any]:
    values = to_dict(config)
    if config.encoder.blocks == 1:
        del values["encoder"]["block_sharing"]
    return values


def _differences(ours: Any, theirs: Any, path: str) -> Iterator[str]:
    """Fields that results depend on and that are not the same: "encoder.heads=5, there 7"."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in [*ours, *(theirs.keys() - ours.keys())]:
            if name not in _IGNORED:
                yield from _differences(ours.get(name), theirs.get(name), f"{path}.{name}" if path else name)
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from _differences(one, other, f"{path}[{i}]")
    elif ours != theirs:
        yield f"{path}={ours!r}, there {theirs!r}"
