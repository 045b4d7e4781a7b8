"""How models see pictures: classes from a Perceiver or a Hierarchical Perceiver, hidden pixels from the latter.

A Hierarchical Perceiver for pictures has one modality in groups, the pixels row by row, and perhaps one that enters and
leaves at the processor, the class: one position whose channels are the logits. Its input is never shown.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from perceivers.models.config import ModelConfig
from perceivers.models.feature_config import Shape
from perceivers.models.hip_config import HiPConfig, Modality
from perceivers.models.input_config import InputConfig
from perceivers.models.output_config import AverageOutputConfig, ClassHead, QueryOutputConfig
from perceivers.models.perceiver_config import PerceiverIOConfig

Pixels = Float[Tensor, "batch rows columns channels"]


def class_logits(
    model: nn.Module, pixels: Pixels, *, hidden: Bool[Tensor, "batch positions"] | None = None
) -> Float[Tensor, "batch classes"]:
    """Logits of each picture's class.

    Args:
        model: A Perceiver with one output a picture, or a Hierarchical Perceiver as described above.
        pixels: In -1..1.
        hidden: Pixels that a Hierarchical Perceiver does not see; others see all.
    """
    if isinstance(model.config, HiPConfig):
        return _hip(model, pixels, hidden, label_modality(model.config).name)[:, 0]
    return model(pixels)


def reconstruction_errors(
    model: nn.Module, pixels: Pixels, hidden: Bool[Tensor, "batch positions"]
) -> Float[Tensor, "hidden channels"]:
    """Prediction less truth at each number of the hidden pixels of all pictures."""
    return (reconstruction(model, pixels, hidden).flatten(1, 2) - pixels.flatten(1, 2))[hidden]


def reconstruction(model: nn.Module, pixels: Pixels, hidden: Bool[Tensor, "batch positions"]) -> Pixels:
    """What a Hierarchical Perceiver makes of pictures without their hidden pixels."""
    name = image_modality(model.config).name  # pyright: ignore[reportArgumentType]
    return _hip(model, pixels, hidden, name).view_as(pixels)


def _hip(model: nn.Module, pixels: Pixels, hidden: Bool[Tensor, "batch positions"] | None, wanted: str) -> Tensor:
    config = model.config
    assert isinstance(config, HiPConfig)
    image = image_modality(config)
    inputs, masked = {image.name: pixels.flatten(1, 2)}, {}
    if hidden is not None:
        masked[image.name] = hidden
    if config.label_modalities:
        label = label_modality(config)
        inputs[label.name] = pixels.new_zeros(len(pixels), 1, label.channels)
        masked[label.name] = torch.ones(len(pixels), 1, dtype=torch.bool, device=pixels.device)
    return model(inputs, masked=masked, wanted=[wanted])[wanted]


def image_modality(config: HiPConfig) -> Modality:
    """The one modality in groups.

    Raises:
        ValueError: There are several, or several data sets.
    """
    if len(config.data_sets) == 1:
        grouped = [m for m in config.data_sets[0].modalities if m.name not in config.label_modalities]
        if len(grouped) == 1:
            return grouped[0]
    raise ValueError("this Hierarchical Perceiver reads more than pictures: it needs one data set with one modality")


def label_modality(config: HiPConfig) -> Modality:
    """The modality that is the class.

    Raises:
        ValueError: There is none, or it is no class.
    """
    labels = [m for d in config.data_sets for m in d.modalities if m.name in config.label_modalities]
    if len(labels) != 1 or labels[0].positions != 1:
        raise ValueError(f"label_modalities={config.label_modalities}: a class is one modality of one position")
    return labels[0]


def check_pictures(config: ModelConfig, shape: Shape, *, classes: int | None) -> None:
    """Check that a model reads pictures of a shape, and knows their classes.

    Args:
        config: The model's.
        shape: Rows, columns, channels.
        classes: How many; None where pictures need no class.

    Raises:
        ValueError: It reads others, or none; says what to set.
    """
    rows, columns, channels = shape
    match config:
        case PerceiverIOConfig(input=InputConfig(features=features)):
            if features.shape != shape:
                raise ValueError(
                    f"the pictures are {rows} x {columns} with {channels} channels, the model reads {features.shape}: "
                    f"--model.input.features.shape {rows} {columns} {channels}, or prepare them with --size"
                )
        case HiPConfig():
            image = image_modality(config)
            if (image.positions, image.channels) != (rows * columns, channels):
                raise ValueError(
                    f"the pictures have {rows} x {columns} = {math.prod(shape[:2])} pixels of {channels} channels, the "
                    f"model's modality {image.name!r} {image.positions} of {image.channels}"
                )
        case _:
            raise ValueError(f"a model of kind {config.kind!r} reads no pictures: choose another preset")
    if classes is not None and num_classes(config) < classes:
        raise ValueError(f"the pictures have {classes} classes, the model knows {num_classes(config)}")


def num_classes(config: ModelConfig) -> int:
    """Classes that a model tells apart.

    Raises:
        ValueError: It gives something else than a class.
    """
    match config:
        case HiPConfig():
            return label_modality(config).channels
        case PerceiverIOConfig(output=AverageOutputConfig(classes=classes)):
            return classes
        case PerceiverIOConfig(output=QueryOutputConfig(head=ClassHead(classes=classes), channels=channels)):
            if (known := classes or channels) is not None:
                return known
    raise ValueError(f"a model of kind {config.kind!r} with this output gives no class")
