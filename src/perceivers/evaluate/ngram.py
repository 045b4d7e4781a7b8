"""n-gram models over event ids: what a neural model has to beat, trained in seconds on a CPU.

All models see `[SOS] ids [EOS]` and score the ids and the EOS, never the SOS; none looks across documents. The
outcomes are the ids 0..vocab_size-1 and EOS, which is `vocab_size` in here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Integer
from numpy import ndarray

__all__ = ["KneserNey", "OrderChoice", "Unigram", "choose_order"]

Document = Integer[ndarray, " _"]  # lengths differ within one list
Nats = Float[ndarray, " ids_and_eos"]


@dataclass(frozen=True, eq=False)
class Unigram:
    """How often each outcome occurs, plus one."""

    log_probabilities: Float[ndarray, " outcomes"]
    """In nats, by id; EOS is the last."""

    @classmethod
    def fit(cls, documents: Sequence[Document], *, vocab_size: int) -> "Unigram":
        """Count the ids of all documents, and an EOS for each."""
        stream = _Stream.of(documents, vocab_size)
        counts = 1.0 + np.bincount(stream.symbols[stream.scored], minlength=vocab_size + 1)
        return cls(np.log(counts / counts.sum()))

    def nats(self, document: Document) -> Nats:
        """Minus the log probability of each id of `document` and of its EOS."""
        stream = _Stream.of([document], len(self.log_probabilities) - 1)
        return -self.log_probabilities[stream.symbols[1:]]


@dataclass(frozen=True, eq=False)
class KneserNey:
    """Interpolated Kneser-Ney with three discounts an order (Chen & Goodman 1998, "modified").

    An outcome's probability given the last n-1 symbols is its discounted count there, plus what the discounts left
    over times its probability given the last n-2; orders below the highest count in how many different contexts
    an outcome was seen, not how often. Below order 1 all outcomes are equally likely, so none is impossible.
    """

    levels: "tuple[_Level, ...]"
    """Order 1 first."""
    vocab_size: int

    @property
    def order(self) -> int:
        """The n: a prediction depends on the n-1 symbols before."""
        return len(self.levels)

    @classmethod
    def fit(cls, documents: Sequence[Document], *, order: int, vocab_size: int) -> "KneserNey":
        """Count all n-grams of the documents, up to n = `order`.

        13 million ids and order 12 take a minute and 3.4 GB.

        Raises:
            ValueError: `order` below 1, no documents, or an id outside 0..vocab_size-1.
        """
        _check_order(order)
        stream = _Stream.of(documents, vocab_size)
        levels = [
            _Level.of(grams, grams.occurrences if continuations is None else continuations, stream.outcomes)
            for grams, continuations in _count(stream, order)
        ]
        return cls(tuple(levels), vocab_size)

    def nats(self, document: Document) -> Nats:
        """Minus the log probability of each id of `document` and of its EOS."""
        stream = _Stream.of([document], self.vocab_size)
        lookup = _Lookup.start(stream)
        for level in self.levels:
            lookup = lookup.extend(level)
        return -np.log(lookup.probabilities)

    def probabilities(self, context: Document) -> Float[ndarray, " outcomes"]:
        """Distribution of what follows the document's first ids, `context`; EOS is the last outcome."""
        return self.distributions(context, np.array([len(context)]), np.array([len(context) + 1]))[0]

    def distributions(
        self, document: Document, places: Int[ndarray, " places"], seen: Int[ndarray, " places"]
    ) -> Float[ndarray, "places outcomes"]:
        """Distribution of what stands at some places of a document, given some of what stands before.

        Args:
            document: Ids.
            places: From 0, the first id's place, to the document's length, where its EOS stands.
            seen: How many symbols before each place may be looked at; the SOS is one, and nothing is before it.
        """
        stream = _Stream.of([document], self.vocab_size)
        lookup = _Lookup.start(stream)
        result = np.full((len(places), stream.outcomes), 1 / stream.outcomes)
        for length, level in enumerate(self.levels):
            # The symbol before a place stands at the place's number in the stream, which begins with the SOS.
            chosen = np.flatnonzero((seen >= length) | (seen > places))
            if not len(chosen):
                break
            result[chosen] = level.predict(lookup.at[places[chosen]], result[chosen])
            lookup = lookup.extend(level)
        return result


@dataclass(frozen=True, eq=False)
class OrderChoice:
    """The best of several orders on validation documents."""

    model: KneserNey
    """Of the best order."""
    nats_per_event: dict[int, float]
    """Validation nats per event by order."""


