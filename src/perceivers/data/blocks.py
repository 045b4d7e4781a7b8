"""How a document is cut into blocks for scoring, so that every token is predicted exactly once."""

from typing import NamedTuple

__all__ = ["Block", "evaluation_block", "evaluation_blocks", "num_blocks"]


class Block(NamedTuple):
    """A row `tokens[start:stop]` of a document; all but its last token are inputs, all but its first targets."""

    start: int
    stop: int
    num_targets: int
    """The last so many targets are scored here, the others in earlier blocks."""


def num_blocks(length: int, *, stride: int) -> int:
    """Blocks of a document of `length` tokens, SOS and EOS included."""
    return (length - 2) // stride + 1


def evaluation_block(length: int, index: int, *, max_len: int, stride: int) -> Block:
    """Block `index` of `evaluation_blocks`, without making the others."""
    stop = length - (num_blocks(length, stride=stride) - 1 - index) * stride
    return Block(max(0, stop - max_len - 1), stop, min(stride, stop - 1))


def evaluation_blocks(length: int, *, max_len: int, stride: int) -> list[Block]:
    """Cut a document into blocks that score `stride` targets each, with all the context that fits before them.

    As in the reference: blocks are counted from the document's end, so that the first block is the short one.
    A document of 12 tokens with `max_len=6, stride=3` has 11 targets:

        tokens          0  1  2  3  4  5  6  7  8  9 10 11
        block 0         i  s  s
        block 1         i  i  i  s  s  s
        block 2               i  i  i  i  s  s  s
        block 3                        i  i  i  i  s  s  s      (s: scored; s but the last is an input, too)

    Args:
        length: Tokens of the document, SOS and EOS included.
        max_len: Inputs of the model; a block has up to one token more.
        stride: Targets that a block scores, at most the number of latents.

    Raises:
        ValueError: A size is out of range.
    """
    if length < 2:
        raise ValueError(f"a document of {length} tokens has nothing to predict; it needs at least 2")
    if not 1 <= stride <= max_len:
        raise ValueError(f"stride={stride} must lie in 1..max_len={max_len}, or targets would be left out")
    return [
        evaluation_block(length, index, max_len=max_len, stride=stride)
        for index in range(num_blocks(length, stride=stride))
    ]
