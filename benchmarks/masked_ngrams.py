"""A masked language model beside n-grams on the same hidden bytes: `python benchmarks/masked_ngrams.py RUN STORE`.

More arguments: the split (test), and what is masked (words or bytes; what the run was trained with).

Prints bits a masked byte with 95 % intervals by bootstrap over documents. The n-grams are modified Kneser-Ney, counted
on the whole train split, with the n that predicts the validation split best. One sees the true bytes to the left, even
those that are hidden from the model, and nothing that comes after. Of the two-sided one, two n-grams read the visible
bytes on both sides, and the weights of what they say are chosen on the validation split. 25 MB of text take 4 GB and
some minutes.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from perceivers.cli.flags import CONFIG, read_config
from perceivers.data.masked_config import MaskedTextConfig
from perceivers.data.text import BYTES_VOCAB_SIZE
from perceivers.data.tokens import TokenSplit, TokenStore
from perceivers.evaluate.bootstrap import paired_bootstrap
from perceivers.evaluate.masked import MaskedScore, score_masked, score_masked_ngram
from perceivers.evaluate.ngram import choose_order
from perceivers.evaluate.two_sided import TwoSided, score_two_sided
from perceivers.generate.fill import text_length
from perceivers.generate.loaded import load

ORDERS = range(2, 10)
WEIGHING = 65_536
"""Bytes of the validation split, on whose hidden ones the two-sided n-gram's weights are chosen."""


def documents(split: TokenSplit) -> list[np.ndarray]:
    return [np.asarray(split[i], dtype=np.int32) for i in range(len(split))]


def by_ngrams(
    store: TokenStore, split_name: str, config: MaskedTextConfig, seq_len: int, orders: range = ORDERS
) -> dict[str, MaskedScore]:
    """Scores of the n-gram that sees the left, and of the two-sided one."""
    split, validation, train = store.split(split_name), store.split("validation"), documents(store.split("train"))
    choice = choose_order(train, documents(validation), vocab_size=BYTES_VOCAB_SIZE, orders=orders)
    order = choice.model.order
    left = score_masked_ngram(choice.model, split, config, seq_len=seq_len)
    del choice
    both = TwoSided.fit(train, order=order).weighted(validation, config, seq_len=seq_len, max_tokens=WEIGHING)
    return {f"{order}-gram": left, f"two {order}-grams": score_two_sided(both, split, config, seq_len=seq_len)}


def main(run: str, store_path: str, split_name: str = "test", unit: str = "") -> None:
    """Score all, print all and what lies between."""
    store = TokenStore.open(store_path)
    data = read_config(Path(run) / CONFIG).data if (Path(run) / CONFIG).is_file() else None
    config = data if isinstance(data, MaskedTextConfig) else MaskedTextConfig()
    if unit:
        config = replace(config, unit="bytes" if unit == "bytes" else "words")
    model = load(run).model
    ours = score_masked(model, store.split(split_name), config, precision="float32", progress=True)
    scores = {"model": ours, **by_ngrams(store, split_name, config, text_length(model))}

    print(f"{split_name}: {len(ours.names)} documents, {int(ours.masked.sum()):,} masked bytes (whole {config.unit})")
    for name, score in scores.items():
        low, high = score.numbers()["bits_per_masked_byte_95"] or (score.bits_per_byte,) * 2
        accuracy = "" if score.accuracy is None else f", {score.accuracy:.2%} right"
        print(f"{name:12} {score.bits_per_byte:.4f} [{low:.4f}, {high:.4f}] bits a masked byte{accuracy}")
    for name, score in list(scores.items())[1:]:
        fewer = paired_bootstrap(ours.nats, score.nats, ours.masked).percent_fewer
        print(f"the model needs {fewer} % fewer than the {name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
