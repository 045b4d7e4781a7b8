"""How a model's continuations use the keys."""

import json

import numpy as np
import pytest
import torch

from perceivers.data.music import NOTE as NOTE_TYPE
from perceivers.data.music import NOTE_OFF, NOTE_ON, TIME_SHIFT, VOCAB_SIZE, encode_notes, seconds
from perceivers.data.tokens import TokenSplit
from perceivers.evaluate.playing import hands, play, played, playing_rows
from perceivers.generate.loaded import Loaded
from perceivers.key_use import KeyUse
from perceivers.models.build import build
from perceivers.models.perceiver_ar_config import PerceiverARConfig

USE = KeyUse(held_steps=(20, 30, 40, 50, 90), down=(1, 2, 2, 2, 3))


def piece(notes: int, *, pitch: int = 60) -> np.ndarray:
    """One note after the other, half a second each."""
    made = np.zeros(notes, NOTE_TYPE)
    made["onset_s"] = np.arange(notes) / 2
    made["offset_s"] = made["onset_s"] + 0.4
    made["pitch"], made["velocity"] = pitch + np.arange(notes) % 7, 80
    return encode_notes(made)


def split_of(*pieces: np.ndarray) -> TokenSplit:
    offsets = np.cumsum([0, *map(len, pieces)])
    return TokenSplit("test", np.concatenate(pieces), offsets, [f"piece {i}" for i in range(len(pieces))])


@pytest.fixture
def loaded() -> Loaded:
    torch.manual_seed(0)
    config = PerceiverARConfig(
        vocab_size=VOCAB_SIZE + 3, max_seq_len=61, num_latents=17, dim=14, depth=1, heads=7, cross_heads=2
    )
    return Loaded(build(config), "performance", keys=USE)


def test_describes_a_piece() -> None:
    ids = [NOTE_ON + 60, NOTE_ON + 64, TIME_SHIFT + 29, NOTE_ON + 67, TIME_SHIFT + 9]
    ids += [NOTE_OFF + 67, NOTE_OFF + 64, TIME_SHIFT + 9, NOTE_OFF + 60]
    described = hands(np.array(ids), USE)
    assert described.most_down == 3
    assert described.longest_s == 0.5
    assert described.crowded == pytest.approx(10 / 50)
    silent = hands(np.array([TIME_SHIFT + 9]), USE)
    assert (silent.longest_s, silent.crowded) == (0, 0)


def test_real_pieces_beside_continued_ones(loaded: Loaded) -> None:
    split = split_of(piece(9), piece(3), piece(11))
    playing = play(loaded, split, prompt_seconds=1.0, length=3.0)
    assert playing is not None
    assert len(playing.real) == len(playing.continued) == len(playing.any_keys) == 3
    assert {real.most_down for real in playing.real} == {1}
    assert max(made.most_down for made in playing.continued) <= 2
    assert max(made.longest_s for made in playing.continued) <= 0.5
    assert max(made.longest_s for made in playing.any_keys) > 0.5  # an untrained model lets go of nothing


def test_fewer_pieces_are_spread_over_the_split(loaded: Loaded) -> None:
    split = split_of(*(piece(7 + i) for i in range(5)))
    playing = play(loaded, split, pieces=3, prompt_seconds=1.0, length=2.0)
    assert playing is not None
    assert len(playing.real) == 3


def test_long_pieces_first_then_the_longest_others(loaded: Loaded) -> None:
    split = split_of(*(piece(notes, pitch=40 + 7 * i) for i, notes in enumerate((4, 9, 2, 3, 9))))
    by_length = {"as long": (2, 3.0, 1.0), "others too": (4, 3.0, 1.0), "beyond an opening": (5, 3.0, 1.2)}
    wanted = {"as long": 2, "others too": 4, "beyond an opening": 4}
    for name, (pieces, length, opening) in by_length.items():
        playing = play(loaded, split, pieces=pieces, prompt_seconds=opening, length=length)
        assert playing is not None
        assert len(playing.real) == wanted[name], name
    assert playing.real[0].longest_s == pytest.approx(0.4)


def test_nothing_is_longer_than_an_opening(loaded: Loaded) -> None:
    assert play(loaded, split_of(piece(3)), prompt_seconds=5.0, length=1000.0) is None


def test_a_model_that_learned_nothing_of_keys_is_measured_by_the_split(loaded: Loaded) -> None:
    loaded.keys = None
    playing = play(loaded, split_of(piece(9)), prompt_seconds=1.0, length=3.0)
    assert playing is not None
    assert playing.use.most_down == 1


def test_numbers_and_a_table(loaded: Loaded) -> None:
    playing = play(loaded, split_of(piece(9), piece(9)), prompt_seconds=1.0, length=3.0)
    assert playing is not None
    numbers = json.loads(json.dumps(playing.numbers()))
    assert numbers["real"] == {
        "pieces": 2,
        "most_keys_mean": 1.0,
        "most_keys": 1,
        "crowded": 0.0,
        "longest_note_median_s": 0.4,
        "longest_note_s": 0.4,
    }
    head, real, continued, free = playing_rows(numbers)
    assert head[2] == "time with more than 2"
    assert real == ("real", "1.0 (1)", "0.0%", "0.4 s (0.4 s)")
    assert (continued[0], free[0]) == ("continued", "with --any-keys")
    assert played(numbers) == "2 pieces of 3 s at most, as they are and played on by the model after 1 s:"
    assert seconds(piece(9)) > 3
