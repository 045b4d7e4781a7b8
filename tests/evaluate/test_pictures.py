from typing import Any

import pytest
import torch
from torch import nn

from perceivers.evaluate.pictures import (
    check_pictures,
    class_logits,
    num_classes,
    reconstruction,
    reconstruction_errors,
)
from perceivers.models.build import build
from perceivers.models.ecp_config import ECPConfig
from perceivers.models.feature_config import PixelFeatures, TokenFeatures
from perceivers.models.hip_config import DataSet, HiPConfig, Modality
from perceivers.models.input_config import FourierPositions, InputConfig
from perceivers.models.output_config import AverageOutputConfig, ClassHead, GridQueries, QueryOutputConfig
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig

ENCODER = EncoderConfig(num_latents=3, dim=8, blocks=1, depth=1, heads=2)
INPUT = InputConfig(features=PixelFeatures(shape=(3, 5, 2)), positions=FourierPositions(bands=2))
PERCEIVER = PerceiverIOConfig(input=INPUT, encoder=ENCODER, output=AverageOutputConfig(classes=7))
IMAGE, LABEL = Modality(name="image", positions=15, channels=2), Modality(name="label", positions=1, channels=7)


def hip(*modalities: Modality, labels: tuple[str, ...] = ("label",), **changes: Any) -> HiPConfig:
    return HiPConfig(
        data_sets=(DataSet(name="pictures", modalities=modalities or (IMAGE, LABEL)),),
        label_modalities=labels,
        **{
            "groups": (3, 1, 3),
            "latents": (2, 3, 2),
            "dims": (8, 8, 8),
            "depths": (1, 1, 1),
            "heads": (2, 2, 2),
            "embed_dim": 8,
            **changes,
        },
    )


def drawn(config: Any) -> nn.Module:
    """A model none of whose weights are zero."""
    model = build(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(2, 3, 5, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("config", [PERCEIVER, hip()])
def test_one_logit_a_class(config: Any, pixels: torch.Tensor) -> None:
    assert class_logits(drawn(config), pixels).shape == (2, 7)


def test_hidden_pixels_are_not_seen(pixels: torch.Tensor) -> None:
    model = drawn(hip())
    hidden = torch.zeros(2, 15, dtype=torch.bool)
    hidden[:, [2, 11]] = True
    other = pixels.clone()
    other.flatten(1, 2)[hidden] = 0.5
    torch.testing.assert_close(reconstruction(model, pixels, hidden), reconstruction(model, other, hidden))
    torch.testing.assert_close(class_logits(model, pixels, hidden=hidden), class_logits(model, other, hidden=hidden))
    assert not torch.allclose(class_logits(model, pixels), class_logits(model, other))


def test_errors_are_those_of_hidden_pixels(pixels: torch.Tensor) -> None:
    model = drawn(hip())
    hidden = torch.zeros(2, 15, dtype=torch.bool)
    hidden[0, 7] = True
    errors = reconstruction_errors(model, pixels, hidden)
    expected = (reconstruction(model, pixels, hidden) - pixels)[0, 1, 2]
    torch.testing.assert_close(errors, expected[None])


def test_the_class_itself_is_never_an_input(pixels: torch.Tensor) -> None:
    """Logits of a picture depend on pixels alone: the label's value is hidden, and so is what embeds it."""
    model = drawn(hip())
    class_logits(model, pixels).sum().backward()
    assert model.get_submodule("modalities.image.embed").weight.grad.abs().sum() > 0  # pyright: ignore
    gradient = model.get_submodule("modalities.label.embed").weight.grad  # pyright: ignore
    assert gradient is None or gradient.abs().sum() == 0


@pytest.mark.parametrize(
    ("config", "shape", "classes", "message"),
    [
        (PERCEIVER, (3, 7, 2), None, r"pictures are 3 x 7 with 2 channels, the model reads \(3, 5, 2\)"),
        (PERCEIVER, (3, 5, 2), 11, "pictures have 11 classes, the model knows 7"),
        (hip(), (3, 7, 2), None, r"have 3 x 7 = 21 pixels of 2 channels, the model's modality 'image' 15 of 2"),
        (hip(), (3, 5, 1), None, r"15 pixels of 1 channels, the model's modality 'image' 15 of 2"),
        (hip(), (3, 5, 2), 11, "pictures have 11 classes, the model knows 7"),
        (hip(labels=()), (3, 5, 2), None, "needs one data set with one modality"),
        (hip(IMAGE, labels=()), (3, 5, 2), 7, "a class is one modality of one position"),
        (ECPConfig(), (3, 5, 2), None, "a model of kind 'ecp' reads no pictures"),
    ],
)
def test_pictures_that_a_model_can_not_read(config: Any, shape: Any, classes: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_pictures(config, shape, classes=classes)


def test_pictures_that_fit() -> None:
    check_pictures(PERCEIVER, (3, 5, 2), classes=7)
    check_pictures(hip(), (5, 3, 2), classes=None)


def test_classes_of_a_query() -> None:
    query = QueryOutputConfig(queries=GridQueries(), channels=11, head=ClassHead())
    assert num_classes(PerceiverIOConfig(input=INPUT, encoder=ENCODER, output=query)) == 11
    words = PerceiverIOConfig(
        input=InputConfig(features=TokenFeatures(seq_len=5)), encoder=ENCODER, output=QueryOutputConfig()
    )
    with pytest.raises(ValueError, match="'perceiver_io' with this output gives no class"):
        num_classes(words)
