import itertools
import threading
from collections import Counter

import numpy as np
import pytest
import torch

from perceivers.data.batch import EOS, NUM_SPECIAL, SOS, TokenBatch
from perceivers.data.config import DataConfig
from perceivers.data.loader import TokenLoader, epoch_order, prefetch
from perceivers.data.music import NOTE_OFF, NOTE_ON, TIME_SHIFT
from perceivers.data.tokens import TokenSplit
from perceivers.data.windows import num_windows, window_stop, window_weights
from perceivers.evaluate.prediction import targets_of

SIGNIFICANT = 4.0
"""Counts may be this many standard deviations away from what is expected; they are the same in every run."""


def split_of(*lengths: int, first_id: int = 0) -> TokenSplit:
    """Documents whose ids are all different, so that a row tells where it was cut."""
    offsets = np.cumsum([0, *lengths])
    names = [f"document {index}" for index in range(len(lengths))]
    return TokenSplit("train", np.arange(first_id, first_id + offsets[-1]).astype(np.uint16), offsets, names)


def documents_of(split: TokenSplit, *, offset: int = 3) -> list[list[int]]:
    return [[SOS, *(ids.astype(int) + offset).tolist(), EOS] for ids in split]


def rows_of(batch: TokenBatch) -> list[list[int]]:
    """Tokens of each row, after a check of what pads them."""
    for tokens, positions, length in zip(batch.tokens, batch.positions, batch.lengths.tolist(), strict=True):
        assert (tokens[:length] > 0).all()
        assert (positions[:length] > 0).all()
        assert not tokens[length:].any()
        assert not positions[length:].any()
    assert batch.tokens.shape[1] == batch.lengths.max()
    return [row[:length].tolist() for row, length in zip(batch.tokens, batch.lengths.tolist(), strict=True)]


def same(first: TokenBatch, second: TokenBatch) -> bool:
    return (
        torch.equal(first.tokens, second.tokens)
        and torch.equal(first.positions, second.positions)
        and torch.equal(first.lengths, second.lengths)
    )


# Random crops, as the official loader takes them


@pytest.mark.parametrize("min_crop", [1, 3, 5, 7])
def test_random_crops_are_the_official_ones_and_equally_likely(min_crop: int) -> None:
    split = split_of(7, 2)
    documents = documents_of(split)
    config = DataConfig(batch_size=11, min_crop=min_crop)
    loader = TokenLoader(split, config, seq_len=5 if min_crop < 5 else 8, seed=1)
    rows = [tuple(row) for step in range(120) for row in rows_of(loader.batch(step))]
    counts = Counter(rows)
    for document in documents:
        # What the official code does: pad on the left by max_len - shortest, then take a window anywhere.
        shortest = min(len(document), min_crop + 1)
        padded = [0] * (loader.seq_len - shortest) + document
        windows = [
            tuple(token for token in padded[start : start + loader.seq_len] if token)
            for start in range(len(padded) - loader.seq_len + 1)
        ]
        seen = {row: count for row, count in counts.items() if any(token in document[1:-1] for token in row)}
        assert set(seen) <= set(windows)
        expected = len(rows) / len(documents) / len(windows)
        for window in windows:
            spread = max(1.0, (expected * (1 - 1 / len(windows))) ** 0.5)
            assert abs(counts[window] - expected) <= SIGNIFICANT * spread, (window, counts[window], expected)


def test_the_shortest_crop_has_as_many_targets_as_get_a_loss() -> None:
    config = DataConfig(batch_size=7)
    loader = TokenLoader(split_of(23, 2), config, seq_len=11, num_targets=5, seed=1)
    lengths = {len(row) for step in range(60) for row in rows_of(loader.batch(step)) if row[-1] != EOS}
    assert lengths == set(range(6, 12))
    everything = TokenLoader(split_of(23, 2), config, seq_len=11, seed=1)
    rows = [row for step in range(60) for row in rows_of(everything.batch(step))]
    assert {len(row) for row in rows} == {11, 4}  # full rows, and the short document as a whole


