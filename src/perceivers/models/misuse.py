"""What goes wrong when a model is made by hand, said where it goes wrong."""

from typing import get_args

from torch import nn

from perceivers.models.config import ModelConfig

__all__ = ["check_config", "check_model_config", "check_parts"]


def check_config(model: nn.Module, config: object, kind: type) -> None:
    """Check that a model is made of its own kind of configuration.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(config, kind):
        raise TypeError(
            f"{type(model).__name__} is made of a {kind.__name__}, not of {_article(config)}; "
            "perceivers.build(config) makes the model of any configuration"
        )


def check_model_config(config: object) -> None:
    """Check that a model can be made of this.

    Raises:
        TypeError: It can not.
    """
    if not isinstance(config, kinds := get_args(ModelConfig)):
        raise TypeError(
            f"a model is made of a {' or '.join(kind.__name__ for kind in kinds)}, not of {_article(config)}"
        )


def check_parts(model: nn.Module, **parts: object) -> None:
    """Check that a model is put together from modules.

    Raises:
        TypeError: A part is a configuration, or something else.
    """
    for name, part in parts.items():
        if not isinstance(part, nn.Module):
            raise TypeError(
                f"{type(model).__name__} puts modules together, but {name} is {_article(part)}; "
                "perceivers.build(perceivers.PerceiverIOConfig(input=..., encoder=..., output=...)) makes it of "
                "configurations"
            )


def _article(value: object) -> str:
    name = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
    return name if isinstance(value, type) else f"a{'n' * (name[0] in 'AEIOU')} {name}"
