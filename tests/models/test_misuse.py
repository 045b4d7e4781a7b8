from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest

from perceivers.models.build import build
from perceivers.models.ecp import ECP
from perceivers.models.hip import HiP
from perceivers.models.input_config import InputConfig
from perceivers.models.perceiver_ar import PerceiverAR
from perceivers.models.perceiver_ar_config import PerceiverARConfig
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig
from perceivers.models.perceiver_io import PerceiverIO, build_perceiver_io


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    """Types are not checked, as outside of tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_a_perceiver_io_of_configurations_points_to_build() -> None:
    config: Any = PerceiverIOConfig(encoder=EncoderConfig(num_latents=3, dim=8, blocks=1, depth=1, heads=2))
    message = r"PerceiverIO puts modules together, but input is an InputConfig; perceivers\.build\("
    with pytest.raises(TypeError, match=message):
        PerceiverIO(input=config.input, encoder=config.encoder, output=config.output)
    model = build_perceiver_io(config)
    with pytest.raises(TypeError, match="but encoder is an EncoderConfig"):
        PerceiverIO(input=model.input, encoder=config.encoder, output=model.output)
    with pytest.raises(TypeError, match="but output is the class InputConfig"):
        PerceiverIO(input=model.input, encoder=model.encoder, output=InputConfig)  # pyright: ignore
    PerceiverIO(input=model.input, encoder=model.encoder, output=model.output)


@pytest.mark.parametrize("model", [PerceiverAR, ECP, HiP])
def test_a_model_of_another_ones_configuration_says_whose_it_wants(model: Any) -> None:
    message = rf"{model.__name__} is made of a {model.__name__}Config, not of a PerceiverIOConfig; perceivers\.build"
    with pytest.raises(TypeError, match=message):
        model(PerceiverIOConfig())
    with pytest.raises(TypeError, match="not of a dict"):
        model({"dim": 3})


def test_what_is_no_model_is_not_built() -> None:
    wrong: Any = EncoderConfig()
    with pytest.raises(TypeError, match=r"a model is made of a PerceiverARConfig or .*, not of an EncoderConfig"):
        build(wrong)
    with pytest.raises(TypeError, match="not of the class PerceiverARConfig"):
        build(PerceiverARConfig)  # pyright: ignore
