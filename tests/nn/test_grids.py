import math
from typing import Any

import pytest
import torch

from perceivers.nn.grids import FourierGrid, LearnedGrid, ProjectedGrid, grid_coordinates, point_coordinates

ROWS = torch.zeros(2, 1)


def test_coordinates_reach_both_ends_row_by_row() -> None:
    coordinates = grid_coordinates((3, 2), ROWS)
    assert coordinates.tolist() == [[-1, -1], [-1, 1], [0, -1], [0, 1], [1, -1], [1, 1]]
    assert grid_coordinates((1, 2), ROWS).tolist() == [[-1, -1], [-1, 1]]
    assert grid_coordinates((3,), ROWS.bfloat16()).dtype == torch.float32
    assert grid_coordinates((3,), ROWS.double()).dtype == torch.float64


def test_chosen_points_do_not_reach_the_end() -> None:
    points = torch.tensor([0, 7, 14])
    assert torch.allclose(
        point_coordinates(points, (3, 5), ROWS), torch.tensor([[-1, -1], [-1 / 3, -0.2], [1 / 3, 0.6]])
    )


def test_fourier_features_are_sines_of_each_axis() -> None:
    grid = FourierGrid((3, 5), bands=2, max_resolution=(6, 10))
    features = grid(ROWS)
    assert features.shape == (2, 15, grid.dim) == (2, 15, 10)
    x, y = grid_coordinates((3, 5), ROWS)[7].tolist()
    angles = [math.pi * place * f for place, top in ((x, 3), (y, 5)) for f in (1, top)]
    expected = [x, y, *map(math.sin, angles), *map(math.cos, angles)]
    assert torch.allclose(features[1, 7], torch.tensor(expected), atol=1e-6)
    bare = FourierGrid((3, 5), bands=2, cosines=False, coordinates=False)
    assert bare(ROWS).shape[-1] == bare.dim == 4


@pytest.mark.parametrize("kept", [{}, {"cosines": False}, {"coordinates": False}, {"spacing": torch.float32}], ids=str)
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 5)])
def test_features_of_a_grid_are_those_of_its_coordinates(shape: tuple[int, ...], kept: dict[str, Any]) -> None:
    """To the bit, though each axis is computed once."""
    grid = FourierGrid(shape, bands=3, max_resolution=tuple(2 * size for size in shape), **kept)
    places = grid_coordinates(shape, ROWS, spacing=grid.spacing).expand(len(ROWS), -1, -1)
    assert torch.equal(grid(ROWS), grid(ROWS, coordinates=places))


def test_spacing_in_float32_is_an_ulp_off_and_high_frequencies_show_it() -> None:
    exact = FourierGrid((224,), bands=3, max_resolution=(30720,))(ROWS)
    steps = FourierGrid((224,), bands=3, max_resolution=(30720,), spacing=torch.float32)(ROWS)
    assert torch.equal(steps[0, :, 0], torch.linspace(-1, 1, 224))
    assert (steps - exact)[..., 0].abs().max() < 1e-7
    assert 1e-4 < (steps - exact).abs().max() < 1e-2


def test_given_coordinates_may_differ_by_row() -> None:
    grid = FourierGrid((3,), bands=2)
    given = torch.tensor([[[-1.0], [0], [1]], [[0.5], [0], [1]]])
    features = grid(ROWS, coordinates=given)
    assert torch.equal(features[0], grid(ROWS)[0])
    assert not torch.equal(features[1], features[0])


def test_features_have_the_precision_of_their_rows() -> None:
    grid = FourierGrid((3,), bands=2)
    assert grid(ROWS.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(grid(ROWS.bfloat16()), grid(ROWS).bfloat16())


def test_learned_vectors_of_all_or_chosen_points() -> None:
    grid = LearnedGrid((3, 5), 7, std=0.02)
    assert torch.equal(grid(ROWS)[1], grid.table)
    assert torch.equal(grid(ROWS, points=torch.tensor([13, 2]))[0], grid.table[[13, 2]])
    with pytest.raises(ValueError, match="positions were given, but this model learned a table"):
        grid(ROWS, coordinates=torch.zeros(2, 15, 2))


def test_projection_and_residual_layers() -> None:
    grid = ProjectedGrid(LearnedGrid((5,), 3, std=1.0), project_dim=7, layers=2)
    assert grid.project is not None
    x = grid.project(grid.base.table)
    x = (x + grid.layers[0](x)).relu()
    x = x + grid.layers[1](x)
    assert torch.allclose(grid(ROWS)[0], x)
    assert ProjectedGrid(LearnedGrid((5,), 3, std=1.0), project_dim=None, layers=1).dim == 3


def test_given_coordinates_in_float16_are_turned_in_float32() -> None:
    grid = FourierGrid((7,), bands=3, max_resolution=(512,))
    place = torch.tensor([[[-1.0], [0.25], [0.875]]])  # which float16 holds
    like = torch.zeros(1, 1)
    torch.testing.assert_close(
        grid(like.half(), coordinates=place.half()), grid(like, coordinates=place).half(), atol=1e-3, rtol=1e-3
    )
