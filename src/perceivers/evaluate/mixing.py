"""Counters of many contexts, mixed: what a neural model has to beat that an n-gram does not know.

As in PAQ (Mahoney 2005, "Adaptive Weighing of Context Models for Lossless Data Compression"; logistic mixing since
PAQ7): each event is a path of yes and no through a Huffman tree. Each context, such as "the last three events" or "the
chord and the beat", has counted how often each answer came after it. The answers' log odds are added with weights
that are learned online, by gradient, and that depend on where in the tree one is and on how much was counted.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Integer, UInt16, UInt64
from numpy import ndarray

__all__ = ["Coded", "MixingCounter", "Symbol", "mixed"]

Symbol = tuple[int, int]
"""Kind of an event, and which of that kind."""
Path = list[tuple[int, bool]]
"""Nodes of a tree from its root to a leaf, and on which side it goes on."""

COUNTS = 61
"""A counter holds two numbers below this."""
TRUST = 0.5
"""Added to both counts before their ratio: the smaller, the more one observation says."""
SEEN = np.array([1, 2, 3, 5, 9, 20, 50])
"""A context's weight depends on how much it counted, in these steps, and on whether all answers were alike."""
LEVELS = 2 * (len(SEEN) + 1)
FIRST_WEIGHT = 0.15
RATES = (0.01, 0.001)
"""Learning rate at the start of the training documents and at their end; the latter in documents that are scored."""
SURE = 1e-4
"""No answer is less probable."""
STATES = 64
"""Different `Coded.states`."""


MOST_CONTEXTS = 64
FIRST_LEVEL = LEVELS * np.arange(MOST_CONTEXTS)

_Question = tuple[int, bool, ndarray, int, int]
"""Number of the event, the answer, a counter for each context, and where weights begin: a node's, a state's."""


@dataclass(frozen=True, eq=False)
class Coded:
    """A document as kinds and values, and what each may depend on."""

    symbols: Int[ndarray, "events 2"]
    """Kind and value; the end of the document is an event."""
    contexts: tuple[UInt64[ndarray, "events _"], ...]
    """Of the kind, then of the values of each kind: a number for each context."""
    states: Int[ndarray, " events"]
    """0..63: the mixer learns weights of its own for each."""


def mixed(*columns: Integer[ndarray, " events"]) -> UInt64[ndarray, " events"]:
    """One number a row, equal for equal rows, and else as good as never."""
    result = np.full(len(columns[0]), 0x9E3779B97F4A7C15, np.uint64)
    for column in columns:
        result = (result ^ column.astype(np.uint64)) * np.uint64(0xD6E8FEB86659FD93)
        result = (result ^ (result >> np.uint64(32))) * np.uint64(0x9FB21C651E98DF25)
        result ^= result >> np.uint64(28)
    return result


