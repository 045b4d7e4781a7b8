"""What a model is: one frozen dataclass a family. Imports no torch."""

from perceivers.models.ecp_config import ECPConfig
from perceivers.models.hip_config import HiPConfig
from perceivers.models.perceiver_ar_config import PerceiverARConfig
from perceivers.models.perceiver_config import PerceiverIOConfig

ModelConfig = PerceiverARConfig | ECPConfig | PerceiverIOConfig | HiPConfig

SequenceConfig = PerceiverARConfig | ECPConfig
"""Models that predict the next token."""
