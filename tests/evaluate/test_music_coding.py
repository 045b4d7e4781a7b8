import numpy as np
import pytest

from perceivers.data.chorales import chorale_events, chorale_splits
from perceivers.data.music import VOCAB_SIZE
from perceivers.evaluate.mixing import MixingCounter
from perceivers.evaluate.music_coding import SIZES, MusicReader, code_music
from perceivers.evaluate.ngram import choose_order

CHORALE = chorale_splits()["train"][5]
END = VOCAB_SIZE


def any_ids(count: int) -> np.ndarray:
    """Keys go down twice, come up unheard, and time passes: what no performance has."""
    generator = np.random.default_rng(0)
    keys = generator.choice([40, 41, 43, 127, 0, 128 + 40, 128 + 41, 128 + 99, 128 + 127], count)
    return np.where(generator.random(count) < 0.3, generator.integers(0, VOCAB_SIZE, count), keys).astype(np.int32)


@pytest.mark.parametrize("ids", [chorale_events(CHORALE)[:83], any_ids(101)], ids=["chorale", "any"])
def test_no_two_ids_become_the_same_and_all_have_a_place(ids: np.ndarray) -> None:
    reader = MusicReader()
    for event in ids.tolist():
        symbols = [reader.symbol(other) for other in range(END + 1)]
        assert len(set(symbols)) == END + 1
        assert all(0 <= value < SIZES[kind] for kind, value in symbols)
        reader.read(event)


@pytest.mark.parametrize("ids", [chorale_events(CHORALE), any_ids(211)], ids=["chorale", "any"])
def test_contexts_know_nothing_of_what_comes(ids: np.ndarray) -> None:
    whole, part = code_music(ids), code_music(ids[:97])
    assert (part.symbols[:97] == whole.symbols[:97]).all()
    assert (part.states == whole.states[:98]).all()
    assert 0 <= whole.states.min() <= whole.states.max() < 64
    for some, every in zip(part.contexts, whole.contexts, strict=True):
        assert (some == every[:98]).all()


def test_a_chorale_is_the_same_in_every_key() -> None:
    here, there = (code_music(chorale_events(CHORALE, shift)) for shift in (0, 5))
    # The first chord is measured from a fixed pitch, and the key has to be found.
    assert (here.symbols[10:] == there.symbols[10:]).all()
    for these, those in zip(here.contexts, there.contexts, strict=True):
        assert (these[60:] == those[60:]).all()


def test_moments_say_what_is_down_and_for_how_long() -> None:
    reader = MusicReader()
    for event in (60, 64, 256 + 29, 128 + 64):  # 60 and 64 go down, 300 ms pass, 64 comes up
        reader.read(event)
    moment = reader.moment()
    assert (moment.down, moment.offs, moment.ons, moment.waiting) == (1, 1, 0, 1)
    assert (moment.beat, moment.bar, moment.shift1, moment.held) == (30, 30, 30, 30)
    assert (reader.near, moment.bass) == (64, -4)
    assert reader.symbol(65) == (0, 1)  # a semitone up in the voice that came up
    reader.read(65)
    moment = reader.moment()
    assert (moment.waiting, moment.last_on, moment.moved1) == (0, 0, 1)
    reader.read(256)
    assert reader.keys_by_age() == ([(0, 60), (30, 65)], 2)
    assert (reader.symbol(128 + 65), reader.symbol(128 + 60)) == ((1, 1), (1, 0))


def test_chorales_are_less_surprising_than_to_the_best_ngram() -> None:
    splits = chorale_splits()
    train, held_out = ([chorale_events(c) for c in splits[split][:n]] for split, n in (("train", 11), ("test", 2)))
    ngram = choose_order(train, held_out, vocab_size=VOCAB_SIZE, orders=range(2, 7)).model
    counter = MixingCounter(SIZES, code_music, bits=18).fit(train)
    by_ngram, by_counter = ([float(model.nats(ids).sum()) for ids in held_out] for model in (ngram, counter))
    assert sum(by_counter) < 0.8 * sum(by_ngram)


def test_any_ids_have_a_probability() -> None:
    nats = MixingCounter(SIZES, code_music, bits=14).fit([chorale_events(CHORALE)[:101]]).nats(any_ids(101))
    assert nats.shape == (102,)
    assert np.isfinite(nats).all()
    assert nats.min() > 0