class MixingCounter:
    """Counts and weights that were learned from documents; each document that is scored goes on from there.

    Args:
        sizes: Number of values of each kind.
        code: Turns a document's ids into kinds, values and contexts.
        bits: 2 to this many counters; contexts find theirs by a hash, and a few share one.
    """

    def __init__(self, sizes: Sequence[int], code: Callable[[ndarray], Coded], *, bits: int = 26) -> None:
        self.code, self.sizes = code, sizes
        self.counters = np.zeros(1 << bits, np.uint16)
        self.trees: list[list[Path]] = []
        """Paths of the kinds, then of the values of each kind."""

    def fit(self, documents: Sequence[Integer[ndarray, " _"]], *, seed: int = 0) -> "MixingCounter":
        """Read each document once, in an order drawn with `seed`; 150,000 events take about 15 seconds.

        Raises:
            ValueError: There is no document.
        """
        if not len(documents):
            raise ValueError("a mixing counter needs at least one document, got none")
        coded = [self.code(document) for document in documents]
        self._plant(coded)
        widths = [contexts.shape[1] for contexts in coded[0].contexts]
        self.counters[:] = 0
        self.weights = np.full((self.nodes + len(self.trees) * STATES) * max(widths) * LEVELS, FIRST_WEIGHT / 2)
        order = np.random.default_rng(seed).permutation(len(coded))
        for done, which in enumerate(order):
            rate = RATES[0] * (RATES[1] / RATES[0]) ** (done / len(coded))
            self._read(coded[which], self.counters, self.weights, rate)
        return self

    def nats(self, document: Integer[ndarray, " ids"]) -> Float[ndarray, " ids_and_end"]:
        """Minus the log probability of each id and of the end. What it learns on the way is forgotten afterwards."""
        return self._read(self.code(document), self.counters.copy(), self.weights.copy(), RATES[1])

    def _plant(self, coded: Sequence[Coded]) -> None:
        """Grow a tree of the kinds and one of the values of each kind, after how often each occurs."""
        symbols = np.concatenate([document.symbols for document in coded])
        columns = [symbols[:, 0]] + [symbols[symbols[:, 0] == kind, 1] for kind in range(len(self.sizes))]
        self.nodes, self.trees = 0, []
        for column, size in zip(columns, (len(self.sizes), *self.sizes), strict=True):
            self.trees.append(huffman_paths(np.bincount(column, minlength=size), first_node=self.nodes))
            self.nodes += size - 1

    def _read(
        self, coded: Coded, counters: UInt16[ndarray, " slots"], weights: Float[ndarray, " weights"], rate: float
    ) -> Float[ndarray, " events"]:
        """Nats of each event; counters and weights learn from it."""
        nats = np.zeros(len(coded.symbols))
        for event, answer, slots, by_node, by_state in self._questions(coded, bits=len(counters).bit_length() - 1):
            counted = counters[slots]
            log_odds = LOG_ODDS[counted]
            chosen = LEVEL[counted] + FIRST_LEVEL[: len(slots)]
            by_node, by_state = chosen + by_node, chosen + by_state
            total = float(log_odds @ (weights[by_node] + weights[by_state]))
            yes = min(max(1 / (1 + math.exp(-max(total, -30.0))), SURE), 1 - SURE)
            nats[event] -= math.log(yes if answer else 1 - yes)
            step = (rate * (answer - yes)) * log_odds
            weights[by_node] += step
            weights[by_state] += step
            counters[slots] = AFTER[answer][counted]
        return nats

    def _questions(self, coded: Coded, *, bits: int) -> Iterator[_Question]:
        """The questions that say what each event is: first its kind, then which of that kind."""
        asked = [
            (event, tree, node, answer)
            for event, (kind, value) in enumerate(coded.symbols.tolist())
            for tree, leaf in ((0, kind), (1 + kind, value))
            for node, answer in self.trees[tree][leaf]
        ]
        events, trees, nodes, _ = np.array(asked).T
        slots: list[ndarray] = [np.empty(0)] * len(asked)
        for tree, contexts in enumerate(coded.contexts):
            rows = np.flatnonzero(trees == tree)
            which = np.arange(contexts.shape[1]) + nodes[rows, None] * FIRST_LEVEL.size
            found = mixed(contexts[events[rows]].ravel(), which.ravel()) >> np.uint64(64 - bits)
            for row, of_row in zip(rows.tolist(), found.astype(np.int64).reshape(which.shape), strict=True):
                slots[row] = of_row
        width = LEVELS * max(contexts.shape[1] for contexts in coded.contexts)
        by_node = (nodes * width).tolist()
        by_state = ((self.nodes + trees * STATES + coded.states[events]) * width).tolist()
        for (event, _, _, answer), of_question, node, state in zip(asked, slots, by_node, by_state, strict=True):
            yield event, answer, of_question, node, state


def huffman_paths(counts: Int[ndarray, " leaves"], *, first_node: int) -> list[Path]:
    """Each leaf's path through the tree with the fewest questions on average; nodes count up from `first_node`."""
    paths: list[Path] = [[] for _ in counts]
    heap = [(float(count) + 0.01, leaf, [leaf]) for leaf, count in enumerate(counts)]
    heapq.heapify(heap)
    for node in range(first_node, first_node + len(counts) - 1):
        (less, _, left), (more, order, right) = heapq.heappop(heap), heapq.heappop(heap)
        for leaf in left:
            paths[leaf].append((node, False))
        for leaf in right:
            paths[leaf].append((node, True))
        heapq.heappush(heap, (less + more, order + len(counts), left + right))
    return [path[::-1] for path in paths]


def _counter_tables() -> tuple[ndarray, ndarray, tuple[ndarray, ndarray]]:
    """Of each state of a counter its log odds, its level, and the next state after a no and after a yes."""
    no, yes = np.divmod(np.arange(COUNTS**2), COUNTS)
    level = 2 * np.searchsorted(SEEN, no + yes, side="right") + ((no == 0) | (yes == 0))
    after = (_count(no, yes) @ [COUNTS, 1], _count(yes, no) @ [1, COUNTS])
    return np.log((yes + TRUST) / (no + TRUST)), level, (after[0].astype(np.uint16), after[1].astype(np.uint16))


def _count(seen: ndarray, other: ndarray) -> Int[ndarray, "states 2"]:
    """One more of what was seen; above 3 the other count shrinks, as what is long ago says less."""
    full = seen + 1 == COUNTS
    other = np.where(full, other * (COUNTS - 1) // COUNTS, other)
    return np.stack([np.where(full, seen, seen + 1), np.where(other > 3, 3 + (other - 3) * 4 // 5, other)], axis=1)


LOG_ODDS, LEVEL, AFTER = _counter_tables()
