"""`perceivers generate`: continue a prompt, or start from nothing."""

import codecs
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from perceivers.cli.console import note, warn
from perceivers.cli.flags import parse
from perceivers.generate.config import DecodingConfig, SamplingConfig

if TYPE_CHECKING:
    import numpy as np

    from perceivers.generate.decode import Step
    from perceivers.generate.loaded import Loaded

DESCRIPTION = """Continue a prompt, or start from nothing.

Files hold the prompt and what follows it. Music: .mid .wav .png .npy; text: .txt .npy; other ids: .txt .npy. Without
--out, text goes to the screen as it is written. Ctrl-C ends early and keeps what is there.

    perceivers generate runs/a --prompt opening.mid --prompt-seconds 10 --out new.mid --out new.wav

    echo "Once upon a time" | perceivers generate runs/b --prompt -
"""

DEFAULT_SECONDS, DEFAULT_TOKENS = 30.0, 512
TOKENS_A_SECOND = 200
"""More than music has: where --seconds alone says when to stop, a model that never lets time pass stops here."""


@dataclass(frozen=True, kw_only=True)
class GenerateFlags:
    """Arguments of `perceivers generate`."""

    run: tyro.conf.Positional[str]
    """Run directory, saved model, or model on the Hugging Face hub."""
    prompt: str | None = None
    """File to continue: .mid .midi .txt .npy as the model reads; - is text from the standard input. None = nothing."""
    prompt_seconds: float | None = None
    """Only the first seconds of the prompt (music)."""
    prompt_tokens: int | None = None
    """Only the first tokens of the prompt."""
    out: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """File to write; may be given several times."""
    seconds: float | None = None
    """Music to add, in seconds; 30 if neither this nor --max-tokens is given."""
    max_tokens: int | None = None
    """Tokens to add at most; 512 if it is not given and the model makes no music."""
    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")] = field(default_factory=SamplingConfig)
    any_keys: bool = False
    """Music: let keys that are down go down again, and keys that are up go up, as the model has it."""
    samples: int = 1
    """Continuations to make at once, the j-th with seed + j; files get -1, -2, ... before their suffix."""
    decoding: Annotated[DecodingConfig, tyro.conf.arg(name="")] = field(default_factory=DecodingConfig)
    strict: bool = False
    """Refuse a prompt that is longer than the model's input; otherwise its last tokens are read."""
    weights: Literal["float32", "bfloat16", "int8"] = "float32"
    """What the weights are kept as: smaller ones are read faster, and change what the model says a little."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto."""


def run(args: Sequence[str]) -> int:
    """Parse, generate, write."""
    flags = parse(GenerateFlags, args, prog="perceivers generate", description=DESCRIPTION)
    from perceivers.generate.files import check_output, write_output
    from perceivers.generate.loaded import load

    loaded = load(flags.run, device=flags.device, weights=flags.weights)
    for path in flags.out:
        check_output(path, loaded.tokenizer)
    if not flags.out and loaded.tokenizer == "performance":
        raise ValueError("music needs a file to go to: --out new.mid, or --out new.wav")
    if flags.samples < 1 or (flags.samples > 1 and not flags.out):
        raise ValueError(f"--samples {flags.samples} must be at least 1, and more than 1 need files: --out new.txt")
    prompt = read_prompt(flags, loaded.tokenizer)
    check_lengths(flags, loaded.tokenizer)
    if flags.out:
        continuations, finished = collect(flags, loaded, prompt)
        for number, continuation in enumerate(continuations, 1):
            for out in flags.out:
                path = out if flags.samples == 1 else out.with_stem(f"{out.stem}-{number}")
                write_output(path, prompt, continuation, loaded.tokenizer)
                print(f"wrote {path}")
    else:
        finished = stream_text(flags, loaded, prompt)
    return 0 if finished else 130


def read_prompt(flags: GenerateFlags, tokenizer: str) -> "np.ndarray":
    """Raw ids to continue, as the flags say.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: The file is nothing that the model reads, or the flags don't fit it.
    """
    import numpy as np

    from perceivers.generate.files import first_seconds, text_ids
    from perceivers.generate.files import read_prompt as read

    if flags.prompt is None:
        if flags.prompt_seconds is not None or flags.prompt_tokens is not None:
            raise ValueError(
                "--prompt-seconds and --prompt-tokens shorten a prompt, and none is given: add --prompt FILE"
            )
        return np.empty(0, np.int32)
    if flags.prompt == "-":
        ids = text_ids(sys.stdin.buffer.read(), tokenizer, name="the standard input")
    else:
        ids = read(Path(flags.prompt), tokenizer)
    if flags.prompt_seconds is not None:
        if tokenizer != "performance":
            raise ValueError(
                f"--prompt-seconds is for music, this model reads {tokenizer!r} tokens: use --prompt-tokens"
            )
        ids = first_seconds(ids, flags.prompt_seconds)
    if flags.prompt_tokens is not None:
        if flags.prompt_tokens < 0:
            raise ValueError(f"--prompt-tokens {flags.prompt_tokens} must be 0 or more")
        ids = ids[: flags.prompt_tokens]
    return ids


