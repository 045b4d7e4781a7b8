import numpy as np
import pytest
import torch

from perceivers.data.batch import EOS, SOS
from perceivers.data.config import CopyConfig
from perceivers.data.synthetic import (
    COPY_VOCAB_SIZE,
    MirroredLoader,
    copy_accuracy_targets,
    mirrored_ids,
)


def test_the_second_half_mirrors_the_first() -> None:
    ids = mirrored_ids(2002, seed=1, split="train", index=0)
    assert len(ids) == 2000
    assert ids.tolist() == ids[::-1].tolist()
    assert ids.min() == 0
    assert ids.max() == COPY_VOCAB_SIZE - 1
    assert len(set(ids[:1000].tolist())) > 200


def test_sequences_differ_by_index_split_and_seed() -> None:
    arguments = {"seed": 1, "split": "train", "index": 0}
    first = mirrored_ids(34, **arguments)
    assert mirrored_ids(34, **arguments).tolist() == first.tolist()
    for change in ({"seed": 2}, {"split": "test"}, {"index": 1}):
        assert mirrored_ids(34, **(arguments | change)).tolist() != first.tolist()


@pytest.mark.parametrize("length", [2, 7])
def test_odd_lengths_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"length={length} must be even and at least 4"):
        mirrored_ids(length, seed=0, split="train", index=0)


def test_unknown_splits_are_refused() -> None:
    with pytest.raises(ValueError, match="split 'dev' must be one of train, validation, test"):
        mirrored_ids(8, seed=0, split="dev", index=0)
    with pytest.raises(ValueError, match="split 'dev' must be one of"):
        MirroredLoader(CopyConfig(), seed=0, split="dev")


def test_known_targets_are_the_last_half() -> None:
    #         SOS a b c c b a EOS; target i is token i + 1
    assert copy_accuracy_targets(8).tolist() == [False, False, False, True, True, True, True]
    for length in (4, 22):
        assert copy_accuracy_targets(length).sum() == length // 2
        tokens = np.concatenate([[SOS], mirrored_ids(length, seed=3, split="test", index=0), [EOS]])
        targets = tokens[1:][copy_accuracy_targets(length)]
        assert targets[:-1].tolist() == tokens[1 : length // 2][::-1].tolist()
        assert targets[-1] == EOS


def test_training_rows_stop_in_the_mirrored_half() -> None:
    loader = MirroredLoader(CopyConfig(length=22, batch_size=50), seed=1)
    seen = set()
    for step in range(4):
        batch = loader.batch(step)
        for tokens, length in zip(batch.tokens, batch.lengths.tolist(), strict=True):
            row = tokens[:length].tolist()
            seen.add(length)
            assert row[0] == SOS
            assert row[11:] == [*row[1:11][::-1], EOS][: length - 11]
        assert batch.positions[0, : batch.lengths[0], 0].tolist() == list(range(1, int(batch.lengths[0]) + 1))
    assert seen == set(range(12, 23))  # as in the official crops: half the length, and one token to predict


def test_rows_can_be_kept_from_the_unpredictable_half() -> None:
    loader = MirroredLoader(CopyConfig(length=22, batch_size=50, min_mirrored=7), seed=1)
    assert set(torch.cat([loader.batch(step).lengths for step in range(3)]).tolist()) == set(range(18, 23))


def test_held_out_rows_are_whole() -> None:
    config = CopyConfig(length=14, batch_size=3, start_length=4, growth_steps=100)
    batch = MirroredLoader(config, seed=3, split="validation").batch(1)
    assert batch.lengths.tolist() == [14, 14, 14]
    ids = [mirrored_ids(14, seed=3, split="validation", index=index) for index in (3, 4, 5)]
    assert batch.tokens[:, 1:-1].tolist() == [(row + 3).tolist() for row in ids]


def test_lengths_grow_around_a_fixed_centre() -> None:
    config = CopyConfig(length=32, batch_size=30, start_length=8, growth_steps=20)
    loader = MirroredLoader(config, seed=1)
    for step, length in [(0, 8), (10, 16), (20, 32), (99, 32)]:
        batch = loader.batch(step)
        assert length // 2 < batch.lengths.min() <= batch.lengths.max() <= length
        for row, real in enumerate(batch.lengths.tolist()):
            first, last = batch.positions[row, 0, 0].item(), batch.positions[row, real - 1, 0].item()
            assert first == (32 - length) // 2 + 1
            assert last == first + real - 1
            # Mirror images lie at p and 33 - p, whatever the length.
            by_position = dict(zip(batch.positions[row, :real, 0].tolist(), batch.tokens[row].tolist(), strict=False))
            for position, token in by_position.items():
                if position > 16 and token != EOS:
                    assert by_position[33 - position] == token


def test_short_sequences_take_as_many_mirrored_tokens_as_they_have() -> None:
    config = CopyConfig(length=32, batch_size=9, min_mirrored=11, start_length=8, growth_steps=20)
    assert set(MirroredLoader(config, seed=1).batch(0).lengths.tolist()) == {8}


def test_batches_depend_on_seed_and_step_alone() -> None:
    config = CopyConfig(length=22, batch_size=6)
    whole = MirroredLoader(config, seed=1).batch(5)
    assert torch.equal(MirroredLoader(config, seed=1).batch(5).tokens, whole.tokens)
    assert not torch.equal(MirroredLoader(config, seed=2).batch(5).lengths, whole.lengths)
    for rank in range(3):
        part = MirroredLoader(config, seed=1, rank=rank, world_size=3).batch(5)
        assert part.lengths.tolist() == whole.lengths[rank::3].tolist()
        assert torch.equal(part.tokens, whole.tokens[rank::3, : part.tokens.shape[1]])


def test_no_sequence_comes_twice() -> None:
    loader = MirroredLoader(CopyConfig(length=22, batch_size=10), seed=1)
    halves = {tuple(row[:11].tolist()) for step in range(20) for row in loader.batch(step).tokens}
    assert len(halves) == 200


def test_symbols_start_at_the_offset() -> None:
    tokens = MirroredLoader(CopyConfig(length=22, batch_size=2), seed=1, offset=5).batch(3).tokens
    assert tokens[tokens > SOS].min() >= 5


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size=7 must be a multiple of the 2 processes"):
        MirroredLoader(CopyConfig(batch_size=7), seed=1, world_size=2)