def test_an_epoch_of_random_crops_has_each_document_once() -> None:
    loader = TokenLoader(split_of(5, 7, 11, 13, 17), DataConfig(batch_size=3, min_crop=1), seq_len=5, seed=2)
    assert loader.rows_per_epoch == 5
    rows = [row for step in range(10) for row in rows_of(loader.batch(step))]  # 30 rows, six epochs
    starts = np.array([3, 8, 15, 26, 39])
    orders = []
    for epoch in range(6):
        # Documents are told by any id that is not special; a crop of two tokens has one at least.
        visited = [int(np.searchsorted(starts, max(row), side="right")) for row in rows[5 * epoch : 5 * epoch + 5]]
        assert sorted(visited) == [1, 2, 3, 4, 5]
        orders.append(tuple(visited))
    assert len(set(orders)) > 1


def test_positions_count_from_the_start_of_the_document() -> None:
    split = split_of(23)
    document = documents_of(split)[0]
    for crop in ("random", "uniform", "cover"):
        loader = TokenLoader(split, DataConfig(batch_size=7, crop=crop), seq_len=5, num_targets=2, seed=3)
        batch = loader.batch(0)
        for row, (tokens, length) in enumerate(zip(rows_of(batch), batch.lengths.tolist(), strict=True)):
            positions = batch.positions[row, :length, 0].tolist()
            assert tokens == [document[position - 1] for position in positions]


def test_the_offset_is_added_to_data_alone() -> None:
    loader = TokenLoader(split_of(3), DataConfig(batch_size=1), seq_len=7, offset=11, seed=0)
    assert rows_of(loader.batch(0)) == [[SOS, 11, 12, 13, EOS]]


# Crops weighted by length


def losses_of(batch: TokenBatch, num_targets: int) -> dict[int, float]:
    """Weight of the loss of each token of a batch."""
    labels, mask, weights = targets_of(batch, num_latents=num_targets)
    assert weights is not None
    found: dict[int, float] = {}
    for token, weight in zip(labels[mask].tolist(), weights[mask].tolist(), strict=True):
        found[token] = found.get(token, 0.0) + weight
    return found


@pytest.mark.parametrize(
    ("lengths", "seq_len", "num_targets"), [((2, 29, 5), 5, 3), ((3, 17, 1), 13, 7), ((1,), 5, 3), ((40,), 11, 10)]
)
def test_uniform_crops_weight_every_token_alike(lengths: tuple[int, ...], seq_len: int, num_targets: int) -> None:
    """Counted exactly: each window once."""
    split = split_of(*lengths)
    config = DataConfig(batch_size=1, crop="uniform")
    loader = TokenLoader(split, config, seq_len=seq_len, num_targets=num_targets, seed=5)
    sums: Counter[int] = Counter()
    for index, document in enumerate(documents_of(split)):
        length = len(document)
        for window in range(int(num_windows(split.lengths[index : index + 1] + 2, num_targets)[0])):
            stop = window_stop(length, num_targets, window)
            weights = window_weights(length, num_targets, stop)
            assert len(weights) == min(num_targets, length - 1)
            for token, weight in zip(document[stop - len(weights) : stop], weights, strict=True):
                sums[token] += weight
    per_token = {token: weight / (len(lengths) if token == EOS else 1) for token, weight in sums.items()}
    assert set(per_token) == {token for document in documents_of(split) for token in document[1:]}
    assert set(np.round(list(per_token.values()), 9)) == {num_targets}
    # And drawn, by the loader.
    drawn: Counter[int] = Counter()
    for step in range(500):
        drawn.update(losses_of(loader.batch(step), num_targets))  # pyright: ignore[reportArgumentType]
    per_token = {token: weight / (len(lengths) if token == EOS else 1) for token, weight in drawn.items()}
    expected = sum(drawn.values()) / (sum(lengths) + len(lengths))
    assert max(abs(weight - expected) for weight in per_token.values()) < 0.4 * expected


