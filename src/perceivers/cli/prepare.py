"""`perceivers prepare`: files -> a store to train on."""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from perceivers.cli.flags import HELP, parse
from perceivers.cli.next_commands import train_on
from perceivers.commands import command

KINDS = {
    "music": "MIDI files, as performance events",
    "text": ".txt files, as bytes",
    "tokens": "ids of your own: .npy, .txt or .jsonl",
    "pictures": "picture files, or arrays of pictures: IDX (MNIST), .npz or .npy",
    "copy": "random sequences and their mirror images, to measure memory",
}

USAGE = f"""usage: perceivers prepare KIND ...

{"".join(f"  {kind:10}{what}{chr(10)}" for kind, what in KINDS.items())}
  perceivers prepare music recordings/ more.zip --out store

`perceivers prepare KIND --help` tells more.
"""


@dataclass(frozen=True, kw_only=True)
class _Out:
    out: Path
    """Where the store shall be."""
    overwrite: bool = False
    """Replace the store that is there."""


@dataclass(frozen=True, kw_only=True)
class FileFlags(_Out):
    """Files to read."""

    sources: Positional[tuple[Path, ...]]
    """Directories, zip archives or files. Folders or files that are all named as splits (Train, val, testing) are those
    splits; otherwise a hash of the name splits 90 : 5 : 5."""
    split_by: Literal["piece", "folder", "hash"] | None = None
    """What stays in one split: piece, recordings whose names are alike (take 1, take 2); folder, files of one folder;
    hash, nothing. With piece and hash names of splits are passed over."""
    unpacked_mb: int = 1024
    """Largest size to which a file in an archive may unpack."""


@dataclass(frozen=True, kw_only=True)
class TokenFlags(FileFlags):
    """Files of ids to read.

    .npy: integers with one axis are a document, with two a document each row. .txt: integers with white space between
    are a document. .jsonl: each line is a document, {"ids": [3, 1, 4]}.
    """

    vocab_size: int
    """Every id is below this."""


@dataclass(frozen=True, kw_only=True)
class PictureFlags(FileFlags):
    """Pictures to read; folders in a directory are classes, or train, validation and test with classes in them."""

    size: tuple[int, int] | None = None
    """Rows and columns of every picture: each is resized to cover them, and its middle taken. Needed where pictures
    differ in size."""


@dataclass(frozen=True, kw_only=True)
class CopyFlags(_Out):
    """Sequences to make."""

    length: int = 32
    """Tokens of a sequence, two of them its start and end; even."""
    count: int = 1000
    """Sequences: 90 % for training, 5 % each for validation and test."""
    seed: int = 0
    """Same seed, same sequences."""


FLAGS: dict[str, type[FileFlags | CopyFlags]] = {
    "music": FileFlags,
    "text": FileFlags,
    "tokens": TokenFlags,
    "pictures": PictureFlags,
    "copy": CopyFlags,
}


def run(args: Sequence[str]) -> int:
    """Parse, prepare, print what was made."""
    if not args or args[0] in HELP:
        print(USAGE, end="")
        return 0 if args else 2
    kind, *rest = args
    if kind not in KINDS:
        example = command("prepare", "music", "DIR", "--out", "store")
        raise ValueError(f"can't prepare {kind!r}; there are {', '.join(KINDS)}: {example}")
    _, *more = cleandoc(FLAGS[kind].__doc__ or "").split("\n\n")
    description = "\n\n".join([f"Prepare {KINDS[kind]}.", *more])
    flags = parse(FLAGS[kind], rest, prog=f"perceivers prepare {kind}", description=description)
    if isinstance(flags, FileFlags) and not flags.sources:
        raise ValueError(f"name the files or directories to prepare: {command('prepare', kind, 'DIR', *rest)}")

    from perceivers.data import prepare
    from perceivers.data.prepare_pictures import prepare_pictures

    common = {"overwrite": flags.overwrite, "progress": True, "command": command("prepare", *args)}
    if isinstance(flags, FileFlags):
        common["choices"] = prepare.Choices(split_by=flags.split_by, unpacked_mb=flags.unpacked_mb)
    match flags:
        case CopyFlags():
            summary = prepare.prepare_copy(flags.out, length=flags.length, count=flags.count, seed=flags.seed, **common)
        case TokenFlags():
            summary = prepare.prepare_tokens(flags.sources, flags.out, vocab_size=flags.vocab_size, **common)
        case PictureFlags():
            summary = prepare_pictures(flags.sources, flags.out, size=flags.size, **common)
        case FileFlags() if kind == "text":
            summary = prepare.prepare_text(flags.sources, flags.out, **common)
        case _:
            summary = prepare.prepare_music(flags.sources, flags.out, **common)
    print("\n".join(summary.lines()))
    if "train" in summary.splits:
        print(f"next: {train_on(flags.out)}")
    else:
        line = command("evaluate", "RUN", "--data", flags.out, "--split", list(summary.splits)[-1])
        print(f"nothing is for training; next: {line}   # a run or a saved model in place of RUN")
    return 0
