from collections import Counter

import numpy as np
import pytest
import torch

from perceivers.data.masked_config import MaskedTextConfig
from perceivers.data.masked_text import (
    MaskedBatch,
    MaskedTextLoader,
    Window,
    choose_masked,
    evaluation_windows,
    masked_batches,
)
from perceivers.data.tokens import TokenSplit

MASK, OFFSET = 3, 6
BYTES = MaskedTextConfig(batch_size=5, share=0.3, unit="bytes")
WORDS = MaskedTextConfig(batch_size=5, share=0.3)


def split_of(*texts: str) -> TokenSplit:
    data = [np.frombuffer(text.encode(), np.uint8).astype(np.uint16) for text in texts]
    offsets = np.cumsum([0, *map(len, data)])
    return TokenSplit("train", np.concatenate(data), offsets, [f"document {i}" for i in range(len(texts))])


def rows_of(batch: MaskedBatch) -> list[str]:
    """The true text of each row, after a check of what the batch promises."""
    assert torch.equal(batch.tokens == MASK, batch.masked)
    assert torch.equal(batch.tokens[~batch.masked], batch.labels[~batch.masked])
    places = torch.arange(batch.tokens.shape[1])
    assert torch.equal(batch.labels == 0, places >= batch.lengths[:, None])
    assert not batch.masked[batch.labels == 0].any()
    return [
        bytes((row[:length] - OFFSET).tolist()).decode()
        for row, length in zip(batch.labels, batch.lengths.tolist(), strict=True)
    ]


def same(first: MaskedBatch, second: MaskedBatch) -> bool:
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in ("tokens", "labels", "masked"))


def masked_text(text: str, config: MaskedTextConfig, seed: int) -> str:
    ids = np.frombuffer(text.encode(), np.uint8)
    masked = choose_masked(ids, config, np.random.default_rng(seed))
    return "".join("#" if hole else letter for letter, hole in zip(text, masked, strict=True))


# Rows


def test_rows_are_windows_with_holes_and_short_documents_are_padded() -> None:
    split = split_of("abcdefghijklm", "NOP")
    loader = MaskedTextLoader(split, BYTES, seq_len=7, seed=1)
    for step in range(20):
        batch = loader.batch(step)
        assert batch.tokens.shape == (5, 7)
        for row in rows_of(batch):
            assert row == "NOP" or (len(row) == 7 and row in "abcdefghijklm")
        assert batch.masked.sum(1).tolist() == [max(1, round(0.3 * n)) for n in batch.lengths.tolist()]
        assert batch.targets == batch.masked.sum()


def test_documents_are_seen_in_proportion_to_their_length_and_at_every_place() -> None:
    split = split_of("abcdefghijklmnopqrstu", "VWXYZ" * 2)
    loader = MaskedTextLoader(split, MaskedTextConfig(batch_size=31, unit="bytes"), seq_len=5, seed=1)
    rows = [row for step in range(30) for row in rows_of(loader.batch(step))]
    lower = sum(row.islower() for row in rows)
    assert abs(lower / len(rows) - 21 / 31) < 0.04
    assert {row[0] for row in rows if row.islower()} == set("abcdefghijklmnopq")
    inner = Counter(row[0] for row in rows if row.islower() and row[0] not in "aq")
    assert max(inner.values()) < 2 * min(inner.values())


def test_an_epoch_sees_every_stretch_once() -> None:
    split = split_of("ab" * 50)
    loader = MaskedTextLoader(split, BYTES, seq_len=10, seed=1)
    assert loader.rows_per_epoch == 10
    other = MaskedTextLoader(split_of("ab"), BYTES, seq_len=10, seed=1)
    assert other.rows_per_epoch == 1
    rows_of(other.batch(3))


def test_batches_are_a_function_of_seed_and_step() -> None:
    split = split_of("The quick brown fox jumps over the lazy dog. ", "Again and again.")

    def loader(seed: int = 1) -> MaskedTextLoader:
        return MaskedTextLoader(split, WORDS, seq_len=13, seed=seed)

    assert same(loader().batch(4), loader().batch(4))
    assert not same(loader().batch(4), loader().batch(5))
    assert not same(loader().batch(4), loader(seed=2).batch(4))


