"""The demo: train on Bach's chorales, score unseen ones beside models that count, continue one, show all of it."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn
from tqdm import tqdm

from perceivers.arguments import checked_numbers
from perceivers.data.chorales import Chorale, chorale_events, chorale_splits
from perceivers.data.config import DataConfig
from perceivers.data.music import STEPS_PER_SECOND, VOCAB_SIZE, write_midi
from perceivers.data.render import piano_roll, write_wav
from perceivers.data.tokens import StoreWriter, TokenStore
from perceivers.demo_place import STORE_SOURCE, demo_place
from perceivers.evaluate.bootstrap import Comparison, paired_bootstrap
from perceivers.evaluate.likelihood import Likelihood, score
from perceivers.evaluate.mixing import MixingCounter
from perceivers.evaluate.music_coding import SIZES, code_music
from perceivers.evaluate.ngram import Unigram, choose_order
from perceivers.evaluate.playing import Playing, play
from perceivers.evaluate.plots import plot_training
from perceivers.generate.config import usual_sampling
from perceivers.generate.files import shift_steps
from perceivers.generate.loaded import Loaded, load
from perceivers.presets import bach_demo
from perceivers.train.config import TrainConfig
from perceivers.train.loop import train
from perceivers.train.metrics import read_metrics

PROMPT_SECONDS, CONTINUATION_SECONDS = 10.0, 40.0
PIECE_SECONDS = 30.0
"""Length of the continued chorales whose use of the keys is counted."""
MAX_TOKENS = 2000
"""Most tokens of a continuation, whatever it plays."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured; nats an event on chorales that nothing was trained on."""

    model: Likelihood
    """Of the Perceiver AR."""
    unigram: float
    """Of how often each event occurs."""
    ngram: float
    """Of the best interpolated Kneser-Ney n-gram."""
    ngram_order: int
    """Its n, chosen on the validation chorales."""
    counter: float
    """Of mixed counters that are told which keys are down, the likely tonic and the place in the bar."""
    comparison: Comparison
    """Model against n-gram, by bootstrap over chorales."""
    continued: str
    """Name of the chorale that was continued."""
    continuation_seconds: float
    """Length of what the model added."""
    playing: Playing
    """The openings of the test chorales played on, beside the chorales."""
    minutes: float
    """All that was done, together."""


@checked_numbers(seed=0)
def run_demo(out: Path, *, minutes: float | None = None, seed: int = 0) -> DemoResult:
    """Train, score, continue, plot; everything lands in `out`, in place of an earlier demo's.

    Args:
        out: Directory.
        minutes: Training time, in place of the preset's; all the rest takes about two minutes more.
        seed: Of the model and of what it plays.

    Raises:
        FileExistsError: Something in `out` would be replaced that no demo made, or another process is writing there.
    """
    started = time.monotonic()
    config = replace(bach_demo(), seed=seed)
    config = config if minutes is None else replace(config, max_minutes=minutes)
    with demo_place(out, config):
        return _run(config, out, started=started)


def _run(config: TrainConfig, out: Path, *, started: float) -> DemoResult:
    """The demo in a directory that it has for itself."""
    splits = chorale_splits()
    store = write_store(splits, out / "store")
    assert isinstance(config.data, DataConfig)  # the preset's data are documents
    validation = store.split("validation")

    def evaluate(model: nn.Module, step: int) -> dict[str, float]:
        return {"validation/nats": score(model, validation, max_tokens=config.eval_tokens).nats_per_token}

    train(config, out / "run", store=store, evaluate=evaluate)
    loaded = load(out / "run")
    likelihood = score(loaded.model, store.split("test"), precision="float32", progress=True)
    unigram, ngram, order = score_ngrams(splits, transpose=config.data.transpose)
    tokens = int(likelihood.tokens.sum())
    lines = {"unigram": unigram / tokens, f"{order}-gram": float(ngram.sum() / tokens)}
    lines["mixing counter"] = score_counter(splits) / tokens
    name, length = continue_chorale(loaded, splits["test"][0], out, seed=config.seed)
    playing = play(loaded, store.split("test"), prompt_seconds=PROMPT_SECONDS, length=PIECE_SECONDS)
    assert playing is not None  # chorales are long enough
    plot_training(read_metrics(out / "run"), out / "training.png", baselines=lines, title="Bach's chorales")
    return DemoResult(
        model=likelihood,
        unigram=lines["unigram"],
        ngram=lines[f"{order}-gram"],
        ngram_order=order,
        counter=lines["mixing counter"],
        comparison=paired_bootstrap(likelihood.nats, ngram, likelihood.tokens),
        continued=name,
        continuation_seconds=length,
        playing=playing,
        minutes=(time.monotonic() - started) / 60,
    )


