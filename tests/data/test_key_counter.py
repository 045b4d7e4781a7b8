"""How long keys are held, and how many are down at once."""

import json

import numpy as np
import pytest

from perceivers.data.chorales import chorale_events, chorale_splits
from perceivers.data.key_counter import KeyUseCounter
from perceivers.data.music import NOTE_OFF, NOTE_ON, TIME_SHIFT, VELOCITY
from perceivers.data.tokens import StoreWriter, TokenStore
from perceivers.key_use import PERCENTILES, KeyUse
from perceivers.records import from_dict, to_dict

C, E = 60, 64


def counted(*pieces: list[int]) -> KeyUseCounter:
    counter = KeyUseCounter()
    for ids in pieces:
        counter.add(np.array(ids, np.int64))
    return counter


def shift(steps: int) -> int:
    return TIME_SHIFT + steps - 1


def test_counts_notes_and_time() -> None:
    counter = counted(
        [VELOCITY + 3, NOTE_ON + C, shift(30), NOTE_ON + E, shift(20), NOTE_OFF + C, shift(7), NOTE_OFF + E, shift(5)]
    )
    assert counter.held == {50: 1, 27: 1}
    assert counter.down == {1: 37, 2: 20, 0: 5}
    use = counter.result()
    assert use == KeyUse(held_steps=(27, 50, 50, 50, 50), down=(1, 2, 2, 2, 2))


def test_a_key_that_nobody_lets_go_of_is_down_to_the_end_and_lone_note_offs_count_for_nothing() -> None:
    counter = counted([NOTE_OFF + E, NOTE_ON + C, shift(30), NOTE_ON + C, shift(12)])
    assert counter.held == {42: 1}
    assert counter.down == {1: 42}


def test_pieces_do_not_run_into_each_other() -> None:
    assert counted([NOTE_ON + C, shift(3)], [shift(4), NOTE_OFF + C]).held == {3: 1}


def test_percentiles_are_values_that_occur() -> None:
    held = [[NOTE_ON + C, shift(10), NOTE_OFF + C]] * 998 + [[NOTE_ON + C, shift(20), NOTE_OFF + C]]
    use = counted(*held, [NOTE_ON + C, shift(90), NOTE_OFF + C]).result()
    assert use is not None
    assert use.held_steps == (10, 10, 10, 20, 90)
    assert use.longest_steps == 20
    assert PERCENTILES[-1] == 100


def test_nothing_was_played() -> None:
    assert counted([], [shift(9)], [NOTE_ON + C]).result() is None


def test_json_and_back() -> None:
    use = KeyUse(held_steps=(1, 2, 3, 4, 5), down=(1, 2, 3, 4, 4))
    assert from_dict(KeyUse, json.loads(json.dumps(to_dict(use)))) == use
    for wrong in (
        {"held_steps": [1, 2], "down": [1] * 5},
        {"held_steps": [1, 2, 3, 4, 0.5], "down": [1] * 5},
        {"x": 1},
    ):
        with pytest.raises(ValueError, match=r"held_steps|x"):
            from_dict(KeyUse, wrong)


def test_says_what_it_knows() -> None:
    text = str(KeyUse(held_steps=(60, 90, 180, 240, 840), down=(3, 4, 4, 4, 5)))
    assert "0.6 s (half of the notes), 2.4 s (99.9 %), 8.4 s at most" in text
    assert "3 are down at once (half of the time), 4 (99.9 %), 5 at most" in text


def test_a_store_of_music_knows_the_keys_of_its_training_data(tmp_path) -> None:
    train, other = [NOTE_ON + C, shift(30), NOTE_OFF + C], [NOTE_ON + C, NOTE_ON + E, shift(99)]
    with StoreWriter(tmp_path / "store", tokenizer="performance", vocab_size=388) as writer:
        writer.append("train", np.array(train), name="a")
        writer.append("test", np.array(other), name="b")
    header = TokenStore.open(tmp_path / "store").header
    assert header.keys == KeyUse(held_steps=(30,) * 5, down=(1,) * 5)
    with StoreWriter(tmp_path / "text", tokenizer="bytes", vocab_size=256) as writer:
        writer.append("train", np.array([1, 2]), name="a")
    assert TokenStore.open(tmp_path / "text").header.keys is None


def test_a_store_of_before_it_was_counted_opens(tmp_path) -> None:
    with StoreWriter(tmp_path / "store", tokenizer="performance", vocab_size=388) as writer:
        writer.append("train", np.array([NOTE_ON + C, shift(30), NOTE_OFF + C]), name="a")
    before = TokenStore.open(tmp_path / "store")
    header = json.loads((tmp_path / "store" / "header.json").read_text())
    del header["keys"]
    (tmp_path / "store" / "header.json").write_text(json.dumps(header))
    after = TokenStore.open(tmp_path / "store")
    assert after.header.keys is None
    assert after.fingerprint == before.fingerprint


def test_damaged_numbers_are_found(tmp_path) -> None:
    with StoreWriter(tmp_path / "store", tokenizer="performance", vocab_size=388) as writer:
        writer.append("train", np.array([NOTE_ON + C, shift(30), NOTE_OFF + C]), name="a")
    header = json.loads((tmp_path / "store" / "header.json").read_text())
    header["keys"]["down"] = [1, 2]
    (tmp_path / "store" / "header.json").write_text(json.dumps(header))
    with pytest.raises(ValueError, match=r"header.json.*must be 5 whole numbers"):
        TokenStore.open(tmp_path / "store")


def test_the_chorales_have_four_voices() -> None:
    use = counted(*(chorale_events(chorale).tolist() for chorale in chorale_splits()["train"])).result()
    assert use is not None
    assert (use.most_down, use.down[-1]) == (4, 4)
    assert (use.longest_steps, use.held_steps[-1]) == (240, 840)
