import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from numpy.testing import assert_allclose

from perceivers.evaluate.ngram import KneserNey, Unigram, choose_order

A, B, EOS = 0, 1, 2  # with a vocabulary of two


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def corpus(documents: int, *, vocab_size: int = 5, seed: int = 0) -> list[np.ndarray]:
    """Documents of a random Markov chain of order 2, of different lengths, with much that never occurs."""
    generator = np.random.default_rng(seed)
    table = np.random.default_rng(99).dirichlet(np.full(vocab_size, 0.2), size=(vocab_size, vocab_size))
    result = []
    for _ in range(documents):
        document = [0, 0]
        for _ in range(generator.integers(0, 41)):
            document.append(int(generator.choice(vocab_size, p=table[document[-2], document[-1]])))
        result.append(ids(*document[2:]))
    return result


def slow_kneser_ney(documents: list[np.ndarray], order: int, vocab_size: int, context: list, outcome: int) -> float:
    """The definition, word by word, with dictionaries; SOS is -1, EOS is vocab_size."""
    streams = [[-1] * (order - 1) + document.tolist() + [vocab_size] for document in documents]
    history = ([-1] * (order - 1) + context)[len(context) :]

    def occurrences(n: int) -> Counter:
        return Counter(tuple(s[i - n + 1 : i + 1]) for s in streams for i in range(order - 1, len(s)))

    probability = 1 / (vocab_size + 1)
    for n in range(1, order + 1):
        counts = occurrences(n)
        if n < order:
            before = defaultdict(set)
            for gram in occurrences(n + 1):
                before[gram[1:]].add(gram[0])
            counts = {gram: c if gram[0] == -1 else len(before[gram]) for gram, c in counts.items()}
        n1, n2, n3, n4 = (sum(c == k for c in counts.values()) for k in (1, 2, 3, 4))
        discounts = [0, 0.5, 1.0, 1.5]
        if min(n1, n2, n3, n4) > 0:
            y = n1 / (n1 + 2 * n2)
            estimate = [0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
            discounts = estimate if min(estimate[1:]) > 0 else discounts
        after = tuple(history[len(history) - n + 1 :])
        here = {gram[-1]: c for gram, c in counts.items() if gram[:-1] == after}
        if here:
            taken = sum(discounts[min(c, 3)] for c in here.values())
            count = here.get(outcome, 0)
            probability = (count - discounts[min(count, 3)] + taken * probability) / sum(here.values())
    return probability


def test_unigram_by_hand() -> None:
    model = Unigram.fit([ids(A, B), ids(A, A)], vocab_size=2)
    # Three times A, once B, two EOS, and one more of each: 4, 2 and 3 of 9.
    assert_allclose(model.nats(ids(B, A)), -np.log([2 / 9, 4 / 9, 3 / 9]))
    assert np.exp(model.log_probabilities).sum() == pytest.approx(1)


def test_bigram_by_hand() -> None:
    model = KneserNey.fit([ids(A, B), ids(A, A)], order=2, vocab_size=2)
    # Before A stood SOS and A, before B only A, before EOS B and A: 2, 1, 2 of 5. The discounts 1, 0.5 and 1 leave
    # half of it to the uniform distribution.
    a, b, eos = 1 / 5 + 1 / 6, 0.5 / 5 + 1 / 6, 1 / 5 + 1 / 6
    assert_allclose(model.probabilities(ids()), [(2 - 1) / 2 + a / 2, b / 2, eos / 2], rtol=1e-6)
    assert_allclose(model.probabilities(ids(A)), [0.5 / 3 + a / 2, 0.5 / 3 + b / 2, 0.5 / 3 + eos / 2], rtol=1e-6)
    assert_allclose(model.probabilities(ids(A, B)), [0.5 * a, 0.5 * b, 0.5 + 0.5 * eos], rtol=1e-6)
    assert model.nats(ids(A, B))[1] == pytest.approx(-math.log(0.5 / 3 + b / 2), rel=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_are_those_of_the_definition(order: int) -> None:
    train = corpus(31)
    model = KneserNey.fit(train, order=order, vocab_size=5)
    for document in corpus(3, seed=1):
        for end in range(0, len(document), 5):
            context = document[:end].tolist()
            expected = [slow_kneser_ney(train, order, 5, context, outcome) for outcome in range(6)]
            assert_allclose(model.probabilities(document[:end]), expected, rtol=1e-5)


@pytest.mark.parametrize("order", [1, 2, 4, 7])
def test_probabilities_sum_to_one_after_any_context_and_none_is_zero(order: int) -> None:
    train = [document[document != 3] for document in corpus(17)]  # 3 is never seen
    model = KneserNey.fit(train, order=order, vocab_size=5)
    for context in (ids(), ids(3), ids(3, 3, 3, 3, 3, 3, 3), train[0], ids(0, 1, 3, 0), *corpus(5, seed=2)):
        probabilities = model.probabilities(context)
        assert probabilities.sum() == pytest.approx(1, abs=1e-6)
        assert probabilities.min() > 0


def test_nats_of_a_document_are_those_of_its_outcomes_one_by_one() -> None:
    model = KneserNey.fit(corpus(29), order=4, vocab_size=5)
    for document in corpus(5, seed=3):
        outcomes = [*document.tolist(), 5]
        expected = [-math.log(model.probabilities(document[:i])[outcome]) for i, outcome in enumerate(outcomes)]
        assert_allclose(model.nats(document), expected, rtol=1e-6)


def test_discounts_that_the_estimate_makes_negative_are_replaced() -> None:
    # Once 0 and EOS, twice 2, three times 3, 4 and 5, four times 6: the estimate for twice is 2 - 3 * 0.5 * 3 / 1.
    model = KneserNey.fit([ids(0, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6, 6)], order=1, vocab_size=8)
    left_over = (2 * 0.5 + 1 + 4 * 1.5) / 17
    probabilities = model.probabilities(ids())
    assert_allclose(probabilities[[1, 2, 7]], [left_over / 9, 1 / 17 + left_over / 9, left_over / 9], rtol=1e-6)
    assert probabilities.sum() == pytest.approx(1)


def test_the_model_does_not_see_across_documents() -> None:
    # 4 follows 3 only from one document to the next.
    apart = KneserNey.fit([ids(0, 1, 2, 3), ids(4, 0, 1, 2)] * 7, order=3, vocab_size=5)
    joined = KneserNey.fit([ids(0, 1, 2, 3, 4, 0, 1, 2)] * 7, order=3, vocab_size=5)
    context = ids(0, 1, 2, 3)
    assert apart.probabilities(context)[4] < 0.1
    assert joined.probabilities(context)[4] > 0.5


def test_the_order_of_documents_does_not_matter() -> None:
    train, document = corpus(13), corpus(1, seed=4)[0]
    forwards = KneserNey.fit(train, order=3, vocab_size=5).nats(document)
    assert_allclose(KneserNey.fit(train[::-1], order=3, vocab_size=5).nats(document), forwards)


def test_choosing_an_order_gives_what_fitting_each_order_gives() -> None:
    train, validation = corpus(101), corpus(11, seed=5)
    choice = choose_order(train, validation, vocab_size=5, orders=range(1, 7))
    for order, nats_per_event in choice.nats_per_event.items():
        model = KneserNey.fit(train, order=order, vocab_size=5)
        nats = np.concatenate([model.nats(document) for document in validation])
        assert nats_per_event == pytest.approx(nats.mean(), rel=1e-6)
    assert list(choice.nats_per_event) == [1, 2, 3, 4, 5, 6]
    best = min(choice.nats_per_event, key=choice.nats_per_event.__getitem__)
    assert choice.model.order == best == 3  # a context of two, as the documents were made
    expected = KneserNey.fit(train, order=best, vocab_size=5).nats(validation[0])
    assert_allclose(choice.model.nats(validation[0]), expected)


def test_an_empty_document_is_its_eos() -> None:
    model = KneserNey.fit([ids(), ids(A), ids()], order=3, vocab_size=2)
    nats = model.nats(ids())
    assert nats.shape == (1,)
    assert math.exp(-nats[0]) == pytest.approx(model.probabilities(ids())[EOS])


def test_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ids must lie in 0\.\.4, got 0\.\.5"):
        KneserNey.fit([ids(0, 5)], order=2, vocab_size=5)
    with pytest.raises(ValueError, match=r"ids must lie in 0\.\.4, got -1\.\.3"):
        Unigram.fit([ids(0, 3)], vocab_size=5).nats(ids(-1, 3))


def test_no_documents_and_no_orders_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one document, got none"):
        Unigram.fit([], vocab_size=5)
    with pytest.raises(ValueError, match="order must be 1 or more, got 0"):
        KneserNey.fit([ids(0)], order=0, vocab_size=5)
    with pytest.raises(ValueError, match="order must be 1 or more, got 0"):
        choose_order([ids(0)], [ids(0)], vocab_size=5, orders=())