def choose_order(
    train: Sequence[Document], validation: Sequence[Document], *, vocab_size: int, orders: Sequence[int] = range(2, 13)
) -> OrderChoice:
    """Fit Kneser-Ney models of several orders and keep the one that predicts `validation` best.

    The n-grams are counted once for all orders.

    Raises:
        ValueError: No orders or one below 1, no documents, or an id outside 0..vocab_size-1.
    """
    _check_order(min(orders, default=0))
    lookup = _Lookup.start(_Stream.of(validation, vocab_size))
    lower: list[_Level] = []
    best: tuple[_Level, ...] = ()
    nats_per_event: dict[int, float] = {}
    for grams, continuations in _count(_Stream.of(train, vocab_size), max(orders)):
        if grams.order in orders:
            top = _Level.of(grams, grams.occurrences, vocab_size + 1)
            nats_per_event[grams.order] = float(-np.log(lookup.extend(top).probabilities).mean())
            if nats_per_event[grams.order] == min(nats_per_event.values()):
                best = (*lower, top)
        if continuations is not None:
            lower.append(_Level.of(grams, continuations, vocab_size + 1))
            lookup = lookup.extend(lower[-1])
    return OrderChoice(KneserNey(best, vocab_size), nats_per_event)


def _check_order(order: int) -> None:
    if order < 1:
        raise ValueError(f"an n-gram's order must be 1 or more, got {order}")


@dataclass(frozen=True, eq=False)
class _Stream:
    """Documents one after the other, each as SOS, ids, EOS."""

    symbols: Int[ndarray, " symbols"]
    """Ids; EOS is vocab_size. At an SOS stands vocab_size too, but nothing reads it."""
    since_start: Int[ndarray, " symbols"]
    """0 at an SOS, counting up to the EOS."""
    vocab_size: int

    @classmethod
    def of(cls, documents: Sequence[Document], vocab_size: int) -> "_Stream":
        if not len(documents):
            raise ValueError("an n-gram model needs at least one document, got none")
        lengths = np.array([len(document) + 2 for document in documents])
        ids = np.concatenate(documents)
        if len(ids) and not 0 <= ids.min() <= ids.max() < vocab_size:
            raise ValueError(f"ids must lie in 0..{vocab_size - 1}, got {ids.min()}..{ids.max()}")
        starts = np.cumsum(lengths) - lengths
        since_start = np.arange(lengths.sum()) - np.repeat(starts, lengths)
        symbols = np.full(len(since_start), vocab_size)
        symbols[(since_start > 0) & (since_start < np.repeat(lengths, lengths) - 1)] = ids
        return cls(symbols, since_start, vocab_size)

    @property
    def scored(self) -> Bool[ndarray, " symbols"]:
        return self.since_start > 0

    @property
    def outcomes(self) -> int:
        return self.vocab_size + 1


@dataclass(frozen=True, eq=False)
class _Grams:
    """The different n-grams of one order; their ids are 1, 2, ... in the order of `keys`.

    Before the SOS of a document one may think of more SOS: the n-gram that ends at the SOS has id 0.
    """

    order: int
    keys: Int[ndarray, " grams"]
    """Id of the first n-1 symbols among the (n-1)-grams, times the number of outcomes, plus the last symbol."""
    occurrences: Int[ndarray, " grams"]
    example: Int[ndarray, " grams"]
    """Where in the stream one of the occurrences ends."""
    at: Int[ndarray, " symbols"]
    """Id of the n-gram that ends at each symbol of the stream."""

    @classmethod
    def number(cls, stream: _Stream, order: int, shorter_at: Int[ndarray, " symbols"]) -> "_Grams":
        """Number the n-grams of a stream, given `at` of order n-1."""
        ends = np.flatnonzero(stream.scored)
        keys = shorter_at[ends - 1] * stream.outcomes + stream.symbols[ends]
        by_key = np.argsort(keys)
        keys = keys[by_key]
        is_new = np.diff(keys, prepend=-1) > 0
        first = np.flatnonzero(is_new)
        at = np.zeros(len(stream.symbols), dtype=np.int64)
        at[ends[by_key]] = np.cumsum(is_new)
        return cls(order, keys[first], np.diff(first, append=len(keys)), ends[by_key[first]], at)

    def continuations(self, stream: _Stream, longer: "_Grams") -> Int[ndarray, " grams"]:
        """In how many different contexts each n-gram was seen: its different symbols before it.

        An n-gram that starts with SOS has no symbol before it; there, occurrences count (as in SRILM, KenLM).
        """
        counts = np.bincount(self.at[longer.example], minlength=len(self.keys) + 1)[1:]
        starts_with_sos = stream.since_start[self.example] < self.order
        return np.where(starts_with_sos, self.occurrences, counts)


