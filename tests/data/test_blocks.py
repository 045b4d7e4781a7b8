import pytest
from hypothesis import given
from hypothesis import strategies as st

from perceivers.data.blocks import Block, evaluation_block, evaluation_blocks, num_blocks


def test_the_first_block_is_the_short_one() -> None:
    assert evaluation_blocks(12, max_len=6, stride=3) == [
        Block(0, 3, 2),
        Block(0, 6, 3),
        Block(2, 9, 3),
        Block(5, 12, 3),
    ]


def test_a_document_shorter_than_a_block() -> None:
    assert evaluation_blocks(4, max_len=10, stride=6) == [Block(0, 4, 3)]
    assert evaluation_blocks(2, max_len=10, stride=6) == [Block(0, 2, 1)]


@given(
    length=st.integers(2, 97),
    sizes=st.integers(1, 23).flatmap(lambda m: st.tuples(st.just(m), st.integers(1, m))),
)
def test_every_target_is_scored_once_with_all_the_context_that_fits(length: int, sizes: tuple[int, int]) -> None:
    max_len, stride = sizes
    blocks = evaluation_blocks(length, max_len=max_len, stride=stride)
    assert len(blocks) == num_blocks(length, stride=stride)
    scored = [token for block in blocks for token in range(block.stop - block.num_targets, block.stop)]
    assert scored == list(range(1, length))  # all but the SOS
    for index, block in enumerate(blocks):
        assert block == evaluation_block(length, index, max_len=max_len, stride=stride)
        assert block.start == max(0, block.stop - 1 - max_len)
        assert block.num_targets < block.stop - block.start + 1


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match="a document of 1 tokens has nothing to predict"):
        evaluation_blocks(1, max_len=3, stride=2)
    for stride in (0, 4):
        with pytest.raises(
            ValueError, match=rf"stride={stride} must lie in 1\.\.max_len=3, or targets would be left out"
        ):
            evaluation_blocks(7, max_len=3, stride=stride)
