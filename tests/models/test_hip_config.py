import dataclasses
from typing import Any

import pytest
import torch

from perceivers.models.hip import HiP
from perceivers.models.hip_config import (
    DataSet,
    HiPConfig,
    Modality,
    hip_16,
    hip_16x3,
    hip_256,
    hip_mini,
    io_c_50m,
    io_c_150m,
    io_mini,
)

IMAGE = Modality(name="image", positions=7, channels=3)
LABEL = Modality(name="label", positions=2, channels=5)
DATA = (DataSet(name="pictures", modalities=(IMAGE, LABEL)),)

# What the official test calls its models with: both data sets, one after the other, with one set of weights.
OFFICIAL_DATA = (
    DataSet(
        name="imagenet",
        modalities=(
            Modality(name="imagenet_image", positions=1024, channels=3),
            Modality(name="imagenet_label", positions=32, channels=1),
        ),
    ),
    DataSet(
        name="audioset",
        modalities=(
            Modality(name="audioset_audio", positions=128, channels=16),
            Modality(name="audioset_label", positions=16, channels=16),
        ),
    ),
)


def tiny(**options: Any) -> HiPConfig:
    values = {
        "data_sets": DATA,
        "groups": (3, 1, 3),
        "latents": (2, 6, 2),
        "dims": (4, 8, 6),
        "depths": (1, 2, 0),
        "heads": (2, 2, 1),
        "embed_dim": 5,
    }
    return HiPConfig(**(values | options))


def parameters(config: HiPConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in HiP(config).parameters())


@pytest.mark.parametrize(
    ("variant", "labels", "count"),
    [
        (hip_16, (), 99_224_996),
        (hip_256, (), 95_585_188),
        (hip_mini, (), 18_709_668),
        (hip_mini, ("imagenet_label", "audioset_label"), 21_114_788),
    ],
)
def test_parameters_are_those_that_the_official_test_counts(variant: Any, labels: tuple[str, ...], count: int) -> None:
    # Its positions have 512 channels, more than the embeddings: so they are projected.
    config = dataclasses.replace(variant(OFFICIAL_DATA), project_positions=True, label_modalities=labels)
    assert parameters(config) == count


@pytest.mark.parametrize(
    ("variant", "projected", "count"),
    [(hip_16x3, True, 233_233_604), (io_mini, True, 650_244), (io_c_50m, False, 31_021_572)],
)
def test_parameters_of_other_variants_with_one_data_set(variant: Any, projected: bool, count: int) -> None:
    # 512 position channels are more than the embeddings have, but for io_c_50m, which has as many.
    assert parameters(dataclasses.replace(variant(OFFICIAL_DATA[:1]), project_positions=projected)) == count


def test_perceiver_io_is_one_block_of_one_group() -> None:
    config = io_c_150m(OFFICIAL_DATA)
    assert (config.groups, config.processor) == ((1,), 0)
    assert config.layout(OFFICIAL_DATA[0]).concatenated


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latents": (2, 6)}, r"latents has 2 entries, groups 3: each block needs one"),
        ({"dims": (4, 0, 6)}, r"dims=\(4, 0, 6\): 0 must be at least 1"),
        ({"depths": (1, -1, 0)}, r"depths=\(1, -1, 0\): -1 must be at least 0"),
        ({"embed_dim": 0}, "embed_dim=0 must be at least 1"),
        ({"embed_scale": 0.0}, "embed_scale=0.0 must be above 0"),
        ({"heads": (3, 2, 1)}, "block 0: heads=3 must divide the 4 channels that it splits"),
        ({"cross_heads": (2, 1, 1)}, "block 0: cross_heads=2 must divide the 5 channels that it splits"),
        ({"groups": (3, 2, 3), "latents": (2, 3, 2)}, r"groups=\(3, 2, 3\): the processor, block 1, has 2 groups"),
        ({"groups": (1, 1, 1, 1, 1)}, "latents has 3 entries, groups 5"),
        ({"latents": (2, 5, 2)}, "block 2: 1 groups x 5 latents = 5 latents do not divide into 3 groups"),
        (
            {"latents": (2, 6, 7)},
            "block 2 has 3 groups x 7 latents, but adds the output of block 0, which has 3 x 2: they must be the same",
        ),
        ({"train_latents": 3, "eval_latents": 7}, "train_latents=3 and eval_latents=7: give one"),
        ({"train_latents": 7}, r"train_latents=7 must lie in 1\.\.6, the processor's latents"),
        ({"eval_latents": 5}, "eval_latents=5 must be at least 6, the processor's latents in training"),
        ({"dropout": 1.0}, r"dropout=1.0 must lie in \[0, 1\)"),
        ({"drop_path": -0.1}, r"drop_path=-0.1 must lie in \[0, 1\)"),
        ({"data_sets": ()}, "data_sets is empty: name the modalities of at least one data set"),
        ({"data_sets": DATA * 2}, "two data sets are called pictures"),
        ({"label_modalities": ("lable",)}, "label_modalities has 'lable'; the data sets have image, label"),
        (
            {"label_modalities": ("image", "label")},
            "data set pictures has no modality that enters at the first block",
        ),
        ({"train_latents": 5}, "block 2: 1 groups x 5 latents = 5 latents do not divide into 3 groups"),
        ({"eval_latents": 11}, "block 2: 1 groups x 11 latents = 11 latents do not divide into 3 groups"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_the_number_of_blocks_is_odd() -> None:
    blocks = ("groups", "latents", "dims", "depths", "heads", "cross_heads", "widening", "cross_widening")
    with pytest.raises(ValueError, match="got 2 blocks; their number is odd: encoders, one processor"):
        tiny(**dict.fromkeys(blocks, (1, 1)))


def test_a_modality_is_the_same_in_all_data_sets() -> None:
    other = Modality(name="label", positions=3, channels=5)
    data_sets = (*DATA, DataSet(name="sounds", modalities=(IMAGE, other)))
    with pytest.raises(ValueError, match="modality label has 2 positions x 5 channels in one data set and 3 x 5 in an"):
        tiny(data_sets=data_sets)


def test_modalities_and_data_sets_are_checked() -> None:
    with pytest.raises(ValueError, match=r"modality 'a\.b': a name has letters, digits and underscores"):
        Modality(name="a.b", positions=1, channels=1)
    with pytest.raises(ValueError, match="modality a: positions=0 must be at least 1"):
        Modality(name="a", positions=0, channels=1)
    with pytest.raises(ValueError, match="data set d has two modalities called image"):
        DataSet(name="d", modalities=(IMAGE, IMAGE))


def test_processor_latents_in_training_and_outside() -> None:
    assert tiny().processor_latents == (6, 6)
    assert tiny(train_latents=3).processor_latents == (3, 6)
    assert tiny(eval_latents=12).processor_latents == (6, 12)


def test_a_modality_needs_a_group_unless_there_is_one_for_all() -> None:
    three = (IMAGE, LABEL, Modality(name="sound", positions=5, channels=1))
    data_sets = (DataSet(name="films", modalities=three),)
    with pytest.raises(ValueError, match=r"3 modalities \(image, label, sound\) need 3 groups, got 2"):
        tiny(data_sets=data_sets, groups=(2, 1, 2))
    assert tiny(data_sets=data_sets, groups=(1, 1, 1)).layout(data_sets[0]).size == 14
    assert tiny(data_sets=data_sets, groups=(2, 1, 2), label_modalities=("label",)).layout(data_sets[0]).num_groups == 2