def check_lengths(flags: GenerateFlags, tokenizer: str) -> None:
    """Refuse lengths that leave nothing to do, or that this model's tokens don't have.

    Raises:
        ValueError: Says which.
    """
    if flags.max_tokens is not None and flags.max_tokens < 1:
        raise ValueError(f"--max-tokens {flags.max_tokens} must be at least 1")
    if flags.seconds is not None and not 0 < flags.seconds < math.inf:
        raise ValueError(f"--seconds {flags.seconds:g} must be more than 0, and finite")
    if flags.seconds is not None and tokenizer != "performance":
        raise ValueError(f"--seconds is for music, this model makes {tokenizer!r} tokens: use --max-tokens")


def steps_of(
    flags: GenerateFlags, loaded: "Loaded", prompt: "np.ndarray"
) -> tuple["Iterator[Step]", int, float | None]:
    """The stream of new ids, their largest number a row, and the seconds of music at which to stop."""
    from perceivers.data.batch import NUM_SPECIAL
    from perceivers.generate.constraints import usual_constraint
    from perceivers.generate.decode import longest_prompt

    seconds = flags.seconds
    if seconds is None and flags.max_tokens is None and loaded.tokenizer == "performance":
        seconds = DEFAULT_SECONDS
    most = flags.max_tokens or (DEFAULT_TOKENS if seconds is None else math.ceil(seconds * TOKENS_A_SECOND))
    constraint = None
    if not flags.any_keys:
        constraint = usual_constraint(loaded.tokenizer, loaded.sequence_config.vocab_size - NUM_SPECIAL)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        longest = longest_prompt(loaded.model, flags.decoding, most)
    for warning in caught:
        warn(str(warning.message))
    if len(prompt) + 1 > longest:
        text = f"of the prompt's {len(prompt):,} tokens the model can read {longest - 1:,} before {most:,} new ones"
        if flags.strict:
            raise ValueError(f"{text}: shorten it with --prompt-tokens {longest - 1}, or leave --strict out")
        warn(f"{text}: only the last ones are read")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said above
        steps = loaded.steps(
            [prompt],
            max_tokens=most,
            samples=flags.samples,
            seconds=seconds,
            sampling=flags.sampling,
            decoding=flags.decoding,
            constraint=constraint,
        )
    return steps, most, seconds


def collect(flags: GenerateFlags, loaded: "Loaded", prompt: "np.ndarray") -> tuple[list["np.ndarray"], bool]:
    """New ids of each sample, under a progress bar; and whether nobody stopped it."""
    import numpy as np

    from perceivers.cli.progress import Progress

    steps, most, seconds = steps_of(flags, loaded, prompt)
    made: list[list[int]] = [[] for _ in range(flags.samples)]
    finished = True
    try:
        with Progress(flags.samples, most, seconds) as progress:
            for step in steps:
                for row, token in zip(made, step.tokens, strict=True):
                    if token is not None:
                        row.append(token)
                progress.update(step.tokens)
    except KeyboardInterrupt:
        note(f"stopped after {sum(map(len, made))} tokens")
        finished = False
    if finished and seconds is not None and (short := min(progress.time_s)) < seconds:
        why = (
            f"it reached {most:,} tokens"
            if len(made[progress.time_s.index(short)]) == most
            else "the model ended the piece"
        )
        note(f"{short:.1f} s in place of {seconds:g}: {why}")
    return [np.array(row, np.int32) for row in made], finished


def stream_text(flags: GenerateFlags, loaded: "Loaded", prompt: "np.ndarray") -> bool:
    """Write the prompt and what follows it to the screen, as it is made; return whether nobody stopped it."""
    steps, _, _ = steps_of(flags, loaded, prompt)
    ids = (token for step in steps for token in step.tokens if token is not None)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def show(token: int) -> None:
        sys.stdout.write(decoder.decode(bytes([token])) if loaded.tokenizer == "bytes" else f"{token} ")
        sys.stdout.flush()

    finished = True
    try:
        first = list(islice(ids, 1))  # before anything is shown, because it fails if the model can't read the prompt
        for token in chain(prompt, first, ids):
            show(int(token))
    except KeyboardInterrupt:
        finished = False
    print(decoder.decode(b"", final=True))
    return finished
