"""Published Perceivers as configs: what the papers and the official notebooks call them. Imports no torch."""

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
    AverageOutputConfig,
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


def perceiver_imagenet() -> PerceiverIOConfig:
    """The Perceiver of the first paper on ImageNet: 8 cross-attends, shared from the second on.

    Source: arXiv:2103.03206, section 4.1. No official code repeats the cross-attend.
    """
    return PerceiverIOConfig(
        input=InputConfig(features=PixelFeatures(), positions=FourierPositions()),
        encoder=EncoderConfig(cross_attends=8, cross_sharing="after_first", block_sharing="all"),
        output=AverageOutputConfig(),
    )


def _class_query(*, residual: bool) -> QueryOutputConfig:
    return QueryOutputConfig(queries=GridQueries(), channels=1000, head=ClassHead(), query_residual=residual)


def imagenet_learned() -> PerceiverIOConfig:
    """Perceiver IO on ImageNet with learned positions: 62,255,848 parameters."""
    return PerceiverIOConfig(
        input=InputConfig(features=Conv1x1Features(), positions=LearnedPositions(channels=256, project_dim=256)),
        # As in the reference: of the three only this one adds no query to what it reads.
        output=_class_query(residual=False),
    )


def imagenet_fourier() -> PerceiverIOConfig:
    """Perceiver IO on ImageNet with Fourier features: 48,440,627 parameters."""
    return PerceiverIOConfig(
        input=InputConfig(features=PixelFeatures(), positions=FourierPositions(max_resolution=(224, 224))),
        output=_class_query(residual=True),
    )


def imagenet_conv() -> PerceiverIOConfig:
    """Perceiver IO on ImageNet with a convolution first: 48,646,522 parameters."""
    return PerceiverIOConfig(
        input=InputConfig(features=ConvFeatures(), positions=FourierPositions(max_resolution=(56, 56))),
        output=_class_query(residual=True),
    )


def masked_language_model() -> PerceiverIOConfig:
    """Perceiver IO on UTF-8 bytes: 201,108,230 parameters. Padding is both input mask and query mask."""
    positions = LearnedPositions(channels=768)
    return PerceiverIOConfig(
        input=InputConfig(features=TokenFeatures(), positions=positions, combine="add"),
        encoder=EncoderConfig(
            num_latents=256, dim=1280, blocks=1, depth=26, heads=8, cross_heads=8, qk_dim=256, value_dim=1280
        ),
        output=QueryOutputConfig(
            queries=GridQueries(shape=(2048,), positions=positions),
            channels=None,
            head=TiedHead(),
            heads=8,
            qk_dim=256,
            value_dim=768,
        ),
    )


def optical_flow() -> PerceiverIOConfig:
    """Perceiver IO on pairs of frames with values in -1..1; flow in pixels: 41,057,134 parameters."""
    return PerceiverIOConfig(
        input=InputConfig(features=FlowFeatures(), positions=FourierPositions(max_resolution=(368, 496))),
        encoder=EncoderConfig(num_latents=2048, dim=512, blocks=1, depth=24, heads=16),
        output=QueryOutputConfig(
            queries=InputQueries(),
            channels=2,
            # The official decoder divides by 100, and its notebook multiplies by 20.
            head=GridHead(shape=(368, 496), scale=20 / 100),
            zero_channels=True,
        ),
    )


def video_autoencoder() -> PerceiverIOConfig:
    """Perceiver IO on films with sound and a label, which is hidden: 19,858,855 parameters."""
    audio_positions = FourierPositions(bands=192, max_resolution=(30720,))
    image_positions = FourierPositions(bands=32, max_resolution=(16, 56, 56))
    audio = InputConfig(features=AudioFeatures(samples=30720, samples_per_patch=16), positions=audio_positions)
    image = InputConfig(features=PatchFeatures(shape=(16, 224, 224, 3), patch=4), positions=image_positions)
    label = InputConfig(features=VectorFeatures(dim=700))
    return PerceiverIOConfig(
        input=MultimodalInputConfig(
            modalities=(
                Modality(name="audio", input=audio, mask_share=0.0),
                Modality(name="image", input=image, mask_share=0.0),
                Modality(name="label", input=label, mask_share=1.0),
            ),
        ),
        encoder=EncoderConfig(num_latents=784, dim=512, blocks=1, depth=8, heads=8),
        output=MultimodalOutputConfig(
            modalities=(
                OutputModality(
                    name="audio",
                    queries=GridQueries(shape=(1920,), positions=audio_positions),
                    head=AudioHead(samples_per_patch=16),
                ),
                OutputModality(
                    name="image",
                    queries=GridQueries(shape=(16, 224, 224), positions=image_positions),
                    head=LinearHead(channels=3),
                ),
                OutputModality(name="label", queries=GridQueries(), head=ClassHead(classes=700)),
            ),
        ),
    )
