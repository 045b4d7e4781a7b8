"""`perceivers generate`: continue a prompt, or start from nothing."""

import codecs
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from perceivers.cli.console import note, warn
from perceivers.cli.flags import parse
from perceivers.generate.config import SamplingConfig

if TYPE_CHECKING:
    import numpy as np

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
    num_latents: int | None = None
    """Latents to compute each token with, at most the model's input; None = as in training."""
    strict: bool = False
    """Refuse a prompt that is longer than the model's input; otherwise its last tokens are read."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto."""


def run(args: Sequence[str]) -> int:
    """Parse, generate, write."""
    flags = parse(GenerateFlags, args, prog="perceivers generate", description=DESCRIPTION)
    from perceivers.generate.files import check_output, write_output
    from perceivers.generate.loaded import load

    loaded = load(flags.run, device=flags.device)
    for path in flags.out:
        check_output(path, loaded.tokenizer)
    if not flags.out and loaded.tokenizer == "performance":
        raise ValueError("music needs a file to go to: --out new.mid, or --out new.wav")
    prompt = read_prompt(flags, loaded.tokenizer)
    check_lengths(flags, loaded, prompt)
    if flags.out:
        continuation, finished = collect(flags, loaded, prompt)
        for path in flags.out:
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


def check_lengths(flags: GenerateFlags, loaded: "Loaded", prompt: "np.ndarray") -> None:
    """Compare what is asked for with the model's input.

    Raises:
        ValueError: Too many latents or tokens, or nothing to do.
    """
    longest = loaded.config.max_seq_len
    if len(prompt) + 1 > longest:
        text = f"the prompt has {len(prompt):,} tokens, and the model reads {longest:,} with the start token"
        if flags.strict:
            raise ValueError(f"{text}: shorten it with --prompt-tokens {longest - 1}, or leave --strict out")
        warn(f"{text}: only the last ones are read")
    if flags.num_latents is not None and not 1 <= flags.num_latents <= longest:
        raise ValueError(f"--num-latents {flags.num_latents} must lie in 1..{longest}, the length of the model's input")
    if flags.max_tokens is not None and flags.max_tokens < 1:
        raise ValueError(f"--max-tokens {flags.max_tokens} must be at least 1")
    if flags.seconds is not None and flags.seconds <= 0:
        raise ValueError(f"--seconds {flags.seconds:g} must be more than 0")
    if flags.seconds is not None and loaded.tokenizer != "performance":
        raise ValueError(f"--seconds is for music, this model makes {loaded.tokenizer!r} tokens: use --max-tokens")


def tokens_of(flags: GenerateFlags, loaded: "Loaded", prompt: "np.ndarray") -> tuple[Iterator[int], int, float | None]:
    """The stream of new ids, their largest number, and the seconds of music at which to stop."""
    from perceivers.data.batch import NUM_SPECIAL
    from perceivers.generate.constraints import usual_constraint

    seconds = flags.seconds
    if seconds is None and flags.max_tokens is None and loaded.tokenizer == "performance":
        seconds = DEFAULT_SECONDS
    most = flags.max_tokens or (DEFAULT_TOKENS if seconds is None else round(seconds * TOKENS_A_SECOND))
    constraint = None
    if not flags.any_keys:
        constraint = usual_constraint(loaded.tokenizer, loaded.config.vocab_size - NUM_SPECIAL)
    ids = loaded.stream(
        prompt, max_tokens=most, sampling=flags.sampling, num_latents=flags.num_latents, constraint=constraint
    )
    return ids, most, seconds


def collect(flags: GenerateFlags, loaded: "Loaded", prompt: "np.ndarray") -> tuple["np.ndarray", bool]:
    """New ids, under a progress bar; and whether nobody stopped it."""
    import numpy as np
    from tqdm import tqdm

    from perceivers.generate.files import shift_seconds

    ids, most, seconds = tokens_of(flags, loaded, prompt)
    made: list[int] = []
    time_s = 0.0
    style: dict[str, Any] = {"total": most, "unit": " tokens"} if seconds is None else {"total": seconds}
    if seconds is not None:
        style["bar_format"] = "{desc}: {n:.1f} of {total:.0f} s |{bar}| {elapsed} < {remaining}{postfix}"
    bar = tqdm(desc="generating", **style)
    try:
        with bar:
            for token in ids:
                made.append(token)
                passed = shift_seconds(token) if seconds is not None else 1
                time_s += passed
                if seconds is not None and bar.format_dict["elapsed"]:
                    bar.set_postfix_str(f"{len(made) / bar.format_dict['elapsed']:.0f} tokens/s", refresh=False)
                if seconds is not None and time_s >= seconds:
                    break
                bar.update(passed)
    except KeyboardInterrupt:
        note(f"stopped after {len(made)} tokens")
        return np.array(made, np.int32), False
    if seconds is not None and time_s < seconds:
        why = f"it reached {most:,} tokens" if len(made) == most else "the model ended the piece"
        note(f"{time_s:.1f} s in place of {seconds:g}: {why}")
    return np.array(made, np.int32), True


def stream_text(flags: GenerateFlags, loaded: "Loaded", prompt: "np.ndarray") -> bool:
    """Write the prompt and what follows it to the screen, as it is made; return whether nobody stopped it."""
    ids, _, _ = tokens_of(flags, loaded, prompt)
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