def test_uniform_crops_end_anywhere() -> None:
    split = split_of(11)
    loader = TokenLoader(split, DataConfig(batch_size=1, crop="uniform"), seq_len=7, num_targets=4, seed=5)
    rows = [rows_of(loader.batch(step))[0] for step in range(400)]
    assert {row[-1] for row in rows} == set(documents_of(split)[0][4:])
    assert all(len(row) >= 5 for row in rows)  # no row has fewer targets than it could


def test_an_epoch_of_uniform_crops_is_evenly_spread() -> None:
    loader = TokenLoader(split_of(491), DataConfig(batch_size=1, crop="uniform"), seq_len=50, num_targets=8, seed=5)
    assert loader.rows_per_epoch == 61
    stops = sorted(int(loader.batch(step).positions.max()) for step in range(61))
    # 489 windows, two more at each end than elsewhere; each 61st of them, about 8, has one.
    assert max(np.diff(stops)) <= 17


# Note-offs that come late


def test_late_offs_change_inputs_and_targets_of_some_rows_and_keep_the_positions_counted() -> None:
    pairs = np.array([[NOTE_ON + 60, TIME_SHIFT + 9, NOTE_OFF + 60, NOTE_ON + 62, TIME_SHIFT + 9, NOTE_OFF + 62]] * 29)
    ids = pairs.reshape(-1).astype(np.uint16)
    split = TokenSplit("train", ids, np.array([0, len(ids)]), ["piece"])
    config = DataConfig(batch_size=7, crop="uniform", late_offs=0.5)
    loader = TokenLoader(split, config, seq_len=61, num_targets=17, seed=3)
    batch = loader.batch(1)
    assert batch.targets is not None
    differ = batch.targets != batch.tokens
    assert 0 < differ.sum() < 0.7 * batch.lengths.sum()
    wanted = batch.targets[differ] - NUM_SPECIAL
    assert ((wanted >= NOTE_OFF) & (wanted < TIME_SHIFT)).all()
    for positions, length in zip(batch.positions[..., 0], batch.lengths.tolist(), strict=True):
        assert (positions[:length].diff() == 1).all()
    assert same(batch, loader.batch(1))


# Every token once


@pytest.mark.parametrize("num_targets", [None, 1, 3, 4])
def test_cover_gives_every_token_a_loss_once_an_epoch(num_targets: int | None) -> None:
    split = split_of(11, 1, 4, 17)
    loader = TokenLoader(split, DataConfig(batch_size=1, crop="cover"), seq_len=5, num_targets=num_targets, seed=7)
    targets: Counter[int] = Counter()
    for step in range(loader.rows_per_epoch):
        row = rows_of(loader.batch(step))[0]
        targets.update(row[1:][-loader.num_targets :])
    every = Counter(token for document in documents_of(split) for token in document[1:])
    assert targets == every
    second = [tuple(rows_of(loader.batch(loader.rows_per_epoch + i))[0]) for i in range(loader.rows_per_epoch)]
    first = [tuple(rows_of(loader.batch(i))[0]) for i in range(loader.rows_per_epoch)]
    assert sorted(first) == sorted(second)
    assert first != second


# Determinism


CONFIGS = [
    DataConfig(batch_size=6, transpose=3, stretch=(0.9, 1.0, 1.1)),
    DataConfig(batch_size=6, crop="uniform", transpose=3, stretch=(0.9, 1.0, 1.1)),
    DataConfig(batch_size=6, crop="cover", transpose=3),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.crop)
def test_batches_depend_on_seed_and_step_alone(config: DataConfig) -> None:
    def loader(seed: int) -> TokenLoader:
        return TokenLoader(split_of(97, 53, 31), config, seq_len=13, num_targets=5, seed=seed)

    in_order = [loader(11).batch(step) for step in range(5)]
    backwards = loader(11)
    for step in reversed(range(5)):
        assert same(backwards.batch(step), in_order[step])
    assert not same(loader(12).batch(0), in_order[0])
    assert not same(in_order[1], in_order[0])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.crop)
