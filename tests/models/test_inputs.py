import math

import pytest
import torch
from torch import nn

from perceivers.models.feature_config import (
    AudioFeatures,
    Conv1x1Features,
    ConvFeatures,
    Features,
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
from perceivers.models.inputs import Input, MultimodalInput, build_input
from perceivers.nn.positions import fourier_features

FEATURES = [
    PixelFeatures(shape=(5, 7, 3), stride=2),
    PixelFeatures(shape=(3, 5, 7, 2), stride=2, time_stride=2),
    PatchFeatures(shape=(4, 6, 9, 2), patch=3, time_patch=2),
    PatchFeatures(shape=(2, 6, 9, 2), patch=3, time_patch=2, channels=5),
    Conv1x1Features(shape=(5, 7, 3), channels=5, stride=2),
    ConvFeatures(shape=(13, 17, 3), channels=5),
    ConvFeatures(shape=(2, 17, 19, 3), channels=5, stages=2, batch_norm=False),
    ConvFeatures(shape=(11, 17, 3), channels=5, padding="convolutions"),
    ConvFeatures(shape=(2, 21, 23, 3), channels=5, stages=2, batch_norm=False, padding="convolutions"),
    FlowFeatures(shape=(2, 5, 7, 3), channels=5),
    AudioFeatures(samples=35, samples_per_patch=5, channels=2),
    MelFeatures(samples=1000, sample_rate=8000, window=256, hop=100, bands=13),
    TokenFeatures(vocab_size=11, seq_len=13, dim=5),
    TokenFeatures(vocab_size=11, seq_len=13, dim=5, window=3),
    VectorFeatures(dim=7),
]


def example(features: Features, batch: int = 2) -> torch.Tensor:
    torch.manual_seed(0)
    if isinstance(features, TokenFeatures):
        return torch.randint(features.vocab_size, (batch, *features.shape))
    return torch.randn(batch, *features.shape)


@pytest.mark.parametrize("features", FEATURES, ids=lambda f: f.kind)
def test_tokens_are_as_the_config_says(features: Features) -> None:
    config = InputConfig(features=features, positions=FourierPositions(bands=2))
    model = Input(config)
    x = example(features)
    tokens = model(x)
    assert tokens.features is not None
    assert tokens.tokens.shape == (2, config.tokens, config.dim)
    assert tokens.features.shape == (2, config.tokens, features.dim)
    assert torch.equal(tokens.tokens[..., : features.dim], tokens.features)
    assert (tokens.table is not None) == isinstance(features, TokenFeatures)
    model.eval()
    torch.testing.assert_close(model(x[1:]).tokens[0], model(x).tokens[1])
    with pytest.raises(ValueError, match=r"input has shape .* but this model reads .*resize or crop it"):
        model(x[:, 1:])


@pytest.mark.parametrize("features", FEATURES, ids=lambda f: f.kind)
def test_every_parameter_gets_a_gradient(features: Features) -> None:
    model = Input(InputConfig(features=features, positions=LearnedPositions(channels=3, project_dim=5, layers=2)))
    loss = model(example(features)).tokens.square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_patch_is_a_patch() -> None:
    x = torch.randn(2, 6, 9, 2)
    patches = Input(InputConfig(features=PatchFeatures(shape=(6, 9, 2), patch=3)))(x).tokens
    assert torch.equal(patches[:, 4], x[:, 3:6, 3:6].flatten(1))


def test_a_normalized_patch_says_nothing_of_brightness_and_contrast() -> None:
    x = torch.randn(2, 6, 9, 2, dtype=torch.float64)
    features = PatchFeatures(shape=(6, 9, 2), patch=3, normalize=True)
    patches = Input(InputConfig(features=features))(x).tokens
    torch.testing.assert_close(patches.mean(-1), torch.zeros(2, 6, dtype=torch.float64))
    torch.testing.assert_close(patches.var(-1, correction=0), torch.ones(2, 6, dtype=torch.float64), rtol=1e-3, atol=0)
    torch.testing.assert_close(Input(InputConfig(features=features))(3 * x + 5).tokens, patches, rtol=1e-3, atol=1e-3)


def test_flow_sees_the_same_place_in_both_frames() -> None:
    model = Input(InputConfig(features=FlowFeatures(shape=(2, 5, 7, 3), channels=54)))
    model.features.linear.weight.data = torch.eye(54)
    x = torch.randn(1, 2, 5, 7, 3)
    token = model(x).tokens[0, 2 * 7 + 3]
    assert torch.equal(token, torch.cat([x[0, 0, 1:4, 2:5].flatten(), x[0, 1, 1:4, 2:5].flatten()]))


def test_paddings_agree_where_both_add_the_same() -> None:
    """From 7 rows on both see what lies 3 before the first pixel; then 4 rows are pooled from their first pixel on."""
    x = torch.randn(1, 7, 7, 3)
    same, torchs = (
        Input(InputConfig(features=ConvFeatures(shape=(7, 7, 3), channels=5, batch_norm=False, padding=padding)))
        for padding in ("same", "convolutions")
    )
    torchs.load_state_dict(same.state_dict())
    assert same(x).tokens.shape == (1, 4, 5)
    assert torch.equal(torchs(x).tokens[0, 0], same(x).tokens[0, 0])


def test_batch_norm_keeps_running_averages() -> None:
    model = Input(InputConfig(features=ConvFeatures(shape=(9, 9, 3), channels=5)))
    model(10 + torch.randn(3, 9, 9, 3))
    averages = [b for name, b in model.named_buffers() if name.endswith("running_mean")]
    assert averages[0].abs().sum() > 0


def test_given_positions_take_the_grids_place() -> None:
    model = Input(InputConfig(features=PixelFeatures(shape=(3, 5, 2)), positions=FourierPositions(bands=2)))
    x, positions = torch.randn(2, 3, 5, 2), torch.rand(2, 15, 2)
    expected = fourier_features(positions, bands=2, max_resolution=(3, 5), concat=True)
    torch.testing.assert_close(model(x, positions=positions).tokens[..., 2:], expected)
    with pytest.raises(ValueError, match=r"positions have shape \[2, 14, 2\], this input needs \[2, 15, 2\]"):
        model(x, positions=positions[:, 1:])
    without = Input(InputConfig(features=PixelFeatures(shape=(3, 5, 2))))
    with pytest.raises(ValueError, match="positions were given, but this input has none"):
        without(x, positions=positions)


def test_points_bring_their_positions() -> None:
    config = InputConfig(
        features=PointFeatures(points=11, axes=3, channels=2),
        positions=FourierPositions(bands=4, max_resolution=(8, 8, 8)),
    )
    x = torch.rand(2, 11, 5) * 2 - 1
    tokens = Input(config)(x).tokens
    assert tokens.shape == (2, 11, config.dim)
    assert torch.equal(tokens[..., :2], x[..., 3:])
    assert torch.equal(tokens[..., 2:5], x[..., :3])
    order = torch.randperm(11)
    assert torch.equal(Input(config)(x[:, order]).tokens, tokens[:, order])


def test_a_window_holds_the_tokens_on_either_side() -> None:
    model = Input(InputConfig(features=TokenFeatures(vocab_size=11, seq_len=7, dim=5, window=3)))
    x = torch.tensor([[1, 2, 3, 4, 5, 6, 7]])
    around = torch.cat([torch.zeros(1, 5), model.features.table[[1, 2, 3, 4, 5, 6, 7]], torch.zeros(1, 5)])
    weight, bias = model.features.conv.weight, model.features.conv.bias
    expected = torch.stack([torch.einsum("wc,ocw->o", around[i : i + 3], weight) + bias for i in range(7)])
    torch.testing.assert_close(model(x).tokens[0], expected)
    assert torch.equal(model(x).table, model.features.table)


def test_unknown_tokens_are_refused() -> None:
    model = Input(InputConfig(features=TokenFeatures(vocab_size=11, seq_len=3, dim=5)))
    with pytest.raises(ValueError, match="token ids reach from 0 to 11, but the model has 0 to 10"):
        model(torch.tensor([[0, 5, 11]]))


def multimodal(**shares: float | None) -> MultimodalInput:
    inputs = {
        "sound": InputConfig(features=AudioFeatures(samples=35, samples_per_patch=5)),
        "label": InputConfig(features=VectorFeatures(dim=7)),
        "film": InputConfig(features=PixelFeatures(shape=(2, 3, 2, 1)), positions=FourierPositions(bands=1)),
    }
    modalities = tuple(Modality(name=n, input=i, mask_share=shares.get(n)) for n, i in inputs.items())
    model = build_input(MultimodalInputConfig(modalities=modalities, padding=3))
    assert isinstance(model, MultimodalInput)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


X = {"sound": torch.randn(2, 35, 1), "label": torch.randn(2, 7), "film": torch.randn(2, 2, 3, 2, 1)}


def test_modalities_stand_by_name_and_are_equally_wide() -> None:
    model = multimodal()
    tokens = model(X).tokens
    assert tokens.shape == (2, 12 + 1 + 7, 10 + 3)
    assert torch.equal(tokens[:, 12, :7], X["label"])
    assert torch.equal(tokens[0, 12, 7:], model.padding["label"][0])
    assert torch.equal(tokens[1, 13:, :5], X["sound"][1].view(7, 5))


def test_hidden_tokens_tell_nothing() -> None:
    model = multimodal(label=1.0, sound=0.5, film=0.0)
    tokens = model.eval()(X).tokens
    assert torch.equal(tokens[:, 12], model.mask_tokens["label"].expand(2, -1))
    assert torch.equal(tokens[:, :12], multimodal_tokens(model, "film"))
    torch.manual_seed(0)
    hidden = [model(X).tokens[:, 13:].eq(model.mask_tokens["sound"]).all(-1) for _ in range(50)]
    assert abs(torch.stack(hidden).float().mean().item() - 0.5) < 0.06


def multimodal_tokens(model: MultimodalInput, name: str) -> torch.Tensor:
    own = model.inputs[name](X[name]).tokens
    return torch.cat([own, model.padding[name].expand(*own.shape[:2], -1)], -1)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            {"sound": X["sound"], "film": X["film"]},
            "input lacks the modality 'label'; this model has film",
        ),
        (X | {"smell": X["label"]}, "input has the unknown modality 'smell'; this model has film"),
        (X | {"label": X["label"][:1]}, "modalities have batches of different sizes"),
    ],
)
def test_wrong_modalities_say_which(x: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        multimodal()(x)


def test_first_weights() -> None:
    torch.manual_seed(0)
    tokens = Input(
        InputConfig(features=TokenFeatures(vocab_size=97, seq_len=101, dim=53), positions=LearnedPositions(channels=53))
    )
    assert abs(tokens.features.table.std().item() - 0.88) < 0.02
    assert abs(tokens.positions.table.std().item() - 0.02 * 0.88) < 0.001
    patches = Input(InputConfig(features=PatchFeatures(shape=(6, 6, 3), patch=6, channels=101)))
    assert abs(patches.features.linear.weight.std().item() * math.sqrt(108) - 0.88) < 0.02
