import subprocess
import sys

import pytest

from perceivers.models.feature_config import (
    AudioFeatures,
    ConvFeatures,
    FlowFeatures,
    MelFeatures,
    PatchFeatures,
    PixelFeatures,
    PointFeatures,
    TokenFeatures,
    VectorFeatures,
)
from perceivers.models.input_config import (
    FourierPositions,
    InputConfig,
    LearnedPositions,
    Modality,
    MultimodalInputConfig,
)
from perceivers.models.output_config import (
    AverageOutputConfig,
    ClassHead,
    GridHead,
    GridQueries,
    MultimodalOutputConfig,
    OutputModality,
    QueryOutputConfig,
    TiedHead,
    UpsampleHead,
)
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig, ResamplerConfig


def test_no_config_imports_torch() -> None:
    modules = "perceiver_config, input_config, output_config, feature_config, perceiver_published"
    code = f"import sys; from perceivers.models import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("features", "grid", "dim"),
    [
        (PixelFeatures(shape=(9, 7, 3), stride=2), (5, 4), 3),
        (PixelFeatures(shape=(5, 9, 7, 3), stride=2, time_stride=2), (3, 5, 4), 3),
        (PatchFeatures(shape=(4, 6, 9, 3), patch=3, time_patch=2), (2, 2, 3), 54),
        (PatchFeatures(shape=(2, 6, 9, 3), patch=3, time_patch=2, channels=11), (2, 3), 11),
        (PatchFeatures(shape=(6, 9, 2), patch=3), (2, 3), 18),
        (ConvFeatures(shape=(13, 15, 3), channels=5), (4, 4), 5),
        (ConvFeatures(shape=(2, 17, 33, 3), channels=5, stages=2), (2, 2, 3), 5),
        (ConvFeatures(channels=5, padding="convolutions"), (55, 55), 5),
        (ConvFeatures(shape=(2, 21, 37, 3), channels=5, stages=2, padding="convolutions"), (2, 1, 2), 5),
        (FlowFeatures(shape=(2, 5, 7, 3), channels=11), (5, 7), 11),
        (AudioFeatures(samples=35, samples_per_patch=5, channels=2), (7,), 10),
        (MelFeatures(samples=1000, window=256, hop=100, bands=13), (8, 13), 1),
        (TokenFeatures(seq_len=11, dim=7), (11,), 7),
        (PointFeatures(points=11, axes=3, channels=2), (11,), 2),
        (VectorFeatures(dim=7), (1,), 7),
    ],
)
def test_grids_and_channels(features, grid: tuple[int, ...], dim: int) -> None:
    assert features.grid == grid
    assert features.dim == dim


def test_channels_of_inputs() -> None:
    pixels = PixelFeatures(shape=(5, 7, 3))
    assert InputConfig(features=pixels).dim == 3
    assert InputConfig(features=pixels, positions=FourierPositions(bands=4)).dim == 3 + 2 + 2 * 2 * 4
    assert InputConfig(features=pixels, positions=LearnedPositions(channels=5, project_dim=3), combine="add").dim == 3
    assert InputConfig(features=pixels, positions=LearnedPositions(channels=5)).tokens == 35


LABEL = Modality(name="a", input=InputConfig(features=VectorFeatures()))

