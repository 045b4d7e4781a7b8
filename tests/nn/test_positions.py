import math

import pytest
import torch

from perceivers.nn.positions import (
    PositionTables,
    Rotation,
    fourier_features,
    fourier_table,
    linear_coordinates,
    rotary_frequencies,
    sinusoidal_table,
)


def test_frequencies_end_at_the_longest_wavelength() -> None:
    torch.testing.assert_close(rotary_frequencies(6, 49), torch.tensor([1, 1 / 7, 1 / 49]).double())
    assert rotary_frequencies(2, 49).tolist() == [1]
    assert rotary_frequencies(0, 49).tolist() == []


def test_neighbouring_channels_turn_together() -> None:
    x = torch.tensor([1.0, 0.0, 0.0, 1.0, 5.0]).view(1, 1, 1, 5)
    turned = Rotation.at(torch.tensor([[3]]), channels=4, max_wavelength=100)(x).flatten()
    slow = 3 / 100
    expected = [math.cos(3), math.sin(3), -math.sin(slow), math.cos(slow), 5.0]
    torch.testing.assert_close(turned, torch.tensor(expected))


def test_any_frequencies() -> None:
    x = torch.tensor([1.0, 0.0, 0.0, 1.0, 5.0]).view(1, 1, 1, 5)
    turned = Rotation.by(torch.tensor([[3]]), torch.tensor([0.5, -2.0]).double())(x).flatten()
    torch.testing.assert_close(turned, torch.tensor([math.cos(1.5), math.sin(1.5), math.sin(6), math.cos(6), 5.0]))


def test_scores_depend_on_distance_alone() -> None:
    torch.manual_seed(1)
    q, k = torch.randn(1, 1, 1, 6).double(), torch.randn(1, 1, 1, 6).double()

    def score(i: int, j: int) -> torch.Tensor:
        settings = {"channels": 6, "max_wavelength": 31, "dtype": torch.float64}
        turned_q = Rotation.at(torch.tensor([[i]]), **settings)(q)
        return (turned_q * Rotation.at(torch.tensor([[j]]), **settings)(k)).sum()

    torch.testing.assert_close(score(5, 2), score(3, 0))
    torch.testing.assert_close(score(5, 2), score(-7, -10))
    assert not torch.isclose(score(5, 2), score(2, 5))


def test_only_chosen_heads_turn() -> None:
    x = torch.randn(2, 5, 3, 4)
    steps = torch.tensor([[1, 2, 3], [4, 5, 6]])
    every = Rotation.at(steps, channels=4, max_wavelength=7)(x)
    some = Rotation.at(steps, channels=4, max_wavelength=7, heads=(0, 3))(x)
    torch.testing.assert_close(some[:, [0, 3]], every[:, [0, 3]])
    assert torch.equal(some[:, [1, 2, 4]], x[:, [1, 2, 4]])
    assert torch.equal(Rotation.at(steps, channels=4, max_wavelength=7, heads=())(x), x)
    assert torch.equal(Rotation.at(steps, channels=0, max_wavelength=7)(x), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_precision_is_kept_far_out(dtype: torch.dtype) -> None:
    """Angles of a hundred thousand radians need more digits than float32 has."""
    rotation = Rotation.at(torch.tensor([[131_071]]), channels=2, max_wavelength=131_072, dtype=dtype)
    tolerance = 1e-15 if dtype == torch.float64 else 1e-7
    assert (rotation.cos - math.cos(131_071)).abs().max() < tolerance
    x = torch.randn(1, 1, 1, 4).to(dtype)
    assert rotation(x).dtype == dtype


def test_sinusoidal_table() -> None:
    table = sinusoidal_table(3, 4)
    expected = [[0, 0, 1, 1]] + [[math.sin(i), math.sin(i / 10_000), math.cos(i), math.cos(i / 10_000)] for i in (1, 2)]
    torch.testing.assert_close(table, torch.tensor(expected))
    assert (sinusoidal_table(5, 7)[:, 6] == 0).all()  # an odd channel stays empty
    assert sinusoidal_table(5, 3).isfinite().all()


def test_coordinates_of_a_grid() -> None:
    grid = linear_coordinates((2, 3))
    assert grid[..., 0].tolist() == [[-1, -1, -1], [1, 1, 1]]
    assert grid[..., 1].tolist() == [[-1, 0, 1], [-1, 0, 1]]


def test_fourier_features() -> None:
    coordinates = torch.tensor([[0.25, -0.5]])
    features = fourier_features(coordinates, bands=2, max_resolution=6, concat=True)
    angles = [math.pi * f * x for x in (0.25, -0.5) for f in (1.0, 3.0)]
    expected = [0.25, -0.5, *map(math.sin, angles), *map(math.cos, angles)]
    torch.testing.assert_close(features, torch.tensor([expected]))
    assert fourier_features(coordinates, bands=2, max_resolution=6, concat=False).shape == (1, 8)
    assert fourier_table(5, 6).shape == (5, 6)


def test_fourier_features_of_several_axes() -> None:
    coordinates = torch.rand(2, 3, 2) * 2 - 1
    features = fourier_features(coordinates, bands=4, max_resolution=(6, 10), concat=False, cosines=False)
    for axis, size in enumerate((6, 10)):
        alone = fourier_features(coordinates[..., [axis]], bands=4, max_resolution=size, concat=False, cosines=False)
        assert torch.equal(features[..., 4 * axis : 4 * axis + 4], alone)
    with pytest.raises(ValueError, match=r"max_resolution=\(6,\) is for 1 axes, but positions have 2"):
        fourier_features(coordinates, bands=4, max_resolution=(6,), concat=False)


def test_rows_of_all_axes_are_summed() -> None:
    tables = PositionTables([torch.arange(6.0).view(3, 2), torch.arange(10.0).view(5, 2) * 100], learned=True)
    found = tables(torch.tensor([[[2, 4], [0, 1]]]))
    assert found.tolist() == [[[804.0, 905.0], [200.0, 301.0]]]


def test_learned_tables_are_parameters_and_fixed_ones_are_saved() -> None:
    learned = PositionTables([torch.ones(3, 2)], learned=True)
    fixed = PositionTables([torch.ones(3, 2)], learned=False)
    assert [name for name, _ in learned.named_parameters()] == ["axis0"]
    assert not list(fixed.parameters())
    assert list(fixed.state_dict()) == list(learned.state_dict()) == ["axis0"]


@pytest.mark.parametrize("bad", [3, -1])
def test_positions_beyond_the_table(bad: int) -> None:
    tables = PositionTables([torch.ones(5, 2), torch.ones(3, 2)], learned=False)
    with pytest.raises(
        ValueError, match=r"positions reach from \[1, .*but the position tables have rows 0 to \[4, 2\]"
    ):
        tables(torch.tensor([[[1, 2], [4, bad]]]))
