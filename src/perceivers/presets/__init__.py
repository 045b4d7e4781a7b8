"""Complete configurations by name: small ones to start from, and the published settings. Imports no torch.

`perceivers train NAME` trains one, `perceivers show NAME` says how large it is.
"""

import difflib
from collections.abc import Callable
from pathlib import Path

from perceivers.nearest import no_such, suggestion
from perceivers.presets.masked import masked_small
from perceivers.presets.pictures import fashion_classes, fashion_mae, flow_small, mnist, mnist_permuted
from perceivers.presets.published import copy_32, copy_131072, imagenet64, maestro_symbolic, pg19
from perceivers.presets.sequences import (
    bach_demo,
    bytes_1b,
    bytes_decoder,
    bytes_ecp,
    bytes_perceiver_ar,
    copy_4096,
    copy_tiny,
    music_small,
    text_small,
)
from perceivers.train.config import TrainConfig

PRESETS: dict[str, Callable[[], TrainConfig]] = {
    preset.__name__: preset
    for preset in (
        bach_demo,
        music_small,
        text_small,
        bytes_ecp,
        bytes_perceiver_ar,
        bytes_decoder,
        bytes_1b,
        copy_tiny,
        copy_4096,
        masked_small,
        mnist,
        mnist_permuted,
        fashion_mae,
        fashion_classes,
        flow_small,
        maestro_symbolic,
        pg19,
        imagenet64,
        copy_32,
        copy_131072,
    )
}


def preset(name: str) -> TrainConfig:
    """The configuration called `name`.

    Raises:
        ValueError: There is none; the nearest name, or run, is suggested.
        FileNotFoundError: It is a path that leads nowhere; likewise.
    """
    if name in PRESETS:
        return PRESETS[name]()
    if Path(name).name != name:
        raise FileNotFoundError(no_such(name))
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"; did you mean {near[0]}?" if near else suggestion(name) or f"; there are {', '.join(PRESETS)}"
    raise ValueError(f"no preset or file is called {name!r}{hint}")


def summary(name: str) -> str:
    """What the preset called `name` is, in one line."""
    return (PRESETS[name].__doc__ or "").split("\n")[0]
