"""Models that count, on the documents that a model is scored on: what its number is worth."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer

from perceivers.data.tokens import TokenSplit, TokenStore
from perceivers.evaluate.mixing import MixingCounter
from perceivers.evaluate.music_coding import SIZES, code_music
from perceivers.evaluate.ngram import Unigram, choose_order

__all__ = ["score_baselines"]

COUNTED = 500_000
"""A mixing counter reads about so many events of the training split, in documents spread evenly: a minute or two."""


def score_baselines(store: TokenStore, split: str) -> dict[str, Float[np.ndarray, " documents"]]:
    """Nats of each document of a split, its end included, by models that counted the documents of the train split.

    Of n-grams, the one with the n that finds the validation split likeliest; of music, also a mixing counter, which is
    told which keys are down. 13 million ids take some minutes and 4 GB.
    """
    train, validation, scored = (_documents(store.split(name)) for name in ("train", "validation", split))
    vocab_size = store.header.vocab_size
    unigram = Unigram.fit(train, vocab_size=vocab_size)
    ngram = choose_order(train, validation, vocab_size=vocab_size).model
    found = {
        "unigram": np.array([unigram.nats(ids).sum() for ids in scored]),
        f"{ngram.order}-gram": np.array([ngram.nats(ids).sum() for ids in scored]),
    }
    if store.tokenizer == "performance":
        every = max(1, sum(map(len, train)) // COUNTED)
        counter = MixingCounter(SIZES, code_music).fit(train[::every])
        found["mixing counter"] = np.array([counter.nats(ids).sum() for ids in scored])
    return found


def _documents(split: TokenSplit) -> Sequence[Integer[np.ndarray, " _"]]:
    return [np.asarray(split[i], dtype=np.int32) for i in range(len(split))]
