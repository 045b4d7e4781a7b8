"""Small data that any classifier can learn; scikit-learn's own checks take longer."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip(
    "sklearn", reason="PerceiverClassifier is for users of scikit-learn: pip install 'perceivers[sklearn]'"
)

from sklearn.exceptions import NotFittedError

import perceivers
from perceivers.classifier import PerceiverClassifier


def small(**changes) -> PerceiverClassifier:
    return PerceiverClassifier(**{"num_latents": 5, "dim": 16, "blocks": 1, "random_state": 0, **changes})


def blobs(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.array(["ash", "oak", "yew"])[rng.integers(3, size=count)]
    centres = {"ash": (3, 0, 0, 5, 1), "oak": (0, 3, 0, 5, 1), "yew": (0, 0, 3, 5, 1)}
    return np.array([centres[label] for label in labels]) + rng.normal(size=(count, 5)), labels


def test_it_learns_rows_of_features() -> None:
    classifier = small(max_steps=150, batch_size=32).fit(*blobs(200, seed=0))
    X, y = blobs(101, seed=1)
    assert classifier.classes_.tolist() == ["ash", "oak", "yew"]
    assert classifier.score(X, y) > 0.85
    probabilities = classifier.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (classifier.predict(X) == classifier.classes_[probabilities.argmax(1)]).all()


def test_it_learns_pictures() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(97, 5, 7))
    y = rng.integers(2, size=97)
    X[y == 1, 1:3, 2:4] += 4
    classifier = small(max_steps=100, batch_size=32).fit(X, y)
    assert classifier.score(X, y) > 0.9
    with pytest.raises(ValueError, match=r"input has shape .*, but this model reads \[batch, 5, 7, 1\]"):
        classifier.predict(X[:, :, :5])


def test_equal_seeds_give_equal_models() -> None:
    X, y = blobs(31, seed=0)
    first, second, third = (small(max_steps=3, random_state=seed).fit(X, y).predict_proba(X) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, third)


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        ([[0.0, np.nan], [1.0, 2.0]], [0, 1], "contains NaN"),
        ([[0.0, 1.0], [1.0, 2.0]], [0, 1, 2], "inconsistent numbers of samples"),
        ([[0.0, 1.0], [1.0, 2.0]], [0.5, 1.7], "Unknown label type"),
    ],
)
def test_bad_arrays(X: list, y: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(max_steps=1).fit(X, y)


def test_a_classifier_that_has_learned_nothing() -> None:
    for ask in (small().predict, small().predict_proba):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            ask(np.zeros((2, 3)))


def test_it_is_a_public_name() -> None:
    assert perceivers.PerceiverClassifier is PerceiverClassifier


CHECKS = """
from sklearn.utils.estimator_checks import check_estimator
from perceivers import PerceiverClassifier

small = PerceiverClassifier(num_latents=5, dim=16, blocks=1, max_steps=150, batch_size=32, random_state=0)
done = [check["status"] for check in check_estimator(small, on_skip=None)]
assert done.count("passed") > 40, done
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_scikit_learn_expects_of_an_estimator() -> None:
    """In a process of its own: some checks give parameters of no type at all, which the tests' type checks refuse."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CHECKS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_large_numbers_are_centred_before_they_are_narrowed() -> None:
    """Seconds since 1970 beside the same from 0; a constant that no float holds exactly is no information."""
    t = np.random.default_rng(0).integers(0, 2**14, 67) / 2**7
    y = t > 30
    probabilities = [
        PerceiverClassifier(max_steps=3, dim=8, random_state=0).fit(X, y).predict_proba(X)
        for X in (np.stack([t, 0 * t], 1), np.stack([t + 2**31, 0 * t + 0.1], 1))
    ]
    np.testing.assert_allclose(probabilities[0], probabilities[1], atol=1e-6)
    assert PerceiverClassifier(max_steps=1, dim=8).fit(np.full((5, 2), 0.1), [0, 1, 0, 1, 0]).scale_.tolist() == [1, 1]
