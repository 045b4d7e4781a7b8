"""`perceivers convert`: published weights to a saved model of ours, and ours to Hugging Face transformers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from perceivers.cli.flags import HELP, parse
from perceivers.commands import command
from perceivers.nearest import check_source

if TYPE_CHECKING:
    from torch import nn

    from perceivers.models.config import ModelConfig
    from perceivers.picture_reading import PictureReading

USAGE = """usage: perceivers convert KIND SOURCE OUT

  official-ar     weights of the official Perceiver AR: .safetensors or a
                  pickle, with its arguments in a .json of the same name
  official-io     likewise of the official Perceiver and Perceiver IO
  official-hip    likewise of the official Hierarchical Perceiver
  official-ecp    weights of the authors' ECP: .safetensors or PyTorch's,
                  with the class and its arguments in a .json of the same name
  huggingface     a Perceiver of transformers: a directory, or an id of the hub
  to-huggingface  a model of ours, to a directory that transformers opens

`perceivers convert KIND --help` tells more.
"""

OFFICIAL = {
    "official-ar": "Perceiver AR",
    "official-io": "Perceiver and Perceiver IO",
    "official-hip": "Hierarchical Perceiver",
    "official-ecp": "ECP",
}


@dataclass(frozen=True, kw_only=True)
class OfficialFlags:
    """Arguments of `perceivers convert official-ar` and its likes."""

    source: Positional[Path]
    """Weights: .safetensors, or a pickle of the official code (none of its code is run); a .json file of the same name
    beside it has the arguments of the model."""
    out: Positional[Path]
    """Directory to make."""
    tokenizer: Literal["ids", "performance", "bytes", "copy", "masked_bytes", "pictures", "frames", "films"] = "ids"
    """What the model's tokens stand for."""


@dataclass(frozen=True, kw_only=True)
class HuggingFaceFlags:
    """Arguments of `perceivers convert huggingface`."""

    source: Positional[str]
    """Directory with config.json and model.safetensors (or pytorch_model.bin), or hub id owner/name."""
    out: Positional[Path]
    """Directory to make."""
    size: tuple[int, int] | None = None
    """Rows and columns of pictures, for the classifiers that take any size there: Fourier and ConvProcessing; None for
    what its preprocessor_config.json says, or 224 224."""
    flow_scale: float = 0.01
    """Optical flow is multiplied with it: 0.01 as in transformers, 0.2 for pixels, as in the official notebook."""


@dataclass(frozen=True, kw_only=True)
class ExportFlags:
    """Arguments of `perceivers convert to-huggingface`."""

    run: Positional[str]
    """Run directory, saved model, or model on the hub."""
    out: Positional[Path]
    """Directory to make."""


def run(args: Sequence[str]) -> int:
    """Parse, convert, say what was made."""
    if not args or args[0] in HELP:
        print(USAGE, end="")
        return 0 if args else 2
    kinds: dict[str, Callable[[str, Sequence[str]], int]] = {
        **dict.fromkeys(OFFICIAL, _official),
        "huggingface": _from_huggingface,
        "to-huggingface": _to_huggingface,
    }
    if args[0] not in kinds:
        example = command("convert", "official-ar", "SOURCE", "OUT")
        raise ValueError(f"can't convert {args[0]!r}, only {', '.join(kinds)}: {example}")
    return kinds[args[0]](args[0], args[1:])


def _official(kind: str, args: Sequence[str]) -> int:
    flags = parse(
        OfficialFlags,
        args,
        prog=f"perceivers convert {kind}",
        description=f"Convert weights of the official {OFFICIAL[kind]}.",
    )
    _check_free(flags.out)
    from perceivers.convert.official_files import convert
    from perceivers.hub import build_with

    config, weights = convert(kind.removeprefix("official-"), flags.source)
    model = build_with(config, weights, source=str(flags.source))
    return _save(model, config, flags.tokenizer, flags.out)


def _from_huggingface(kind: str, args: Sequence[str]) -> int:
    flags = parse(
        HuggingFaceFlags,
        args,
        prog=f"perceivers convert {kind}",
        description="Make a saved model of a Perceiver that Hugging Face transformers has.",
    )
    check_source(flags.source)
    _check_free(flags.out)
    from perceivers.convert.huggingface import is_huggingface, read_huggingface, read_huggingface_pictures
    from perceivers.hub import CONFIG, find_model

    directory = find_model(flags.source)
    if not is_huggingface(directory):
        raise ValueError(f"{directory / CONFIG} is not of a Perceiver of transformers ('model_type': 'perceiver')")
    model, tokenizer = read_huggingface(directory, size=flags.size, flow_scale=flags.flow_scale)
    assert model.config is not None
    pictures = read_huggingface_pictures(directory, flow_scale=flags.flow_scale)
    return _save(model, model.config, tokenizer, flags.out, pictures)


def _to_huggingface(kind: str, args: Sequence[str]) -> int:
    flags = parse(
        ExportFlags,
        args,
        prog=f"perceivers convert {kind}",
        description="Write a Perceiver or Perceiver IO so that Hugging Face transformers opens it.",
    )
    check_source(flags.run)
    _check_free(flags.out)
    from perceivers.convert.huggingface import write_huggingface
    from perceivers.generate.loaded import load

    loaded = load(flags.run)
    values = write_huggingface(loaded.model, flags.out, loaded.pictures)
    name = values["architectures"][0]
    print(f"{flags.out}: a {name} of transformers")
    print(f"next: transformers.{name}.from_pretrained({str(flags.out)!r}) in Python")
    return 0


def _check_free(out: Path) -> None:
    if (out / "config.json").exists():
        raise FileExistsError(f"{out} holds a model already: choose another place")


def _save(
    model: "nn.Module", config: "ModelConfig", tokenizer: str, out: Path, pictures: "PictureReading | None" = None
) -> int:
    from perceivers.hub import write_model
    from perceivers.writing import Lock

    with Lock.of_directory(out):
        write_model(model.state_dict(), config, tokenizer, out, pictures=pictures)
    print(f"{out}: {sum(p.numel() for p in model.parameters()):,} parameters, {tokenizer!r} tokens")
    print(f"next: {command('show', out)}")
    return 0
