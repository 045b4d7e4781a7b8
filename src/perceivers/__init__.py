"""The Perceiver family in PyTorch.

    import perceivers

    model = perceivers.PerceiverAR(perceivers.PerceiverARConfig(max_seq_len=8192))
    run = perceivers.load("runs/a")
    ids = run.generate(max_tokens=512)
    perceivers.write(ids, "new.mid")

Names are imported when they are first used: `import perceivers` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perceivers.classifier import PerceiverClassifier
    from perceivers.generate.config import DecodingConfig, SamplingConfig
    from perceivers.generate.files import write
    from perceivers.generate.loaded import Loaded, load
    from perceivers.models.build import build
    from perceivers.models.ecp import ECP
    from perceivers.models.ecp_config import ECPConfig
    from perceivers.models.hip import HiP
    from perceivers.models.hip_config import HiPConfig
    from perceivers.models.perceiver_ar import PerceiverAR
    from perceivers.models.perceiver_ar_config import PerceiverARConfig
    from perceivers.models.perceiver_config import PerceiverIOConfig
    from perceivers.models.perceiver_io import PerceiverIO

__version__ = "0.1.0"

_HOMES = {
    "DecodingConfig": "generate.config",
    "ECP": "models.ecp",
    "ECPConfig": "models.ecp_config",
    "HiP": "models.hip",
    "HiPConfig": "models.hip_config",
    "Loaded": "generate.loaded",
    "PerceiverAR": "models.perceiver_ar",
    "PerceiverARConfig": "models.perceiver_ar_config",
    "PerceiverClassifier": "classifier",
    "PerceiverIO": "models.perceiver_io",
    "PerceiverIOConfig": "models.perceiver_config",
    "SamplingConfig": "generate.config",
    "build": "models.build",
    "load": "generate.loaded",
    "write": "generate.files",
}

__all__ = [
    "ECP",
    "DecodingConfig",
    "ECPConfig",
    "HiP",
    "HiPConfig",
    "Loaded",
    "PerceiverAR",
    "PerceiverARConfig",
    "PerceiverClassifier",
    "PerceiverIO",
    "PerceiverIOConfig",
    "SamplingConfig",
    "build",
    "load",
    "write",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'perceivers' has no attribute {name!r}")
    return getattr(import_module(f"perceivers.{_HOMES[name]}"), name)
