"""From a config to a model."""

from torch import nn

from perceivers.models.config import ModelConfig
from perceivers.models.perceiver_ar import PerceiverAR


def build(config: ModelConfig) -> nn.Module:
    """The model that `config` describes, with fresh weights."""
    return PerceiverAR(config)
