import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from perceivers.convert.huggingface_config import ARCHITECTURES, config_from_huggingface
from perceivers.convert.huggingface_export import config_to_huggingface
from perceivers.models import perceiver_published
from perceivers.models.feature_config import AudioFeatures
from perceivers.models.input_config import InputConfig, Modality, MultimodalInputConfig
from perceivers.models.perceiver_config import PerceiverIOConfig


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_config_comes_back(name: str) -> None:
    options = {"num_cross_attention_heads": 4, "d_latents": 84, "num_self_attention_heads": 7, "hidden_act": "silu"}
    if name.endswith("LM"):
        options |= {"qk_channels": 28, "v_channels": 84, "d_model": 24}
    else:
        options |= {"cross_attention_shape_for_attention": "q", "num_labels": 5}
    config = config_from_huggingface({"architectures": [name], **options}, size=(31, 37))
    values = config_to_huggingface(config)
    assert values["architectures"] == [name]
    assert config_from_huggingface(values, size=(31, 37)) == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            perceiver_published.imagenet_learned,
            "Learned .*another model: output.query_residual=False",
        ),
        (perceiver_published.imagenet_conv, "input.features.padding='same', there 'convolutions'"),
        (perceiver_published.perceiver_imagenet, "no class of transformers has this input .pixels. and this output"),
    ],
)
def test_models_that_transformers_has_not(make: Callable[[], PerceiverIOConfig], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_to_huggingface(make())


def changed(part: str, **options: Any) -> PerceiverIOConfig:
    config = perceiver_published.optical_flow()
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **options)})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed("output", heads=2), r"another model: output\.heads=2, there 1"),
        (changed("output", activation="relu"), r"output\.activation='relu', there 'gelu_tanh'"),
        (changed("encoder", blocks=2, block_sharing="none"), r"encoder\.block_sharing='none', there 'all'"),
        (changed("encoder", blocks=2, cross_attends=2), r"encoder\.cross_attends=2, there 1"),
        (changed("encoder", qk_dim=256), "self-attention of 256 value channels"),
        (changed("encoder", dim=512, cross_heads=7, cross_channels="input"), "to divide encoder.dim=512"),
    ],
)
def test_differences_are_named(config: PerceiverIOConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_to_huggingface(config)


def test_what_only_training_needs_does_not_matter() -> None:
    assert config_to_huggingface(changed("encoder", dropout=0.1, init_std=0.5, block_sharing="none"))


def test_other_modalities_are_refused() -> None:
    config = perceiver_published.video_autoencoder()
    sound = Modality(name="sound", input=InputConfig(features=AudioFeatures()))
    config = dataclasses.replace(config, input=MultimodalInputConfig(modalities=(sound,)))
    with pytest.raises(ValueError, match="this model reads sound and gives audio, image, label"):
        config_to_huggingface(config)
