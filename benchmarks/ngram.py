"""A trained model beside n-grams on the same documents: `python benchmarks/ngram.py RUN STORE [SPLIT]`.

Prints nats an event with 95 % intervals by bootstrap over the folders that hold the documents, which are pieces where
several performances of a piece share one; over the documents, where there is only one folder. The n-gram's n is chosen
on the validation split. For 12 million training events it takes 4 GB and some minutes.
"""

import sys
from pathlib import PurePath

import numpy as np

from perceivers.data.tokens import TokenSplit, TokenStore
from perceivers.evaluate.bootstrap import mean_with_interval, paired_bootstrap
from perceivers.evaluate.likelihood import score
from perceivers.evaluate.ngram import Unigram, choose_order
from perceivers.generate.loaded import load


def documents(split: TokenSplit) -> list[np.ndarray]:
    return [np.asarray(split[i], dtype=np.int32) for i in range(len(split))]


def main(run: str, store_path: str, split_name: str = "validation") -> None:
    store = TokenStore.open(store_path)
    split, vocab_size = store.split(split_name), store.header.vocab_size
    likelihood = score(load(run).model, split, progress=True)
    train = documents(store.split("train"))
    choice = choose_order(train, documents(store.split("validation")), vocab_size=vocab_size)
    unigram = Unigram.fit(train, vocab_size=vocab_size)

    folders = [str(PurePath(name).parent) for name in split.names]
    folders = folders if len(set(folders)) > 1 else split.names
    index = np.unique(folders, return_inverse=True)[1]
    tokens = np.bincount(index, weights=likelihood.tokens)
    nats = {
        "model": likelihood.nats,
        f"{choice.model.order}-gram": np.array([choice.model.nats(ids).sum() for ids in documents(split)]),
        "unigram": np.array([unigram.nats(ids).sum() for ids in documents(split)]),
    }
    sums = {name: np.bincount(index, weights=values) for name, values in nats.items()}
    print(f"{split_name}: {len(folders)} documents in {len(tokens)} groups, {int(tokens.sum()):,} events")
    for name, values in sums.items():
        print(f"{name:10} {mean_with_interval(values, tokens)} nats an event")
    model, ngram, _ = sums.values()
    print(f"the model needs {paired_bootstrap(model, ngram, tokens).percent_fewer} % fewer than the n-gram")


if __name__ == "__main__":
    main(*sys.argv[1:])
