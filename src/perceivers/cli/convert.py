"""`perceivers convert`: published weights to a saved model of ours."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from perceivers.cli.flags import parse

USAGE = """usage: perceivers convert official-ar SOURCE OUT [--tokenizer NAME]

  official-ar   weights of the official Perceiver AR (JAX), .safetensors or .dill, with its arguments in a .json beside
"""


@dataclass(frozen=True, kw_only=True)
class ConvertFlags:
    """Arguments of `perceivers convert official-ar`."""

    source: Positional[Path]
    """Weights: .safetensors with names params/..., or a pickle of the official code; SOURCE.json has the arguments."""
    out: Positional[Path]
    """Directory to make."""
    tokenizer: Literal["ids", "performance", "bytes", "copy"] = "ids"
    """What the model's tokens stand for."""


def run(args: Sequence[str]) -> int:
    """Parse, convert, say what was made."""
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if args else 2
    if args[0] != "official-ar":
        raise ValueError(f"can't convert {args[0]!r}, only official-ar: perceivers convert official-ar SOURCE OUT")
    flags = parse(
        ConvertFlags,
        args[1:],
        prog="perceivers convert official-ar",
        description="Convert weights of the official Perceiver AR.",
    )
    from perceivers.convert.official_ar import convert
    from perceivers.hub import CONFIG, load_weights, write_model
    from perceivers.models.build import build

    if (flags.out / CONFIG).exists():
        raise FileExistsError(f"{flags.out} holds a model already: choose another place")
    config, weights = convert(flags.source)
    model = build(config)
    load_weights(model, weights, source=str(flags.source))
    write_model(model, config, flags.tokenizer, flags.out)
    print(f"{flags.out}: {sum(p.numel() for p in model.parameters()):,} parameters, {flags.tokenizer!r} tokens")
    print(f"next: perceivers show {flags.out}")
    return 0