WRONG = [
    (lambda: PixelFeatures(shape=(5, 7)), r"shape=\(5, 7\) has 2 axes; give \(rows, columns, channels\)"),
    (lambda: PixelFeatures(shape=(0, 7, 3)), r"shape=\(0, 7, 3\) must be at least 1"),
    (
        lambda: PatchFeatures(shape=(10, 8, 3), patch=4),
        "10 rows are 2 patches of 4 and 2 more; .* to 8 or 12",
    ),
    (lambda: PatchFeatures(shape=(3, 8, 8, 3), time_patch=2), "3 frames are 1 patches of 2 and 1 more"),
    (
        lambda: ConvFeatures(shape=(4, 17, 3), padding="convolutions"),
        r"shape=\(4, 17, 3\) leaves nothing after 1 stages; take larger pictures",
    ),
    (lambda: FlowFeatures(shape=(3, 5, 7, 3)), r"must be \(2, rows, columns, channels\)"),
    (
        lambda: AudioFeatures(samples=33, samples_per_patch=5),
        "33 samples are 6 patches of 5 and 3 more; cut them",
    ),
    (lambda: MelFeatures(samples=100, window=256), "100 samples are fewer than one window of 256"),
    (lambda: PointFeatures(channels=-1), "channels=-1 must be at least 0"),
    (
        lambda: InputConfig(features=PixelFeatures(), positions=FourierPositions(max_resolution=(5,))),
        r"max_resolution=\(5,\) is for 1 axes, the grid has 2",
    ),
    (
        lambda: InputConfig(features=PixelFeatures(), positions=LearnedPositions(channels=5), combine="add"),
        "positions of 5 channels can't be added to features of 3; set project_dim",
    ),
    (lambda: InputConfig(features=PointFeatures(), positions=FourierPositions()), "points have no grid"),
    (
        lambda: InputConfig(
            features=PointFeatures(), positions=FourierPositions(max_resolution=(5, 5, 5)), combine="add"
        ),
        "combine='add': positions of points are further channels",
    ),
    (
        lambda: Modality(name="a", input=InputConfig(features=VectorFeatures()), mask_share=1.5),
        r"mask_share=1.5 of a must lie in \[0, 1\]",
    ),
    (lambda: MultimodalInputConfig(modalities=()), "there are no modalities"),
    (
        lambda: MultimodalInputConfig(
            modalities=(Modality(name="a", input=InputConfig(features=VectorFeatures())),) * 2
        ),
        "modality 'a' is there 2 times",
    ),
    (lambda: TokenFeatures(window=4), "window=4 must be odd: as many tokens before each token as after it"),
    (lambda: EncoderConfig(cross_attends=9), "cross_attends=9 but blocks=8: there is at most one before each"),
    (lambda: EncoderConfig(heads=7), "heads=7 must divide 1024 attention channels, but 1024 / 7 leaves 2"),
    (lambda: EncoderConfig(depth=0), "depth=0 must be at least 1"),
    (lambda: EncoderConfig(dropout=1.0), r"dropout=1.0 must lie in \[0, 1\)"),
    (lambda: ResamplerConfig(dim=10, heads=4), "heads=4 must divide 10 attention channels"),
    (lambda: PerceiverIOConfig(encoder=EncoderConfig(cross_heads=2)), "cross_heads=2 must divide 3 attention channels"),
    (lambda: AverageOutputConfig(classes=0), "classes=0 must be at least 1"),
    (
        lambda: QueryOutputConfig(queries=GridQueries(shape=(2,)), head=ClassHead()),
        r"a class needs one query, but queries.shape=\(2,\)",
    ),
    (
        lambda: QueryOutputConfig(queries=GridQueries(shape=(6,)), head=GridHead(shape=(2, 2))),
        r"6 queries .* do not fill the head's shape \(2, 2\), which has 4 points",
    ),
    (lambda: UpsampleHead(shape=(2, 2), factor=3), "factor=3 must be a power of two"),
    (lambda: UpsampleHead(shape=(2, 2), factor=8), "factor=8 needs time_factor > 1; pictures are enlarged 4 times"),
    (lambda: UpsampleHead(shape=(2, 2), time_factor=2), r"time_factor=2 needs \(frames, rows, columns\)"),
    (
        lambda: PerceiverIOConfig(output=QueryOutputConfig(heads=3)),
        "output.heads=3 must divide 1024 attention channels",
    ),
    (
        lambda: PerceiverIOConfig(output=QueryOutputConfig(queries=GridQueries(shape=(5,), features=True))),
        "queries.features pairs 5 queries with 50176 input tokens",
    ),
    (
        lambda: PerceiverIOConfig(output=QueryOutputConfig(head=TiedHead())),
        "a tied head needs an input of TokenFeatures",
    ),
    (
        lambda: PerceiverIOConfig(
            input=InputConfig(features=TokenFeatures(vocab_size=11, dim=6)),
            output=QueryOutputConfig(queries=GridQueries(), channels=8, head=TiedHead(vocab_size=11)),
        ),
        "a tied head of 11 tokens on 8 channels does not fit the embedding of 11 tokens with 6 channels",
    ),
    (
        lambda: OutputModality(name="text", queries=GridQueries(), head=TiedHead()),
        "text: an output of several modalities has no tied head",
    ),
    (lambda: MultimodalOutputConfig(modalities=()), "there are no modalities"),
    (
        lambda: PerceiverIOConfig(
            input=MultimodalInputConfig(modalities=(LABEL,)),
            output=QueryOutputConfig(queries=GridQueries(features=True)),
        ),
        "queries.features needs an input of one modality",
    ),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_wrong_configs_say_why(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
