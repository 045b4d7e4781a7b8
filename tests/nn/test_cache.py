import pytest
import torch

from perceivers.nn.cache import KVCache


def filled(places: int = 11, batch: int = 2) -> KVCache:
    cache = KVCache(batch, 3, places, 5, dtype=torch.float32, device=torch.device("cpu"))
    cache.write(0, torch.randn(batch, 3, places, 5), torch.randn(batch, 3, places, 5))
    return cache


def test_what_is_written_is_read() -> None:
    cache = filled()
    before = [part.clone() for part in cache.read(0, 11)]
    keys, values = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    cache.write(3, keys, values)
    assert torch.equal(cache.read(3, 7)[0], keys)
    assert torch.equal(cache.read(3, 7)[1], values)
    for part, old in zip(cache.read(0, 11), before, strict=True):
        assert torch.equal(part[:, :, :3], old[:, :, :3])
        assert torch.equal(part[:, :, 7:], old[:, :, 7:])


def test_it_takes_its_own_precision() -> None:
    cache = KVCache(1, 1, 2, 3, dtype=torch.bfloat16, device=torch.device("cpu"))
    cache.write(1, torch.ones(1, 1, 1, 3), torch.ones(1, 1, 1, 3))
    assert cache.read(1, 2)[0].dtype == torch.bfloat16
    assert cache.nbytes == 2 * 2 * 3 * 2


@pytest.mark.parametrize("end", [7, 11])
@pytest.mark.parametrize("by", [1, 2, 3, 5, 6, 7])
def test_the_oldest_places_leave(by: int, end: int) -> None:
    cache = filled()
    expected = [part[:, :, by:end].clone() for part in cache.read(0, 11)]
    cache.shift(by, end)
    for part, kept in zip(cache.read(0, end - by), expected, strict=True):
        assert torch.equal(part, kept)


def test_rows_are_repeated_one_after_the_other() -> None:
    cache = filled()
    more = cache.repeat(3, 4, 9, 13)
    assert more.keys.shape == (6, 3, 13, 5)
    for row in range(6):
        for part, whole in zip(more.read(0, 5), cache.read(4, 9), strict=True):
            assert torch.equal(part[row], whole[row // 3])
