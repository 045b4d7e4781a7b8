import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from perceivers.nn.images import depth_to_space, neighbourhoods, pad_same, same_padding, space_to_depth


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (224, 7, 2, (2, 3)),
        (112, 3, 2, (0, 1)),
        (5, 3, 1, (1, 1)),
        (4, 4, 1, (1, 2)),
        (7, 1, 3, (0, 0)),
        (13, 7, 2, (3, 3)),
    ],
)
def test_same_padding_puts_the_odd_one_last(size: int, kernel: int, stride: int, expected: tuple[int, int]) -> None:
    before, after = same_padding(size, kernel=kernel, stride=stride)
    assert (before, after) == expected
    assert (size + before + after - kernel) // stride + 1 == -(-size // stride)


def test_padding_is_at_rows_and_columns() -> None:
    x = torch.ones(1, 1, 4, 5)
    padded = pad_same(x, kernel=(3, 3), stride=(2, 2), value=-7.0)
    assert padded.shape == (1, 1, 5, 7)
    assert (padded[0, 0, 4] == -7).all()
    assert (padded[0, 0, :4, [0, 6]] == -7).all()


@pytest.mark.parametrize("shape", [(2, 6, 9, 2), (2, 4, 6, 9, 2)])
def test_patches_come_back(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    patches = space_to_depth(x, patch=3, time_patch=2)
    assert patches.shape[-1] == 2 * 9 * (2 if len(shape) == 5 else 1)
    # The first patch holds the first rows and columns, row by row.
    first = x[0, :3, :3] if x.ndim == 4 else x[0, :2, :3, :3]
    assert torch.equal(patches[(0,) * (x.ndim - 1)], first.flatten())
    assert torch.equal(depth_to_space(patches, patch=3, time_patch=2), x)


def window(x: Tensor, row: int, column: int) -> Tensor:
    """The 3 x 3 pixels around one, zeros beyond the border."""
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    return padded[:, row : row + 3, column : column + 3].flatten(1)


def test_neighbourhoods_are_windows_row_by_row() -> None:
    x = torch.randn(2, 5, 7, 3)
    around = neighbourhoods(x, kernel=(3, 3))
    assert around.shape == (2, 5, 7, 27)
    for row, column in ((0, 0), (2, 3), (4, 6)):
        assert torch.equal(around[:, row, column], window(x, row, column))
    inside = neighbourhoods(x, kernel=(3, 3), padded=False)
    assert torch.equal(inside, around[:, 1:-1, 1:-1])
    assert neighbourhoods(x, kernel=(2, 3), stride=(1, 2), dilation=(2, 1)).shape == (2, 5, 4, 18)
