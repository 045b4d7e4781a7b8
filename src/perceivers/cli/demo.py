"""`perceivers demo`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perceivers.cli.console import table
from perceivers.cli.flags import parse
from perceivers.commands import command, free_run

DESCRIPTION = """Train a small Perceiver AR on Bach's chorales, score chorales that it never saw beside models that
count, and continue one of them. Needs no data and no network; about ten minutes on two cores."""


@dataclass(frozen=True, kw_only=True)
class DemoArgs:
    """Arguments of `perceivers demo`."""

    out: Path = Path("demo")
    """Directory for everything that the demo makes."""
    minutes: float | None = None
    """Training time; None = as the preset bach_demo says."""
    seed: int = 0
    """Of the model, and of what it plays."""


def run(args: Sequence[str]) -> int:
    """Parse, run the demo, print the table."""
    options = parse(DemoArgs, args, prog="perceivers demo", description=DESCRIPTION)
    from perceivers.demo import run_demo
    from perceivers.evaluate.playing import played, playing_rows

    result = run_demo(options.out, minutes=options.minutes, seed=options.seed)
    fewer = result.comparison.percent_fewer
    scored = f"{int(result.model.tokens.sum()):,} events of {len(result.model.names)} chorales held out"
    rows = [
        ("", "nats an event"),
        ("unigram", f"{result.unigram:.4f}"),
        (f"Kneser-Ney {result.ngram_order}-gram, all keys", f"{result.ngram:.4f}"),
        ("mixing counter, told keys, tonic and bar", f"{result.counter:.4f}"),
        ("Perceiver AR", f"{result.model.nats_per_token:.4f}"),
    ]
    print(f"\n{table(rows, right=(1,))}")
    print(f"\n{scored}; nats fewer than the n-gram's: {fewer.value:.1f} % (95 %: {fewer.low:.1f} to {fewer.high:.1f}).")
    playing = result.playing.numbers()
    print(f"\n{played(playing)}\n{table(playing_rows(playing))}")
    print(f"\nContinued {result.continued} by {result.continuation_seconds:.0f} s. In {options.out}/:")
    print("  continuation.wav   listen to it")
    print("  continuation.png   its piano roll, opening and continuation in two colours")
    print("  continuation.mid   for a sequencer or notation program")
    print("  training.png       how it learned")
    print(f"\nDone in {result.minutes:.1f} minutes. What to try next:")
    from_nothing = command("generate", options.out / "run", "--seconds", 30, "--out", "new.wav")
    print(f"  {from_nothing}   # a chorale from nothing")
    print(f"  {command('prepare', 'music', 'YOUR_MIDI_FILES', '--out', 'store')}   # your own music ...")
    print(f"  {command('train', 'music_small', '--data', 'store', '--out', free_run())}   # ... and a model of it")
    return 0