def _count(stream: _Stream, order: int) -> "Iterator[tuple[_Grams, Int[ndarray, ' grams'] | None]]":
    """The n-grams for n = 1..order and their continuations, which the highest order has none of."""
    grams = _Grams.number(stream, 1, np.zeros(len(stream.symbols), dtype=np.int64))
    for n in range(2, order + 1):
        longer = _Grams.number(stream, n, grams.at)
        yield grams, grams.continuations(stream, longer)
        grams = longer
    yield grams, None


@dataclass(frozen=True, eq=False)
class _Level:
    """What a model knows at one order; grams and contexts are numbered as in `_Grams`."""

    keys: Int[ndarray, " grams"]
    outcomes: int
    seen: Float[ndarray, " grams"]
    """Discounted count of the n-gram, divided by the undiscounted counts of its context."""
    left_over: Float[ndarray, " contexts"]
    """What the discounts took from each context: the weight of the order below. 1 for a context never left."""

    @classmethod
    def of(cls, grams: _Grams, counts: Int[ndarray, " grams"], outcomes: int) -> "_Level":
        """Discount the counts of one order. float32: there are as many entries as n-grams."""
        discounts = _discounts(counts)[np.minimum(counts, 3)]
        context = grams.keys // outcomes
        # Contexts are the shorter n-grams; those that end a document, or stand last in the keys, may lead nowhere.
        totals = np.bincount(context, weights=counts)
        taken = np.bincount(context, weights=discounts)
        left_over = np.divide(taken, totals, out=np.ones(len(totals)), where=totals > 0)
        seen = (counts - discounts) / totals[context]
        return cls(grams.keys, outcomes, seen.astype(np.float32), left_over.astype(np.float32))

    def weight(self, context: Int[ndarray, " *n"]) -> Float[ndarray, " *n"]:
        """Weight of the order below after each context; all of it where the context (or -1) led nowhere."""
        known = (context >= 0) & (context < len(self.left_over))
        return np.where(known, self.left_over[np.where(known, context, 0)], 1.0)

    def predict(
        self, context: Int[ndarray, " places"], lower: Float[ndarray, "places outcomes"]
    ) -> Float[ndarray, "places outcomes"]:
        """Distributions after some contexts, given those of the order below."""
        result = lower * self.weight(context)[:, None]
        first = np.searchsorted(self.keys, context * self.outcomes)
        many = np.where(context >= 0, np.searchsorted(self.keys, (context + 1) * self.outcomes) - first, 0)
        place = np.repeat(np.arange(len(context)), many)
        gram = np.arange(many.sum()) + np.repeat(first - np.cumsum(many) + many, many)
        result[place, self.keys[gram] % self.outcomes] += self.seen[gram]
        return result


def _discounts(counts: Int[ndarray, " grams"]) -> Float[ndarray, " 4"]:
    """What is taken from an n-gram seen 0, 1, 2, or 3 and more times (Chen & Goodman 1998, equation 26)."""
    once, twice, thrice, four_times = (int((counts == n).sum()) for n in (1, 2, 3, 4))
    if min(once, twice, thrice, four_times) > 0:
        y = once / (once + 2 * twice)
        found = np.array([0, 1 - 2 * y * twice / once, 2 - 3 * y * thrice / twice, 3 - 4 * y * four_times / thrice])
        if (found[1:] > 0).all():
            return found
    # The estimate fails where few n-grams are rare, as at order 1 and in tiny corpora; KenLM's way out.
    return np.array([0, 0.5, 1.0, 1.5])


@dataclass(frozen=True, eq=False)
class _Lookup:
    """A stream as a model knows it, order by order."""

    stream: _Stream
    at: Int[ndarray, " symbols"]
    """Id of the n-gram that ends at each symbol; -1 where training had none such."""
    probabilities: Float[ndarray, " scored"]
    """Of each id and EOS, by the orders up to n."""

    @classmethod
    def start(cls, stream: _Stream) -> "_Lookup":
        """Order 0: every outcome is equally likely."""
        scored = int(stream.scored.sum())
        return cls(stream, np.zeros(len(stream.symbols), dtype=np.int64), np.full(scored, 1 / stream.outcomes))

    def extend(self, level: _Level) -> "_Lookup":
        """Look one symbol further back."""
        ends = np.flatnonzero(self.stream.scored)
        context = self.at[ends - 1]
        keys = np.where(context >= 0, context * level.outcomes + self.stream.symbols[ends], -1)
        nearest = np.minimum(np.searchsorted(level.keys, keys), len(level.keys) - 1)
        found = level.keys[nearest] == keys
        at = np.zeros_like(self.at)
        at[ends] = np.where(found, nearest + 1, -1)
        seen = np.where(found, level.seen[nearest], 0.0)
        return type(self)(self.stream, at, seen + level.weight(context) * self.probabilities)
