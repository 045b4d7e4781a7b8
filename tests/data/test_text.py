import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceivers.data.text import (
    BYTES_VOCAB_SIZE,
    decode_bytes,
    decode_perceiver_bytes,
    decode_perceiver_text,
    encode_bytes,
    encode_perceiver_bytes,
    encode_perceiver_text,
)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_comes_back_exactly(text: str) -> None:
    ids = encode_bytes(text)
    assert decode_bytes(ids) == text
    assert ids.tolist() == list(text.encode())


def test_ids_are_bytes() -> None:
    assert encode_bytes("aé\r\n").tolist() == [97, 195, 169, 13, 10]
    assert encode_bytes("a").dtype == np.int32
    assert BYTES_VOCAB_SIZE == 256


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    assert decode_bytes(np.array([97, 255, 98])) == "a\ufffdb"


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="character 1 of the text is '\\\\ud800', half a surrogate pair"):
        encode_bytes("a\ud800")


@pytest.mark.parametrize("ids", [[97, 256], [-1, 97]])
def test_ids_that_are_no_bytes_are_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match=r"are not all bytes, 0\.\.255; take off the model's offset"):
        decode_bytes(np.array(ids))


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_perceiver_ids_are_bytes_after_six_special_ids(text: str) -> None:
    ids = encode_perceiver_bytes(text)
    assert ids.tolist() == [byte + 6 for byte in text.encode()]
    assert decode_perceiver_bytes(np.array([1, 0, *ids.tolist(), 3, 5])) == text
    assert encode_perceiver_bytes(text.encode()).tolist() == ids.tolist()


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_text_with_its_marks_comes_back(text: str) -> None:
    assert decode_perceiver_text(encode_perceiver_text(text)) == f"[CLS]{text}[SEP]"


def test_names_of_special_ids_in_a_text_are_these_ids() -> None:
    assert encode_perceiver_text("a[MASK][PAD]é[mask").tolist() == [
        *[4, 103, 3, 0, 201, 175],
        *[byte + 6 for byte in b"[mask"],
        5,
    ]
    assert decode_perceiver_text(np.array([201, 3, 175, 0, 1, 2])) == "\ufffd[MASK]\ufffd[PAD][BOS][EOS]"
