"""Which data goes with which model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from perceivers.data.picture_config import PictureConfig, WarpConfig
from perceivers.data.picture_store import PictureStore, PictureWriter
from perceivers.data.tokens import TokenStore
from perceivers.models.ecp_config import ECPConfig
from perceivers.models.feature_config import FlowFeatures, TokenFeatures
from perceivers.models.input_config import FourierPositions, InputConfig
from perceivers.models.perceiver_config import PerceiverIOConfig
from perceivers.train.config import TrainConfig
from perceivers.train.data import (
    masked_text_length,
    open_store,
    reads_grey,
    sequence_model,
    training_data,
)

Tiny = Callable[..., TrainConfig]


def perceiver(features: FlowFeatures | TokenFeatures) -> PerceiverIOConfig:
    return PerceiverIOConfig(input=InputConfig(features=features, positions=FourierPositions(bands=2)))


def test_a_store_is_opened_as_what_it_is(store: TokenStore, tmp_path: Path) -> None:
    assert isinstance(open_store(store.path), TokenStore)
    with PictureWriter(tmp_path / "pictures", shape=(2, 3, 1)) as writer:
        writer.append("train", np.zeros((1, 2, 3, 1), np.uint8))
    assert isinstance(open_store(tmp_path / "pictures"), PictureStore)
    with pytest.raises(FileNotFoundError, match="there is no store"):
        open_store(tmp_path / "nothing")


def test_tokens_of_an_ecp_all_get_a_loss(tiny: Tiny, store: TokenStore) -> None:
    config = tiny(model=ECPConfig(vocab_size=16, max_seq_len=11, segment_len=5, dim=12, heads=2))
    tokenizer, loader, fingerprint = training_data(config, store)
    assert (tokenizer, fingerprint) == ("ids", store.fingerprint)
    assert (loader.seq_len, loader.num_targets) == (12, 11)  # pyright: ignore


def test_models_that_are_not_for_the_data(tiny: Tiny, store: TokenStore, tmp_path: Path) -> None:
    frames, words = perceiver(FlowFeatures(shape=(2, 5, 7, 3))), perceiver(TokenFeatures(seq_len=5))
    with pytest.raises(ValueError, match="'perceiver_io' does not predict the next token"):
        sequence_model(frames)
    with pytest.raises(ValueError, match=r"holds 'ids' tokens; masked text is made of bytes"):
        masked_text_length(words, store)
    with PictureWriter(tmp_path / "photos", shape=(11, 13, 3)) as writer:
        writer.append("train", np.zeros((1, 11, 13, 3), np.uint8))
    photos = PictureStore.open(tmp_path / "photos")
    with pytest.raises(ValueError, match="this input reads no pairs of frames"):
        reads_grey(words, WarpConfig(shape=(5, 7)), photos)
    with pytest.raises(ValueError, match=r"--data\.shape 5 11, but the model reads frames of 5 x 7"):
        reads_grey(frames, WarpConfig(shape=(5, 11)), photos)
    with PictureWriter(tmp_path / "grey", shape=(11, 13, 1)) as writer:
        writer.append("train", np.zeros((1, 11, 13, 1), np.uint8))
    grey = PictureStore.open(tmp_path / "grey")
    with pytest.raises(ValueError, match=r"model reads frames of 3 channels, .*grey has photos of 1"):
        reads_grey(frames, WarpConfig(shape=(5, 7)), grey)
    assert not reads_grey(frames, WarpConfig(shape=(5, 7)), photos)
    of_grey = perceiver(FlowFeatures(shape=(2, 5, 7, 1)))
    assert all(reads_grey(of_grey, WarpConfig(shape=(5, 7)), store) for store in (photos, grey))
    for data in (PictureConfig(), WarpConfig()):
        with pytest.raises(ValueError, match=r"holds 'ids', which data of kind .* are not made of: .*prepare pictures"):
            training_data(tiny(data=data), store)
        with pytest.raises(ValueError, match="needs training data: --data STORE, made by `perceivers prepare pictures"):
            training_data(tiny(data=data), None)
