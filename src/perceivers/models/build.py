"""From a config to a model."""

from typing import assert_never

from torch import nn

from perceivers.models.config import ModelConfig
from perceivers.models.ecp import ECP
from perceivers.models.ecp_config import ECPConfig
from perceivers.models.hip import HiP
from perceivers.models.hip_config import HiPConfig
from perceivers.models.misuse import check_model_config
from perceivers.models.perceiver_ar import PerceiverAR
from perceivers.models.perceiver_ar_config import PerceiverARConfig
from perceivers.models.perceiver_config import PerceiverIOConfig
from perceivers.models.perceiver_io import build_perceiver_io


def build(config: ModelConfig) -> nn.Module:
    """The model that `config` describes, with fresh weights.

    Raises:
        TypeError: It is the configuration of a part, a module, or something else.
    """
    check_model_config(config)
    match config:
        case PerceiverARConfig():
            return PerceiverAR(config)
        case ECPConfig():
            return ECP(config)
        case PerceiverIOConfig():
            return build_perceiver_io(config)
        case HiPConfig():
            return HiP(config)
        case _:
            assert_never(config)
