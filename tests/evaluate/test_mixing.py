import numpy as np
import pytest
from numpy.testing import assert_allclose

from perceivers.evaluate.mixing import AFTER, LOG_ODDS, TRUST, Coded, MixingCounter, huffman_paths, mixed

SIZES = (3, 5, 1)
"""Ids 0..2 are of the first kind, 3..7 of the second; the end is a kind of its own."""
END = 8


def code(ids: np.ndarray) -> Coded:
    """Contexts: none, the last id, the last two."""
    events = np.append(ids, END)
    kinds = np.searchsorted([3, 8], events, side="right")
    before = np.concatenate([[END, END], events])
    last, earlier = before[1:-1], before[:-2]
    contexts = np.stack([mixed(0 * last), mixed(last), mixed(last, earlier)], axis=1)
    return Coded(np.stack([kinds, events - np.array([0, 3, 8])[kinds]], axis=1), (contexts,) * 4, last % 7)


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def fitted(documents: list[np.ndarray], **options: int) -> MixingCounter:
    return MixingCounter(SIZES, code, bits=13, **options).fit(documents)


def walks(documents: int, *, seed: int) -> list[np.ndarray]:
    """Each id follows from the two before, nine times in ten."""
    generator = np.random.default_rng(seed)
    result = []
    for _ in range(documents):
        walk = [1, 4]
        while len(walk) < 53:
            walk.append((walk[-1] + 2 * walk[-2] + 1) % 8 if generator.random() < 0.9 else int(generator.integers(8)))
        result.append(ids(*walk))
    return result


def test_probabilities_sum_to_one_after_any_context_and_none_is_zero() -> None:
    model = fitted(walks(13, seed=0))
    for context in (ids(), ids(7), ids(2, 2, 2, 2, 2), walks(1, seed=1)[0][:19]):
        at = len(context)
        following = [model.nats(np.append(context, event).astype(np.int32))[at] for event in range(END)]
        probabilities = np.exp(-np.array([*following, model.nats(context)[at]]))
        assert probabilities.sum() == pytest.approx(1, abs=1e-9)
        assert probabilities.min() > 0


def test_it_learns_what_follows_from_two_ids() -> None:
    least = -0.9125 * np.log(0.9125) - 7 * 0.0125 * np.log(0.0125)  # of the walks
    nats = [np.mean([fitted(walks(n, seed=0)).nats(walk)[2:-1].mean() for walk in walks(3, seed=1)]) for n in (3, 53)]
    assert least - 0.1 < nats[1] < least + 0.35
    assert nats[1] < nats[0] - 0.3


def test_equal_documents_give_equal_models_and_scoring_changes_nothing() -> None:
    train, walk = walks(11, seed=0), walks(1, seed=2)[0]
    model = fitted(train)
    first = model.nats(walk)
    assert (model.nats(walk) == first).all()
    assert (fitted(train).nats(walk) == first).all()
    assert (model.fit(train).nats(walk) == first).all()


def test_within_a_document_it_goes_on_learning() -> None:
    model = fitted(walks(11, seed=0))
    new = model.nats(ids(*[0, 0, 7, 7, 3] * 31))
    assert new[-51:-1].mean() < 0.5 * new[:50].mean()


def test_a_document_of_nothing_is_its_end() -> None:
    model = fitted([ids(), ids(1), ids()])
    assert model.nats(ids()).shape == (1,)
    with pytest.raises(ValueError, match="at least one document, got none"):
        fitted([])


def test_paths_are_the_shortest_for_what_is_frequent() -> None:
    paths = huffman_paths(np.array([1, 8, 2, 4, 1]), first_node=10)
    assert [len(path) for path in paths] == [4, 1, 3, 2, 4]
    assert {node for path in paths for node, _ in path} == {10, 11, 12, 13}
    assert sum(0.5 ** len(path) for path in paths) == 1
    assert len({tuple(path) for path in paths}) == 5
    assert huffman_paths(np.array([5]), first_node=0) == [[]]


def test_a_counter_counts_and_forgets_what_is_long_ago() -> None:
    state = 0
    for answer in (True, True, False):
        state = int(AFTER[answer][state])
    assert_allclose(LOG_ODDS[state], np.log((2 + TRUST) / (1 + TRUST)))
    for _ in range(99):
        state = int(AFTER[True][state])
    assert_allclose(LOG_ODDS[state], np.log((60 + TRUST) / TRUST), atol=1.2)
    for _ in range(60):
        state = int(AFTER[False][state])
    assert LOG_ODDS[state] < -2
