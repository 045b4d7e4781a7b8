import pytest
import torch

from perceivers.models.hip import pack, regroup, unpack
from perceivers.models.hip_groups import group_layout


def test_the_example_of_the_docstring() -> None:
    layout = group_layout({"image": 7, "label": 2}, 4)
    assert layout.groups == {"image": 3, "label": 1}
    assert layout.size == 3
    values = {"image": torch.arange(1.0, 8)[None, :, None], "label": torch.tensor([[[8.0], [9.0]]])}
    expected = [[1, 2, 3], [4, 5, 6], [7, 0, 0], [8, 9, 0]]
    assert pack(values, layout)[0, :, :, 0].tolist() == expected


def test_the_first_of_equal_modalities_gets_the_next_group() -> None:
    assert group_layout({"a": 6, "b": 6}, 3).groups == {"a": 2, "b": 1}
    assert group_layout({"a": 3, "b": 6}, 5).groups == {"a": 2, "b": 3}


@pytest.mark.parametrize(("sizes", "groups"), [((11, 5, 1), 7), ((13,), 5), ((2, 3), 2), ((5, 7, 2), 1), ((2, 3), 5)])
def test_unpacking_gives_back_what_was_packed(sizes: tuple[int, ...], groups: int) -> None:
    values = {f"m{i}": torch.randn(2, n, 3) for i, n in enumerate(sizes)}
    layout = group_layout({name: x.shape[1] for name, x in values.items()}, groups)
    packed = pack(values, layout)
    assert packed.shape == (2, groups, layout.size, 3)
    assert (packed != 0).any(-1).sum() == 2 * sum(sizes)
    for name, x in unpack(packed, layout).items():
        assert torch.equal(x, values[name])


def test_one_group_holds_all_modalities_without_padding() -> None:
    layout = group_layout({"a": 2, "b": 3}, 1)
    assert layout.concatenated
    assert layout.size == 5


def test_a_modality_needs_a_group() -> None:
    with pytest.raises(ValueError, match=r"3 modalities \(a, b, c\) need 3 groups, got 2: a group holds one modality"):
        group_layout({"a": 5, "b": 5, "c": 5}, 2)


def test_groups_without_positions_are_padding() -> None:
    layout = group_layout({"a": 2, "b": 1}, 5)
    assert layout.groups == {"a": 3, "b": 2}
    values = {"a": torch.tensor([[[1.0], [2.0]]]), "b": torch.tensor([[[3.0]]])}
    packed = pack(values, layout)
    assert packed.tolist() == [[[[1.0]], [[2.0]], [[0.0]], [[3.0]], [[0.0]]]]
    assert all(torch.equal(x, values[name]) for name, x in unpack(packed, layout).items())


def test_regrouping_joins_neighbours_or_mixes_all() -> None:
    x = torch.arange(12).view(1, 4, 3, 1).float()
    assert regroup(x, 2, how="reshape")[0, :, :, 0].tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    mixed = regroup(x, 2, how="transpose_reshape")[0, :, :, 0].tolist()
    assert mixed == [[0, 3, 6, 9, 1, 4], [7, 10, 2, 5, 8, 11]]
    assert regroup(x, 12, how="reshape").shape == (1, 12, 1, 1)
