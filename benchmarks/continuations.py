"""Continuations of held-out openings, to hear and in numbers: `python benchmarks/continuations.py RUN STORE --out DIR`.

For some performances of a split, chosen evenly among those that are long enough, DIR gets the opening, NAME-prompt.mid,
and what the model made of it, NAME-continued.mid, each as .wav and .png, too. The model reads the prompt from that MIDI
file, in which keys that are still down come up at its end; so the command that is printed makes the same files.

The numbers are those of the continuation alone, beside those of the real one: as many seconds of the same performance
after the opening. A log-probability is what the model, run as for sampling, gives an event after all that came before
it: the generated ones after the prompt as the file has it, the real ones after the opening as it was played.
"""

import math
import shlex
from dataclasses import astuple
from pathlib import Path, PurePath

import numpy as np
import tyro

from perceivers.cli.generate import TOKENS_A_SECOND
from perceivers.cli.progress import Progress
from perceivers.data.batch import NUM_SPECIAL, SOS
from perceivers.data.music import STEPS_PER_SECOND
from perceivers.data.music import seconds as seconds_of
from perceivers.data.tokens import TokenSplit, TokenStore
from perceivers.evaluate.music_statistics import music_statistics
from perceivers.evaluate.schedule import forced_log_probs
from perceivers.generate.config import SamplingConfig
from perceivers.generate.constraints import usual_constraint
from perceivers.generate.decode import FullForward
from perceivers.generate.files import first_seconds, read_prompt, shift_steps, write_output
from perceivers.generate.loaded import Continuation, Loaded, load
from perceivers.models.cached import CachedPerceiverAR, why_not_cached
from perceivers.models.perceiver_ar import PerceiverAR
from perceivers.train.data import check_store

SUFFIXES = (".mid", ".wav", ".png")
HEAD = (
    "| performance | continuation | seconds | notes a second | pitches from, to | middle 90 % from, to "
    "| distinct pitches | time shifts | repeated windows | mean velocity | log-probability an event |\n"
    "| --- | --- " + "| ---: " * 9 + "|"
)


def choose(split: TokenSplit, *, seconds: float, pieces: int) -> list[int]:
    """Documents, evenly among those that last `seconds` or longer."""
    long = [i for i in range(len(split)) if seconds_of(document(split, i)) >= seconds]
    if not 0 < pieces <= len(long):
        raise ValueError(f"--pieces {pieces}: {len(long)} documents of {split.name!r} last {seconds:g} s or longer")
    return [long[i] for i in np.linspace(0, len(long) - 1, pieces).round().astype(int)]


def document(split: TokenSplit, index: int) -> np.ndarray:
    return np.asarray(split[index], dtype=np.int32)


def until(ids: np.ndarray, seconds: float) -> np.ndarray:
    """Events up to the one that reaches `seconds`, where generating stops, too."""
    time_s = np.cumsum([shift_steps(int(event)) for event in ids]) / STEPS_PER_SECOND
    return ids[: int(np.searchsorted(time_s, seconds - 1e-6)) + 1]  # sums of hundredths are not exact


def continue_prompt(loaded: Loaded, prompt: np.ndarray, *, seconds: float, seed: int) -> Continuation:
    """What `perceivers generate` makes of the prompt."""
    most = round(seconds * TOKENS_A_SECOND)
    stream = loaded.steps(
        [prompt],
        max_tokens=most,
        seconds=seconds,
        sampling=SamplingConfig(seed=seed),
        constraint=usual_constraint(loaded.tokenizer, loaded.sequence_config.vocab_size - NUM_SPECIAL),
    )
    steps = []
    with Progress(1, most, seconds) as progress:
        for step in stream:
            steps.append(step)
            progress.update(step.tokens)
    return Continuation.of_row(steps, 0)


def score(loaded: Loaded, prompt: np.ndarray, ids: np.ndarray, *, max_tokens: int) -> np.ndarray:
    """Log-probabilities of `ids` after `prompt`, by the sampler that would have drawn them."""
    model = loaded.model
    assert isinstance(model, PerceiverAR)
    predictor = FullForward(model) if why_not_cached(model.config) else CachedPerceiverAR(model)
    before = [SOS, *(prompt + NUM_SPECIAL).tolist()]
    return forced_log_probs(predictor, before, (ids + NUM_SPECIAL).tolist(), max_tokens=max_tokens)