def test_ranks_share_a_batch() -> None:
    split, config = split_of("The quick brown fox jumps over the lazy dog. "), MaskedTextConfig(batch_size=6)
    whole = MaskedTextLoader(split, config, seq_len=11, seed=1).batch(2)
    parts = [MaskedTextLoader(split, config, seq_len=11, seed=1, rank=r, world_size=3).batch(2) for r in range(3)]
    for rank, part in enumerate(parts):
        assert torch.equal(part.tokens, whole.tokens[rank::3])
        assert torch.equal(part.masked, whole.masked[rank::3])
    with pytest.raises(ValueError, match="batch_size=5 must be a multiple of the 3 processes"):
        MaskedTextLoader(split, WORDS, seq_len=11, seed=1, world_size=3)


def test_what_cannot_be_loaded_is_refused() -> None:
    with pytest.raises(ValueError, match="seq_len=0 must be at least 1"):
        MaskedTextLoader(split_of("a"), WORDS, seq_len=0, seed=1)
    with pytest.raises(ValueError, match="masked text is made of bytes, this data holds 'performance' tokens"):
        MaskedTextLoader(split_of("a"), WORDS, seq_len=3, seed=1, tokenizer="performance")


def test_a_batch_moves_and_knows_its_padding() -> None:
    loader = MaskedTextLoader(split_of("abc", "abcdefg" * 3), BYTES, seq_len=7, seed=1)
    batch = next(batch for batch in map(loader.batch, range(50)) if 0 < int((batch.lengths == 3).sum()) < 5)
    assert same(batch.to("cpu"), batch)
    assert batch.to("meta").tokens.device.type == "meta"
    real = batch.real
    assert real is not None
    assert torch.equal(real, batch.labels > 0)
    full = MaskedTextLoader(split_of("abcdefg" * 3), BYTES, seq_len=7, seed=1).batch(0)
    assert full.real is None


# Holes


def test_words_are_masked_whole_with_the_space_before_them() -> None:
    text = "one  two\nthree four, five six seven eight nine ten"
    seen = set()
    for seed in range(50):
        masked = masked_text(text, WORDS, seed)
        words = ["one", "  two", "\nthree", " four,", " five", " six", " seven", " eight", " nine", " ten"]
        place, holes = 0, []
        for word in words:
            piece = masked[place : place + len(word)]
            assert piece in (word, "#" * len(word))
            holes += [word] if piece != word else []
            place += len(word)
        assert len(holes) == 3
        seen.update(holes)
    assert len(seen) == 10


def test_long_words_are_cut_and_one_unit_is_always_masked() -> None:
    assert masked_text("x" * 100, MaskedTextConfig(share=0.2), 1).count("#") in (4, 32)
    for unit in ("words", "bytes"):
        assert masked_text("a", MaskedTextConfig(share=0.01, unit=unit), 1) == "#"
    assert masked_text("a b", MaskedTextConfig(share=0.01), 1) in ("# b", "a##")


# Evaluation


def test_windows_cover_every_byte_once_in_about_equal_parts() -> None:
    split = split_of("a" * 22, "b", "c" * 7)
    windows = evaluation_windows(split, seq_len=7)
    assert windows[:4] == [Window(0, 0, 6), Window(0, 6, 11), Window(0, 11, 16), Window(0, 16, 22)]
    assert windows[4:] == [Window(1, 0, 1), Window(2, 0, 7)]
    some = evaluation_windows(split, seq_len=7, max_tokens=15)
    assert some == [windows[0], windows[2], windows[5]]
    assert evaluation_windows(split, seq_len=7, max_tokens=1) == windows[:1]
    assert evaluation_windows(split, seq_len=7, max_tokens=1000) == windows


def test_holes_of_an_evaluation_depend_on_the_window_alone() -> None:
    split = split_of("The quick brown fox jumps over the lazy dog. ", "Again", "And so on.")

    def holes(**arguments: int) -> dict[Window, list[bool]]:
        found = {}
        for windows, batch in masked_batches(split, WORDS, seq_len=13, **arguments):
            for window, text, masked in zip(windows, rows_of(batch), batch.masked.tolist(), strict=True):
                assert text.encode() == bytes(split[window.document][window.start : window.stop].tolist())
                found[window] = masked
        return found

    everything = holes()
    assert list(everything) == evaluation_windows(split, seq_len=13)
    assert holes(batch_size=2) == everything
    few = holes(max_tokens=20)
    assert len(few) < len(everything)
    assert all(everything[window] == masked for window, masked in few.items())
    assert holes(seed=1) != everything
