"""How rows of masked text are made; imports no torch, so that `--help` answers at once."""

from typing import Literal

from perceivers.records import record

__all__ = ["MaskedTextConfig"]


@record
class MaskedTextConfig:
    """Text with holes: windows of a byte store, some of whose words are hidden and are to be said.

    A row is the window of as many bytes as the model reads around a byte that is drawn from all bytes of the split,
    so a document is seen in proportion to its length. There are no ids for starts and ends of documents.

    The paper masks words, and calls a word what stands between spaces (Perceiver IO, Jaegle et al. 2021,
    https://arxiv.org/abs/2107.14795, appendix on language); the code that did it was not published. Here the white
    space before a word belongs to it, and a hidden byte is always the token MASK, never a random one or itself.
    """

    kind: Literal["masked_text"] = "masked_text"
    batch_size: int = 8
    """Rows a step, over all devices together."""
    share: float = 0.15
    """Share of the words (or bytes) of a row that are masked; at least one is."""
    unit: Literal["words", "bytes"] = "words"
    """What is masked: whole words, as in the paper, or single bytes, which their neighbours all but give away."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1 row")
        if not 0 < self.share < 1:
            raise ValueError(f"share={self.share} must lie between 0 and 1; the paper masks 0.15")
        if self.unit not in ("words", "bytes"):
            raise ValueError(f"unit={self.unit!r} must be 'words' (as in the paper) or 'bytes'")
