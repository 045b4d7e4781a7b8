from pathlib import Path

import numpy as np
import pytest

import perceivers.evaluate.baselines as baselines
from perceivers.data.chorales import chorale_events, chorale_splits
from perceivers.data.tokens import StoreWriter, TokenStore
from perceivers.evaluate.mixing import MixingCounter
from perceivers.evaluate.music_coding import SIZES, code_music
from perceivers.evaluate.ngram import choose_order


def store_of(path: Path, tokenizer: str, vocab_size: int, documents: dict[str, list[np.ndarray]]) -> TokenStore:
    with StoreWriter(path, tokenizer=tokenizer, vocab_size=vocab_size) as writer:
        for split, of_split in documents.items():
            for i, ids in enumerate(of_split):
                writer.append(split, ids, name=f"{split}{i}")
    return TokenStore.open(path)


def test_music_beside_ngrams_and_a_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = chorale_splits()
    documents = {
        split: [chorale_events(c)[:101] for c in splits[split][: 4 if split == "train" else 2]] for split in splits
    }
    store = store_of(tmp_path / "store", "performance", 388, documents)
    found = baselines.score_baselines(store, "test")
    ngram = choose_order(documents["train"], documents["validation"], vocab_size=388).model
    counter = MixingCounter(SIZES, code_music).fit(documents["train"])
    assert list(found) == ["unigram", f"{ngram.order}-gram", "mixing counter"]
    np.testing.assert_allclose(found[f"{ngram.order}-gram"], [ngram.nats(ids).sum() for ids in documents["test"]])
    np.testing.assert_allclose(found["mixing counter"], [counter.nats(ids).sum() for ids in documents["test"]])

    monkeypatch.setattr(baselines, "COUNTED", 202)  # two of the four documents
    some = MixingCounter(SIZES, code_music).fit(documents["train"][::2])
    found = baselines.score_baselines(store, "test")["mixing counter"]
    np.testing.assert_allclose(found, [some.nats(ids).sum() for ids in documents["test"]])


def test_of_other_ids_no_counter_is_built(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    documents = {split: [generator.integers(5, size=17) for _ in range(3)] for split in ("train", "validation", "test")}
    found = baselines.score_baselines(store_of(tmp_path / "store", "ids", 5, documents), "validation")
    assert next(iter(found)) == "unigram"
    assert len(found) == 2
    assert {len(nats) for nats in found.values()} == {3}
