import numpy as np
import pytest

from perceivers.evaluate.bootstrap import Interval, mean_with_interval, paired_bootstrap


def test_the_mean_pools_nats_over_tokens() -> None:
    assert mean_with_interval([2.0, 9.0], [1, 10], samples=7, seed=0).value == pytest.approx(1.0)


def test_the_interval_of_a_mean_has_the_width_that_statistics_gives_it() -> None:
    nats = np.random.default_rng(3).normal(2.0, 0.5, size=401)
    found = mean_with_interval(nats, np.ones(401), samples=5000, seed=1)
    half_width = 1.96 * nats.std() / np.sqrt(401)
    assert found.low == pytest.approx(found.value - half_width, rel=0.005)
    assert found.high == pytest.approx(found.value + half_width, rel=0.005)


def test_equal_documents_leave_no_doubt() -> None:
    found = paired_bootstrap([3.0] * 5, [4.0] * 5, [2] * 5, samples=13, seed=0)
    assert (found.difference.low, found.difference.value, found.difference.high) == (-0.5, -0.5, -0.5)
    assert (found.percent_fewer.low, found.percent_fewer.value, found.percent_fewer.high) == (25.0, 25.0, 25.0)


def test_pairing_cancels_what_makes_documents_hard_for_both() -> None:
    generator = np.random.default_rng(5)
    counts = generator.integers(50, 500, size=31)
    hard = counts * generator.normal(2.0, 0.5, size=31)
    a, b = hard + counts * generator.normal(0, 0.01, size=31), hard + counts * 0.1
    alone = mean_with_interval(a, counts, samples=1000, seed=2)
    found = paired_bootstrap(a, b, counts, samples=1000, seed=2).difference
    assert found.high < 0  # a is better, though its own interval is ten times as wide
    assert found.high - found.low < (alone.high - alone.low) / 10


def test_draws_depend_on_the_seed_alone() -> None:
    nats, counts = np.arange(1.0, 14.0), np.arange(13, 0, -1)
    first = mean_with_interval(nats, counts, samples=211, seed=11)
    assert first == mean_with_interval(nats, counts, samples=211, seed=11)
    assert first != mean_with_interval(nats, counts, samples=211, seed=12)


def test_an_interval_prints_on_one_line() -> None:
    assert str(Interval(1.25, 1.125, 1.5)) == "1.25 [1.125, 1.5]"


def test_one_document_leaves_no_interval() -> None:
    one = mean_with_interval([3.0], [2])
    assert (one.value, one.ends, str(one)) == (1.5, None, "1.5 (no interval)")
    assert mean_with_interval([3.0, 4.0], [2, 2]).ends is not None
    both = paired_bootstrap([3.0], [4.0], [2])
    assert (both.difference.value, both.difference.ends, both.percent_fewer.ends) == (-0.5, None, None)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_no_number_leaves_no_interval(bad: float) -> None:
    found = mean_with_interval([3.0, bad], [1, 1])
    assert (str(found.value), found.ends) == (str(bad), None)
    assert paired_bootstrap([3.0, bad], [1.0, 2.0], [1, 1]).percent_fewer.ends is None
    assert paired_bootstrap([3.0, bad], [bad, bad], [1, 1]).difference.ends is None


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one value for each document, got \[2, 3\] values"):
        mean_with_interval([1.0, 2.0], [1, 1, 1])
    with pytest.raises(ValueError, match=r"got \[2, 1, 2\] values"):
        paired_bootstrap([1.0, 2.0], [1.0], [1, 1])


def test_no_documents_and_documents_without_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \[0, 0\] values"):
        mean_with_interval([], [])
    with pytest.raises(ValueError, match="at least one scored token, got a count of 0"):
        mean_with_interval([1.0, 2.0], [3, 0])