@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_share_the_same_batch(config: DataConfig, world_size: int) -> None:
    def loader(rank: int, world_size: int) -> TokenLoader:
        split = split_of(97, 53, 31)
        return TokenLoader(split, config, seq_len=13, num_targets=5, seed=11, rank=rank, world_size=world_size)

    whole = rows_of(loader(0, 1).batch(3))
    for rank in range(world_size):
        assert rows_of(loader(rank, world_size).batch(3)) == whole[rank::world_size]


def test_rows_do_not_depend_on_the_batch_size() -> None:
    def rows(batch_size: int) -> list[list[int]]:
        loader = TokenLoader(split_of(97, 53), DataConfig(batch_size=batch_size), seq_len=13, num_targets=5, seed=11)
        return [row for step in range(12 // batch_size) for row in rows_of(loader.batch(step))]

    assert rows(2) == rows(3) == rows(12)


def test_epoch_order_is_shared_and_read_only() -> None:
    order = epoch_order(7, seed=1, epoch=0)
    assert sorted(order.tolist()) == list(range(7))
    assert order.tolist() != epoch_order(7, seed=1, epoch=1).tolist()
    with pytest.raises(ValueError, match="read-only"):
        order[0] = 0


# Changed music


def music_split(pauses: int = 0) -> TokenSplit:
    """A rising scale as one document: key down, 100 ms, key up, a pause."""
    notes = [[NOTE_ON + p, TIME_SHIFT + 9, NOTE_OFF + p, *[TIME_SHIFT + 99] * pauses] for p in range(40, 80)]
    ids = np.array(list(itertools.chain(*notes)), dtype=np.uint16)
    return TokenSplit("train", ids, np.array([0, len(ids)]), ["scale"])


def test_transposed_rows_move_by_up_to_so_many_semitones() -> None:
    split = music_split()
    plain = TokenLoader(split, DataConfig(batch_size=40, crop="cover"), seq_len=13, num_targets=3, seed=1)
    moved = TokenLoader(split, DataConfig(batch_size=40, crop="cover", transpose=2), seq_len=13, num_targets=3, seed=1)
    first, second = plain.batch(0), moved.batch(0)
    assert torch.equal(first.positions, second.positions)
    seen = set()
    for before, after in zip(rows_of(first), rows_of(second), strict=True):
        is_key = [3 <= token < 3 + TIME_SHIFT for token in before]
        steps = {b - a for a, b, key in zip(before, after, is_key, strict=True) if key}
        assert len(steps) == 1  # a row moves as one
        assert all(a == b for a, b, key in zip(before, after, is_key, strict=True) if not key)
        seen |= steps
    assert seen == {-2, -1, 0, 1, 2}


def test_stretched_rows_have_another_tempo_and_full_length() -> None:
    split = music_split(pauses=2)  # so that the number of tokens changes
    config = DataConfig(batch_size=60, stretch=(0.6, 1.5))
    batch = TokenLoader(split, config, seq_len=31, num_targets=7, seed=1).batch(0)
    shifts = set()
    for row, tokens in enumerate(rows_of(batch)):
        length = len(tokens)
        inner = tokens[3:-3]  # a crop's first and last shifts may be parts of a pause
        shifts |= {token - 3 - TIME_SHIFT + 1 for token in inner if 3 + TIME_SHIFT <= token < 3 + TIME_SHIFT + 99}
        positions = batch.positions[row, :length, 0]
        assert (positions.diff() == 1).all()
        assert (tokens[0] == SOS) == (positions[0] == 1)
        assert length == 31 or positions[0] == 1  # cut only where there is more
        assert length <= 31
    # 100 ms become 60 or 150; 2 s of pause 1.2 (a full shift and 20) or 3.
    assert {6, 15} <= shifts
    assert 10 not in shifts


@pytest.mark.parametrize(("factor", "last"), [(0.5, 999), (2.0, 3999)])
def test_positions_follow_a_stretch(factor: float, last: int) -> None:
    """Pauses of a second, SOS and EOS around them: at half the tempo's time half as many come before a crop."""
    ids = np.full(1997, TIME_SHIFT + 99, dtype=np.uint16)
    split = TokenSplit("train", ids, np.array([0, len(ids)]), ["pauses"])
    loader = TokenLoader(split, DataConfig(batch_size=60, stretch=(factor,)), seq_len=31, num_targets=7, seed=1)
    batch = loader.batch(0)
    ends = [row[row > 0].max().item() for row in batch.positions]
    assert max(ends) <= last + 5
    assert max(ends) > 0.8 * last
    assert min(ends) < 0.2 * last


def test_a_stretched_whole_document_keeps_its_ends() -> None:
    split = music_split()
    config = DataConfig(batch_size=5, stretch=(1.3,))
    for tokens in rows_of(TokenLoader(split, config, seq_len=200, seed=1).batch(0)):
        assert (tokens[0], tokens[-1]) == (SOS, EOS)
        assert tokens[1:4] == [43, 3 + TIME_SHIFT + 12, 3 + NOTE_OFF + 40]


def test_an_empty_crop_can_be_stretched() -> None:
    split = TokenSplit("train", np.array([7], dtype=np.uint16), np.array([0, 1]), ["short"])
    config = DataConfig(batch_size=5, stretch=(0.9,), transpose=3, min_crop=1)
    loader = TokenLoader(split, config, seq_len=2, seed=1)
    assert {len(row) for row in rows_of(loader.batch(0))} == {2}


# Prefetching


def test_batches_from_a_step_on() -> None:
    loader = TokenLoader(split_of(97, 53), DataConfig(batch_size=2), seq_len=13, num_targets=5, seed=11)
    for step, batch in zip(range(4, 9), prefetch(loader.batch, 4), strict=False):
        assert same(batch, loader.batch(step))


def test_the_background_thread_ends_with_the_iterator() -> None:
    loader = TokenLoader(split_of(97, 53), DataConfig(batch_size=2), seq_len=13, num_targets=5, seed=11)
    batches = prefetch(loader.batch, 0)
    next(batches)
    assert any(thread.name.startswith("prefetch") for thread in threading.enumerate())
    del batches
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())


def test_errors_of_the_background_thread_reach_the_consumer() -> None:
    def make(step: int) -> TokenBatch:
        if step == 2:
            raise OSError("the disk went away")
        return loader.batch(step)

    loader = TokenLoader(split_of(97, 53), DataConfig(batch_size=2), seq_len=13, num_targets=5, seed=11)
    batches = prefetch(make, 0)
    assert same(next(batches), loader.batch(0))
    assert same(next(batches), loader.batch(1))
    with pytest.raises(OSError, match="the disk went away"):
        next(batches)
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())


# What does not fit


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ({}, {"seq_len": 1}, r"num_targets=0 must lie in 1\.\.0"),
        ({}, {"num_targets": 13}, r"num_targets=13 must lie in 1\.\.12, below seq_len=13"),
        ({}, {"offset": 2}, "offset=2 must be at least 3: ids below are PAD, EOS and SOS"),
        ({"min_crop": 13}, {}, "min_crop=13 is more than the model's 12 inputs"),
        (
            {"transpose": 3},
            {"tokenizer": "bytes"},
            "transpose=3 changes music events, but .* 'bytes', not 'performance'",
        ),
        ({"stretch": (0.9, 1.0)}, {"tokenizer": "ids"}, r"stretch=\(0\.9, 1\.0\) changes music .*leave stretch off"),
        ({}, {"rank": 2, "world_size": 2}, r"rank=2 must lie in 0\.\.1"),
        ({"batch_size": 7}, {"world_size": 2}, "batch_size=7 must be a multiple of the 2 processes"),
    ],
)
def test_arguments_that_do_not_fit(config: dict, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenLoader(split_of(23), DataConfig(**config), **({"seq_len": 13, "seed": 0} | arguments))
