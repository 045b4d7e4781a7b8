import numpy as np
import pytest
import torch

from perceivers.data.batch import EOS, NUM_SPECIAL, PAD, SOS, TokenBatch, collate, model_tokens


def test_special_ids_are_those_of_the_official_code() -> None:
    assert (PAD, EOS, SOS, NUM_SPECIAL) == (0, 1, 2, 3)


def test_collate_pads_on_the_right_to_the_longest_row() -> None:
    tokens = [np.array([2, 5, 7]), np.array([11, 13, 1, 3, 4])]
    positions = [np.array([[1], [2], [3]]), np.arange(7, 12)[:, None]]
    batch = collate(tokens, positions)
    assert batch.tokens.tolist() == [[2, 5, 7, 0, 0], [11, 13, 1, 3, 4]]
    assert batch.positions[..., 0].tolist() == [[1, 2, 3, 0, 0], [7, 8, 9, 10, 11]]
    assert batch.lengths.tolist() == [3, 5]


def test_collate_keeps_several_axes_of_positions() -> None:
    batch = collate([np.array([2, 5])], [np.array([[1, 2, 3], [4, 5, 6]])])
    assert batch.positions.tolist() == [[[1, 2, 3], [4, 5, 6]]]


def test_to_moves_every_tensor() -> None:
    batch = collate([np.array([2, 5])], [np.array([[1], [2]])]).to("meta")
    assert {batch.tokens.device.type, batch.positions.device.type, batch.lengths.device.type} == {"meta"}
    assert batch.to(torch.device("meta")).tokens.shape == (1, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU's driver")
def test_pin_memory_pins_every_tensor() -> None:
    batch = collate([np.array([2, 5])], [np.array([[1], [2]])]).pin_memory()
    assert batch.tokens.is_pinned()
    assert batch.positions.is_pinned()
    assert batch.lengths.is_pinned()


def test_batch_is_frozen() -> None:
    batch = collate([np.array([2])], [np.array([[1]])])
    with pytest.raises(AttributeError):
        batch.tokens = batch.lengths  # type: ignore[misc]
    assert isinstance(batch, TokenBatch)


def test_model_tokens_of_every_crop_is_a_slice_of_the_whole() -> None:
    ids = np.array([0, 7, 255], dtype=np.uint16)
    whole = [SOS, 3, 10, 258, EOS]
    assert model_tokens(ids).tolist() == whole
    for start in range(5):
        for stop in range(start + 1, 6):
            assert model_tokens(ids, start=start, stop=stop).tolist() == whole[start:stop]


def test_model_tokens_takes_another_offset_without_overflow() -> None:
    assert model_tokens(np.array([65535], dtype=np.uint16), offset=11).tolist() == [SOS, 65546, EOS]
