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

from perceivers.cli.console import failed, note, warn
from perceivers.cli.flags import parse
from perceivers.cli.next_commands import IN_PYTHON, PREDICTED, use
from perceivers.generate.config import DecodingConfig, SamplingConfig, usual_sampling
from perceivers.nearest import check_source

if TYPE_CHECKING:
    import numpy as np

    from perceivers.generate.decode import Step
    from perceivers.generate.loaded import Loaded

DESCRIPTION = """Continue a prompt, or start from nothing.

Files hold the prompt and what follows it. Music: .mid .wav .png .npy; text: .txt .npy; other ids: .txt .npy. Without
--out, text goes to the screen as it is written. Ctrl-C ends early and keeps what is there.

    perceivers generate runs/a --prompt opening.mid --out new.mid --out new.wav

    perceivers generate runs/b --prompt "Once upon a time"
"""

MAIN = (
    *("--prompt", "--prompt-seconds", "--out", "--seconds", "--max-tokens", "--samples", "--seed"),
    *("--temperature", "--top-p", "--top-k", "--any-keys", "--device"),
)
"""Flags that most need."""

DEFAULT_SECONDS, DEFAULT_TOKENS = 30.0, 512
LONGEST_NAME = 255
"""Bytes of a file's name on the usual file systems; a longer prompt is text."""
TOKENS_A_SECOND = 200
"""More than music has: where --seconds alone says when to stop, a model that never lets time pass stops here."""


@dataclass(frozen=True, kw_only=True)
class GenerateFlags:
    """Arguments of `perceivers generate`."""

    run: tyro.conf.Positional[str]
    """Run directory, saved model, or model on the Hugging Face hub."""
    prompt: str | None = None
    """File to continue (.mid .midi .txt .npy, as the model reads), or the text itself, for a model of text; - reads
    the standard input. None = nothing."""
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
    """Music: let the model do with the keys what it likes: press one that is down, hold one for longer than any of its
    training was held, or more at once than hands can."""
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
    flags = parse(GenerateFlags, args, prog="perceivers generate", description=DESCRIPTION, main=MAIN)
    check_source(flags.run)
    from perceivers.generate.files import check_output
    from perceivers.generate.loaded import load
    from perceivers.models.config import SequenceConfig

    # Which defaults are meant follows from the model, and which model from the flags.
    loaded = load(flags.run, device=flags.device, weights=flags.weights)
    if not isinstance(loaded.config, SequenceConfig):
        makes_none = f"{flags.run} reads {loaded.tokenizer!r} and makes nothing that comes next"
        line = use(flags.run, loaded.tokenizer) if loaded.tokenizer in PREDICTED else None
        raise ValueError(
            f"{makes_none}; ask what it says of an input: {line}" if line else f"{makes_none}; {IN_PYTHON}"
        )
    usual = GenerateFlags(run=flags.run, sampling=usual_sampling(loaded.tokenizer))
    flags = parse(GenerateFlags, args, prog="perceivers generate", description=DESCRIPTION, default=usual)
    for path in flags.out:
        check_output(path, loaded.tokenizer)
    check_numbers(flags, loaded.tokenizer)
    prompt = read_prompt(flags, loaded.tokenizer)
    if not flags.out:
        return 0 if stream_text(flags, loaded, prompt) else 130
    continuations, stopped = collect(flags, loaded, prompt)
    if isinstance(stopped, Exception) and not any(map(len, continuations)):
        raise stopped
    written = write_all(flags, prompt, continuations, loaded.tokenizer)
    if isinstance(stopped, Exception):
        raise stopped
    return 1 if not written else 130 if stopped else 0


def write_all(flags: GenerateFlags, prompt: "np.ndarray", continuations: list["np.ndarray"], tokenizer: str) -> bool:
    """Write every file, and say which; return whether none failed. One that fails keeps none of the others back."""
    from perceivers.generate.files import write_output

    all_written = True
    for number, continuation in enumerate(continuations, 1):
        for out in flags.out:
            path = out if flags.samples == 1 else out.with_stem(f"{out.stem}-{number}")
            try:
                write_output(path, prompt, continuation, tokenizer)
            except Exception as error:  # whatever a writer or the disk finds wrong
                all_written = False
                failed(f"{path} was not written: {str(error).removeprefix(f'{path}: ') or type(error).__name__}")
            else:
                print(f"wrote {path}")
    return all_written


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
    elif names_a_file(flags.prompt):
        ids = read(Path(flags.prompt), tokenizer)
    else:
        # Bytes of the command line that this locale has no characters for come back as they were.
        ids = text_ids(flags.prompt.encode("utf-8", "surrogateescape"), tokenizer, name=f"--prompt {flags.prompt!r}")
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


def names_a_file(prompt: str) -> bool:
    """Whether a prompt is the path of a file, there or mistyped, and not the text itself."""
    from perceivers.generate.files import PROMPT_SUFFIXES

    path = Path(prompt)
    if len(prompt.encode("utf-8", "surrogateescape")) < LONGEST_NAME and path.exists():
        return True
    one_word = not any(character.isspace() for character in prompt)
    return one_word and (path.suffix.lower() in PROMPT_SUFFIXES or len(path.parts) > 1)


def check_numbers(flags: GenerateFlags, tokenizer: str) -> None:
    """Refuse numbers that leave nothing to do, or that need something else.

    Raises:
        ValueError: Says which.
    """
    if flags.samples < 1:
        raise ValueError(f"--samples {flags.samples} must be at least 1")
    if not flags.out and tokenizer == "performance":
        raise ValueError("music needs a file to go to: --out new.mid, or --out new.wav")
    if not flags.out and flags.samples > 1:
        raise ValueError(
            f"--samples {flags.samples} needs a file name to number: --out new.txt writes new-1.txt, new-2.txt, ..."
        )
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
    from perceivers.generate.decode import longest_prompt

    seconds = flags.seconds
    if seconds is None and flags.max_tokens is None and loaded.tokenizer == "performance":
        seconds = DEFAULT_SECONDS
    most = flags.max_tokens or (DEFAULT_TOKENS if seconds is None else math.ceil(seconds * TOKENS_A_SECOND))
    constraint = None if flags.any_keys else loaded.usual_constraint()
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


def collect(
    flags: GenerateFlags, loaded: "Loaded", prompt: "np.ndarray"
) -> tuple[list["np.ndarray"], BaseException | None]:
    """New ids of each sample, under a progress bar; and what stopped it: Ctrl-C, an error, or nothing."""
    import numpy as np

    from perceivers.cli.progress import Progress
    from perceivers.data.music import STEPS_PER_SECOND

    steps, most, seconds = steps_of(flags, loaded, prompt)
    made: list[list[int]] = [[] for _ in range(flags.samples)]
    stopped: BaseException | None = None
    try:
        with Progress(flags.samples, most, seconds) as progress:
            for step in steps:
                for row, token in zip(made, step.tokens, strict=True):
                    if token is not None:
                        row.append(token)
                progress.update(step.tokens)
    except (KeyboardInterrupt, Exception) as error:  # what is there is worth keeping, whatever went wrong
        note(f"stopped after {sum(map(len, made))} tokens")
        stopped = error
    short = min(progress.steps)
    if stopped is None and seconds is not None and short / STEPS_PER_SECOND < seconds:
        is_full = len(made[progress.steps.index(short)]) == most
        why = f"it reached {most:,} tokens" if is_full else "the model ended the piece"
        note(f"{short / STEPS_PER_SECOND:.1f} s in place of {seconds:g}: {why}")
    return [np.array(row, np.int32) for row in made], stopped


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