def write_store(splits: dict[str, list[Chorale]], path: Path) -> TokenStore:
    """The chorales as a token store; the loader transposes them."""
    options = {"tokenizer": "performance", "vocab_size": VOCAB_SIZE, "overwrite": True, "source": STORE_SOURCE}
    with StoreWriter(path, **options) as writer:
        for split, chorales in splits.items():
            for chorale in chorales:
                writer.append(split, chorale_events(chorale), name=chorale.name)
    return TokenStore.open(path)


def score_ngrams(splits: dict[str, list[Chorale]], *, transpose: int) -> tuple[float, np.ndarray, int]:
    """Nats of the test chorales by a unigram, those of each by the best n-gram, and its n.

    Args:
        splits: The chorales.
        transpose: The n-grams are fitted in all keys up to so many semitones away, as the model is.
    """
    shifts = range(-transpose, transpose + 1)
    test = [chorale_events(chorale) for chorale in splits["test"]]
    with tqdm(total=2, desc="fitting n-grams, n up to 12", bar_format="{desc}: {n_fmt}/{total_fmt} {elapsed}") as bar:
        documents = [chorale_events(chorale, shift) for chorale in splits["train"] for shift in shifts]
        unigram = Unigram.fit(documents, vocab_size=VOCAB_SIZE)
        bar.update()
        held_out = [chorale_events(chorale) for chorale in splits["validation"]]
        ngram = choose_order(documents, held_out, vocab_size=VOCAB_SIZE).model
        bar.update()
    by_unigram = sum(float(unigram.nats(ids).sum()) for ids in test)
    return by_unigram, np.array([ngram.nats(ids).sum() for ids in test]), ngram.order


def score_counter(splits: dict[str, list[Chorale]]) -> float:
    """Nats of the test chorales by mixed counters, which see every chorale in the same key and need no others."""
    with tqdm(total=1, desc="fitting a mixing counter", bar_format="{desc}: {n_fmt}/{total_fmt} {elapsed}") as bar:
        counter = MixingCounter(SIZES, code_music).fit([chorale_events(chorale) for chorale in splits["train"]])
        nats = sum(float(counter.nats(chorale_events(chorale)).sum()) for chorale in splits["test"])
        bar.update()
    return nats


def continue_chorale(loaded: Loaded, chorale: Chorale, out: Path, *, seed: int) -> tuple[str, float]:
    """Play on from a chorale's opening; writes continuation.mid, .wav and .png, returns its name and added seconds."""
    prompt = opening(chorale_events(chorale), PROMPT_SECONDS)
    sampling = replace(usual_sampling(loaded.tokenizer), seed=seed)
    added: list[int] = []
    steps, played = 0, 0.0
    with tqdm(total=CONTINUATION_SECONDS, desc="playing", bar_format="{desc}: {n:.0f} of {total:.0f} s |{bar}|") as bar:
        for token in loaded.stream(
            prompt,
            max_tokens=MAX_TOKENS,
            sampling=sampling,
            stop_at_end=False,
            constraint=loaded.usual_constraint(),
        ):
            added.append(token)
            steps += shift_steps(token)
            played = steps / STEPS_PER_SECOND
            bar.update(min(played, CONTINUATION_SECONDS) - bar.n)
            if played >= CONTINUATION_SECONDS:
                break
    continuation = np.array(added, dtype=np.int32)
    whole = np.concatenate([prompt, continuation])
    write_midi(whole, out / "continuation.mid")
    write_wav(whole, out / "continuation.wav")
    piano_roll(out / "continuation.png", prompt, continuation, title=chorale.name)
    return chorale.name, played


def opening(ids: np.ndarray, length_seconds: float) -> np.ndarray:
    """The first events of a piece, up to the first moment at or after `length_seconds`."""
    steps = np.cumsum([shift_steps(int(event)) for event in ids])
    return ids[: int(np.searchsorted(steps / STEPS_PER_SECOND, length_seconds)) + 1]
