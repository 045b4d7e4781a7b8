import pytest
import torch
from torch import Tensor, nn

from perceivers.models.flow import tile_origins, tile_weights, tiled_flow


@pytest.mark.parametrize(
    ("size", "expected"),
    [((6, 8), [(0, 0)]), ((9, 8), [(0, 0), (3, 0), (3, 0)]), ((8, 8), [(0, 0), (2, 0), (2, 0)])],
)
def test_tiles_lie_inside(size: tuple[int, int], expected: list[tuple[int, int]]) -> None:
    origins = tile_origins(size, (6, 8), overlap=3)
    assert sorted(set(origins)) == sorted(set(expected))
    assert all(y + 6 <= size[0] and x + 8 <= size[1] for y, x in origins)


def test_weights_fall_towards_the_border() -> None:
    assert tile_weights((3, 5)).tolist() == [[1, 1, 1, 1, 1], [1, 2, 2, 2, 1], [1, 1, 1, 1, 1]]


class Place(nn.Module):
    """Gives back the first frame's two channels."""

    def forward(self, frames: Tensor) -> Tensor:
        assert frames.shape[1:4] == (2, 6, 8)
        return frames[:, 0]


def test_tiles_are_put_where_they_came_from() -> None:
    frames = torch.randn(2, 2, 13, 17, 2)
    torch.testing.assert_close(tiled_flow(Place(), frames, tile=(6, 8), overlap=3), frames[:, 0])


@pytest.mark.parametrize(
    ("size", "overlap", "message"),
    [
        ((5, 8), 3, "pictures of 5 x 8 are smaller than a tile of 6 x 8"),
        ((9, 9), 6, r"overlap=6 must lie in 0\.\.5 for tiles of 6 x 8"),
    ],
)
def test_pictures_that_do_not_fit_say_why(size: tuple[int, int], overlap: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tile_origins(size, (6, 8), overlap=overlap)
