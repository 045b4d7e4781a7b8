"""config.json of a Perceiver in `transformers` to our config. Imports no torch.

Most of what makes a model is not in that file but in the class that it names; numbers below are those classes'.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from perceivers.models.feature_config import (
    AudioFeatures,
    Conv1x1Features,
    ConvFeatures,
    FlowFeatures,
    PatchFeatures,
    PixelFeatures,
    TokenFeatures,
    VectorFeatures,
)
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
    GridHead,
    GridQueries,
    InputQueries,
    LinearHead,
    MultimodalOutputConfig,
    OutputModality,
    QueryOutputConfig,
    TiedHead,
)
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig
from perceivers.nn.options import ActivationName
from perceivers.records import from_dict

__all__ = ["ACTIVATIONS", "ARCHITECTURES", "FLOW_SCALE", "MODEL_TYPE", "SIZE", "config_from_huggingface"]

MODEL_TYPE = "perceiver"
SIZE = (224, 224)
"""Rows and columns of the pictures that the published classifiers were trained on."""
FLOW_SCALE = 1 / 100
"""What transformers multiplies optical flow with. The official notebook goes on to multiply by 20, for pixels."""

ARCHITECTURES = (
    "PerceiverForMaskedLM",
    "PerceiverForSequenceClassification",
    "PerceiverForImageClassificationLearned",
    "PerceiverForImageClassificationFourier",
    "PerceiverForImageClassificationConvProcessing",
    "PerceiverForOpticalFlow",
    "PerceiverForMultimodalAutoencoding",
)

ACTIVATIONS: dict[str, ActivationName] = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu2": "sq_relu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "leaky_relu": "leaky_relu",
    "linear": "identity",
    "mish": "mish",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
}
"""As in transformers: GELU is exact unless the file says otherwise; the official code has the tanh approximation."""


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What matters in config.json, by its names there and with the defaults of transformers."""

    num_latents: int = 256
    d_latents: int = 1280
    d_model: int = 768
    num_blocks: int = 1
    num_self_attends_per_block: int = 26
    num_self_attention_heads: int = 8
    num_cross_attention_heads: int = 8
    qk_channels: int | None = None
    v_channels: int | None = None
    cross_attention_shape_for_attention: Literal["kv", "q"] = "kv"
    self_attention_widening_factor: int = 1
    cross_attention_widening_factor: int = 1
    hidden_act: str = "gelu"
    use_query_residual: bool = True
    vocab_size: int = 262
    max_position_embeddings: int = 2048
    image_size: int = 56
    train_size: tuple[int, ...] = (368, 496)
    num_frames: int = 16
    audio_samples_per_frame: int = 1920
    samples_per_patch: int = 16
    output_shape: tuple[int, ...] = (1, 16, 224, 224)
    output_num_channels: int = 512
    _label_trainable_num_channels: int = 1024
    num_labels: int = 2

    @property
    def activation(self) -> ActivationName:
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act={self.hidden_act!r} is not built here; built are {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[self.hidden_act]

    def read(self, query_dim: int) -> dict[str, Any]:
        """What the outputs' cross-attends have in common."""
        by_query = self.cross_attention_shape_for_attention == "q" and query_dim != self.d_latents
        return {"qk_dim": query_dim if by_query else None, "activation": self.activation}


def config_from_huggingface(
    values: Mapping[str, Any], *, size: tuple[int, int] = SIZE, flow_scale: float = FLOW_SCALE
) -> PerceiverIOConfig:
    """Our config for the model that config.json describes.

    Differs from transformers in training: attention's probabilities are not dropped (`attention_probs_dropout_prob`).

    Args:
        values: What the file holds; what is left out has the default of transformers.
        size: Rows and columns of pictures, for the two classifiers with Fourier positions: transformers takes any size.
        flow_scale: What optical flow is multiplied with. As in transformers: 1 / 100; 20 / 100 makes it pixels.

    Raises:
        ValueError: An architecture, a setting or a value that this package does not build.
    """
    names = {field.name for field in fields(_Settings)}
    s: _Settings = from_dict(_Settings, {name: value for name, value in values.items() if name in names})
    if isinstance(labels := values.get("id2label"), Mapping):
        s = replace(s, num_labels=len(labels))
    listed = values.get("architectures")
    match listed[0] if isinstance(listed, list) and listed else None:
        case "PerceiverForMaskedLM":
            source, output = _text_input(s), _text_output(s)
        case "PerceiverForSequenceClassification":
            source, output = _text_input(s), _class_output(s)
        case "PerceiverForImageClassificationLearned":
            source, output = _learned_input(s), _class_output(s)
        case "PerceiverForImageClassificationFourier":
            features = PixelFeatures(shape=(*size, 3))
            source = InputConfig(features=features, positions=_fourier((224, 224)))
            output = _class_output(s)
        case "PerceiverForImageClassificationConvProcessing":
            # As in transformers: other padding than the official code's, so also other positions.
            features = ConvFeatures(shape=(*size, 3), padding="convolutions")
            source = InputConfig(features=features, positions=_fourier((56, 56)))
            output = _class_output(s)
        case "PerceiverForOpticalFlow":
            features = FlowFeatures(shape=(2, *s.train_size, 3))
            source = InputConfig(features=features, positions=_fourier(s.train_size))
            head = GridHead(shape=s.train_size, scale=flow_scale)
            output = QueryOutputConfig(queries=InputQueries(), channels=2, head=head, **s.read(source.dim))
        case "PerceiverForMultimodalAutoencoding":
            source, output = _film_input(s), _film_output(s)
        case other:
            raise ValueError(f"architecture {other!r} of transformers is not one of {', '.join(ARCHITECTURES)}")
    return PerceiverIOConfig(input=source, encoder=_encoder(s), output=output)


def _fourier(max_resolution: tuple[int, ...], *, bands: int = 64) -> FourierPositions:
    # As in transformers: spaced in float32.
    return FourierPositions(bands=bands, max_resolution=max_resolution, spacing="float32")


def _encoder(s: _Settings) -> EncoderConfig:
    values = next(width for width in (s.v_channels, s.qk_channels, s.d_latents) if width is not None)
    if values != s.d_latents:
        raise ValueError(
            f"self-attention of {values} value channels (v_channels={s.v_channels}, qk_channels={s.qk_channels}) can't "
            f"be added to latents of d_latents={s.d_latents}; transformers can't run this model either"
        )
    return EncoderConfig(
        num_latents=s.num_latents,
        dim=s.d_latents,
        blocks=s.num_blocks,
        depth=s.num_self_attends_per_block,
        heads=s.num_self_attention_heads,
        cross_heads=s.num_cross_attention_heads,
        widening=s.self_attention_widening_factor,
        cross_widening=s.cross_attention_widening_factor,
        cross_channels="input" if s.cross_attention_shape_for_attention == "kv" else "latent",
        qk_dim=s.qk_channels,
        value_dim=s.v_channels,
        query_residual=s.use_query_residual,
        # As in transformers: masks are added to scores, and no row is set to zero.
        empty="average",
        activation=s.activation,
    )


def _text_input(s: _Settings) -> InputConfig:
    tokens = TokenFeatures(vocab_size=s.vocab_size, seq_len=s.max_position_embeddings, dim=s.d_model)
    return InputConfig(features=tokens, positions=LearnedPositions(channels=s.d_model), combine="add")


def _text_output(s: _Settings) -> QueryOutputConfig:
    """As in transformers: no mask ever reaches the queries, so leave `query_mask` out."""
    return QueryOutputConfig(
        queries=GridQueries(shape=(s.max_position_embeddings,), positions=LearnedPositions(channels=s.d_model)),
        channels=None,
        head=TiedHead(vocab_size=s.vocab_size),
        heads=8,
        qk_dim=256,
        value_dim=s.d_model,
        activation=s.activation,
    )


def _learned_input(s: _Settings) -> InputConfig:
    features = Conv1x1Features(shape=(s.image_size, s.image_size, 3), channels=256)
    return InputConfig(features=features, positions=LearnedPositions(channels=256, project_dim=256))


def _class_output(s: _Settings) -> QueryOutputConfig:
    """As in transformers: the query is added in all three picture classifiers; not so in the official learned one."""
    return QueryOutputConfig(
        queries=GridQueries(positions=LearnedPositions(channels=s.d_latents)),
        channels=s.num_labels,
        head=ClassHead(),
        query_residual=True,
        activation=s.activation,
    )


def _film_parts(s: _Settings) -> tuple[AudioFeatures, FourierPositions, FourierPositions]:
    """Sound, its positions, and those of pictures."""
    samples = s.num_frames * s.audio_samples_per_frame
    resolution = (s.num_frames, s.image_size, s.image_size)
    return (
        AudioFeatures(samples=samples, samples_per_patch=s.samples_per_patch),
        _fourier((samples,), bands=192),
        _fourier(resolution, bands=32),
    )


def _film_input(s: _Settings) -> MultimodalInputConfig:
    audio, audio_positions, image_positions = _film_parts(s)
    image = PatchFeatures(shape=(*s.output_shape[1:], 3), patch=4)
    label = InputConfig(features=VectorFeatures(dim=s.num_labels))
    return MultimodalInputConfig(
        modalities=(
            Modality(name="audio", input=InputConfig(features=audio, positions=audio_positions), mask_share=0.0),
            Modality(name="image", input=InputConfig(features=image, positions=image_positions), mask_share=0.0),
            Modality(name="label", input=label, mask_share=1.0),
        )
    )


def _film_output(s: _Settings) -> MultimodalOutputConfig:
    audio, audio_positions, image_positions = _film_parts(s)
    label_positions = LearnedPositions(channels=s._label_trainable_num_channels)
    modalities = (
        OutputModality(
            name="audio",
            queries=GridQueries(shape=audio.grid, positions=audio_positions),
            head=AudioHead(samples_per_patch=s.samples_per_patch),
        ),
        OutputModality(
            name="image",
            queries=GridQueries(shape=s.output_shape[1:], positions=image_positions),
            head=LinearHead(channels=3),
        ),
        OutputModality(
            name="label", queries=GridQueries(positions=label_positions), head=ClassHead(classes=s.num_labels)
        ),
    )
    plain = MultimodalOutputConfig(modalities=modalities, channels=s.output_num_channels)
    return replace(plain, **s.read(plain.query_dim))
