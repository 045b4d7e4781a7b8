"""A masked language model beside a trigram on the same hidden bytes: `python benchmarks/masked_trigram.py RUN STORE`.

More arguments: the split (validation), what is masked (words or bytes; what the run was trained with), and the n of
the n-gram (3).

Prints bits a masked byte with 95 % intervals by bootstrap over documents. The n-gram is a modified Kneser-Ney, counted
on the whole train split. It sees the true bytes to the left, even those that are hidden from the model; the model sees
what comes after.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from perceivers.cli.flags import CONFIG, read_config
from perceivers.data.masked_config import MaskedTextConfig
from perceivers.data.text import BYTES_VOCAB_SIZE
from perceivers.data.tokens import TokenStore
from perceivers.evaluate.bootstrap import paired_bootstrap
from perceivers.evaluate.masked import score_masked, score_masked_ngram
from perceivers.evaluate.ngram import KneserNey
from perceivers.generate.fill import text_length
from perceivers.generate.loaded import load


def main(run: str, store_path: str, split_name: str = "validation", unit: str = "", order: str = "3") -> None:
    """Score both, print both and what lies between."""
    store = TokenStore.open(store_path)
    split, train = store.split(split_name), store.split("train")
    data = read_config(Path(run) / CONFIG).data if (Path(run) / CONFIG).is_file() else None
    config = data if isinstance(data, MaskedTextConfig) else MaskedTextConfig()
    if unit:
        config = replace(config, unit="bytes" if unit == "bytes" else "words")
    model = load(run).model
    ours = score_masked(model, split, config, precision="float32", progress=True)
    documents = [np.asarray(train[i], dtype=np.int32) for i in range(len(train))]
    ngram = KneserNey.fit(documents, order=int(order), vocab_size=BYTES_VOCAB_SIZE)
    theirs = score_masked_ngram(ngram, split, config, seq_len=text_length(model))

    print(f"{split_name}: {len(ours.names)} documents, {int(ours.masked.sum()):,} masked bytes (whole {config.unit})")
    for name, score in {"model": ours, f"{order}-gram": theirs}.items():
        numbers = score.numbers()
        low, high = numbers["bits_per_masked_byte_95"]
        accuracy = "" if score.accuracy is None else f", {score.accuracy:.2%} right"
        print(f"{name:8} {score.bits_per_byte:.4f} [{low:.4f}, {high:.4f}] bits a masked byte{accuracy}")
    fewer = paired_bootstrap(ours.nats, theirs.nats, ours.masked).percent_fewer
    print(f"the model needs {fewer} % fewer than the n-gram")


if __name__ == "__main__":
    main(*sys.argv[1:])