def numbers(ids: np.ndarray, before: np.ndarray, log_probs: np.ndarray) -> np.ndarray:
    """The statistics of a continuation, then its mean log-probability an event."""
    mean = float(log_probs.mean()) if len(log_probs) else math.nan
    return np.array([*astuple(music_statistics(ids, before=before)), mean])


def line(name: str, whose: str, values: np.ndarray) -> str:
    length, density, lowest, highest, low, high, distinct, shifts, repeated, velocity, log_prob = values
    pitches = f"{lowest:.0f}, {highest:.0f} | {low:.0f}, {high:.0f} | {distinct:.0f}"
    shares = f"{shifts:.1%} | {repeated:.0%}"
    return (
        f"| {name} | {whose} | {length:.1f} | {density:.1f} | {pitches} | {shares} | {velocity:.0f} | {log_prob:.3f} |"
    )


def study(
    loaded: Loaded, run: str, whole: np.ndarray, stem: Path, *, prompt_seconds: float, seconds: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Continue a performance's opening, and write the files; return numbers of the generated and of the real rest."""
    opening = first_seconds(whole, prompt_seconds)
    prompt_files, files = (
        [stem.with_name(f"{stem.name}-{kind}{suffix}") for suffix in SUFFIXES] for kind in ("prompt", "continued")
    )
    for file in prompt_files:
        write_output(file, opening, opening[:0], loaded.tokenizer)
    command = ["perceivers", "generate", run, "--prompt", str(prompt_files[0]), "--seconds", f"{seconds:g}"]
    command += ["--seed", str(seed), *(word for file in files for word in ("--out", str(file)))]
    print(shlex.join(command), flush=True)
    prompt = read_prompt(prompt_files[0], loaded.tokenizer)
    made = continue_prompt(loaded, prompt, seconds=seconds, seed=seed)
    for file in files:
        write_output(file, prompt, made.ids, loaded.tokenizer)
    rest = until(whole[len(opening) :], seconds_of(made.ids))
    log_probs = score(loaded, opening, rest, max_tokens=round(seconds * TOKENS_A_SECOND))
    return numbers(made.ids, prompt, made.log_probs), numbers(rest, opening, log_probs)


def main(
    run: tyro.conf.Positional[str],
    store: tyro.conf.Positional[Path],
    *,
    out: Path,
    split: str = "test",
    pieces: int = 4,
    prompt_seconds: float = 20.0,
    seconds: float = 30.0,
    seed: int = 0,
) -> None:
    """Continue openings of held-out performances; write them, and print a Markdown table beside the real ones.

    Args:
        run: Run directory, saved model, or model on the Hugging Face hub: a model of performances.
        store: Token store.
        out: Directory to write to; it is made.
        split: Split of the store.
        pieces: Performances to continue.
        prompt_seconds: Length of the openings.
        seconds: Length of the continuations.
        seed: Of the sampler.
    """
    opened, loaded = TokenStore.open(store), load(run, device="auto")
    for what, tokenizer in ((store, opened.header.tokenizer), (run, loaded.tokenizer)):
        if tokenizer != "performance":
            raise ValueError(f"{what} has {tokenizer!r} tokens, only 'performance' can be heard")
    check_store(opened, loaded.sequence_config)
    data = opened.split(split)
    out.mkdir(parents=True, exist_ok=True)
    rows = {}
    for number, index in enumerate(choose(data, seconds=prompt_seconds + seconds, pieces=pieces), 1):
        name = f"{number}-{PurePath(data.names[index]).stem}"
        print(f"\n{name}: {data.names[index]}")
        rows[name] = study(
            loaded,
            run,
            document(data, index),
            out / name,
            prompt_seconds=prompt_seconds,
            seconds=seconds,
            seed=seed,
        )
    rows["mean"] = tuple(np.mean(list(rows.values()), axis=0))
    print("\n" + HEAD)
    for name, (generated, real) in rows.items():
        print(line(name, "generated", generated))
        print(line(name, "real", real))


if __name__ == "__main__":
    tyro.cli(main)
