import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from perceivers.models.hip import HiP
from perceivers.models.hip_config import DataSet, HiPConfig, Modality

IMAGE = Modality(name="image", positions=7, channels=3)
LABEL = Modality(name="label", positions=2, channels=5)
SOUND = Modality(name="sound", positions=11, channels=2)
PICTURES = DataSet(name="pictures", modalities=(IMAGE, LABEL))
FILMS = DataSet(name="films", modalities=(SOUND, IMAGE))


def tiny(**options: Any) -> HiPConfig:
    values = {
        "data_sets": (PICTURES,),
        "groups": (3, 1, 3),
        "latents": (2, 6, 2),
        "dims": (4, 8, 6),
        "depths": (1, 2, 1),
        "heads": (2, 2, 1),
        "embed_dim": 5,
    }
    return HiPConfig(**(values | options))


IO = {"groups": (1,), "latents": (7,), "dims": (6,), "depths": (1,), "heads": (2,)}
IO |= dict.fromkeys(("cross_heads", "widening", "cross_widening"), (1,))


def build(config: HiPConfig) -> HiP:
    """A model all of whose weights matter: last layers start at zero otherwise."""
    torch.manual_seed(7)
    model = HiP(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def sample(data_set: DataSet = PICTURES, batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        m.name: torch.randn(batch, m.positions, m.channels, generator=generator).requires_grad_()
        for m in data_set.modalities
    }


def read(model: HiP, inputs: dict[str, Tensor], result: Tensor) -> dict[str, list[int]]:
    """Positions of each modality on which `result` depends."""
    gradients = torch.autograd.grad(result.sum(), list(inputs.values()), allow_unused=True)
    found = {}
    for name, gradient in zip(inputs, gradients, strict=True):
        found[name] = [] if gradient is None else (gradient.abs().sum((0, 2)) > 0).nonzero()[:, 0].tolist()
    return found


# Every query has two keys at least: of a softmax over one, queries have no gradient but rounding, on some processors.
VARIANTS = pytest.mark.parametrize(
    "config",
    [
        tiny(),
        tiny(regroup="transpose_reshape", project_positions=True, cross_heads=(5, 2, 4), cross_widening=(2, 1, 3)),
        tiny(label_modalities=("label",), groups=(5, 1, 5), latents=(3, 10, 3)),
        tiny(latents=(2, 9, 2), train_latents=6, dropout=0.1, drop_path=0.1),
        tiny(**IO),
        tiny(**IO, label_modalities=("label",)),
    ],
    ids=["hip", "mixed", "labels", "subset", "io", "io_labels"],
)


@VARIANTS
def test_every_input_is_reconstructed_from_every_input(config: HiPConfig) -> None:
    model, inputs = build(config), sample()
    outputs = model(inputs)
    assert {name: x.shape for name, x in outputs.items()} == {name: x.shape for name, x in inputs.items()}
    everything = {"image": list(range(7)), "label": [0, 1]}
    for name, x in outputs.items():
        assert read(model, inputs, model(inputs)[name][:, -1]) == everything, (name, x)


@VARIANTS
def test_every_parameter_gets_a_gradient(config: HiPConfig) -> None:
    model = build(dataclasses.replace(config, drop_path=0.0)).train()
    sum(x.square().sum() for x in model(sample(batch=13)).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@VARIANTS
def test_a_batch_of_one_is_a_row_of_a_batch(config: HiPConfig) -> None:
    model, inputs = build(config), sample(batch=3)
    together = model(inputs)
    for row in range(3):
        alone = model({name: x[row : row + 1] for name, x in inputs.items()})
        for name, x in alone.items():
            torch.testing.assert_close(x[0], together[name][row], atol=2e-6, rtol=1e-5)


@VARIANTS
def test_saved_weights_give_the_same_numbers(config: HiPConfig) -> None:
    model, inputs = build(config), sample()
    other = HiP(config).eval()
    other.load_state_dict(model.state_dict())
    for name, x in other(inputs).items():
        assert torch.equal(x, model(inputs)[name])


@pytest.mark.parametrize(
    "config",
    [
        tiny(dims=(16,) * 3, embed_dim=17, heads=(2,) * 3),
        tiny(**IO | {"dims": (16,)}, embed_dim=17, label_modalities=("label",)),
    ],
    ids=["hip", "io_labels"],
)
def test_a_few_samples_are_learned(config: HiPConfig) -> None:
    torch.manual_seed(1)
    model = HiP(config).train()
    inputs = {name: x.detach() for name, x in sample(batch=2).items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        loss = torch.stack([(x - inputs[name]).square().mean() for name, x in model(inputs).items()]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < 0.2 * losses[0]


def test_the_first_block_keeps_groups_apart() -> None:
    model, inputs = build(tiny()), sample()
    outputs: list[Tensor] = []
    model.blocks[0].register_forward_hook(lambda module, args, result: outputs.append(result))
    model(inputs)
    # 7 and 2 positions in 3 groups: two groups of 4 for the image, one for the label.
    seen = [read(model, inputs, outputs.clear() or (model(inputs) and outputs[0][:, group])) for group in range(3)]
    assert seen == [
        {"image": [0, 1, 2, 3], "label": []},
        {"image": [4, 5, 6], "label": []},
        {"image": [], "label": [0, 1]},
    ]


def test_labels_enter_at_the_processor() -> None:
    model = build(tiny(label_modalities=("label",), groups=(5, 1, 5), latents=(3, 5, 3)))
    inputs = sample()
    outputs: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, result: outputs.append(result))
    model(inputs)
    first, processor = outputs[:2]
    assert torch.autograd.grad(first.sum(), inputs["label"], retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(processor.sum(), inputs["label"], retain_graph=True)[0].abs().sum() > 0
    assert model.modalities["label"].positions.shape == (2, 4)  # as wide as what the processor reads


@pytest.mark.parametrize("wanted", [["label"], ["image"], ["image", "label"]])
def test_what_is_not_wanted_is_not_computed(wanted: list[str]) -> None:
    model = build(tiny(label_modalities=("label",)))
    whole, ran = model(sample()), []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    some = model(sample(), wanted=wanted)
    assert sorted(some) == sorted(wanted)
    for name in wanted:
        assert torch.equal(some[name], whole[name])
    assert ran == ([0, 1] if wanted == ["label"] else [0, 1, 2])
    with pytest.raises(ValueError, match="wanted='sound' is not in pictures, which has image, label"):
        model(sample(), wanted=["sound"])


def test_training_draws_latents_for_each_sample_and_evaluation_uses_all() -> None:
    model = build(tiny(eval_latents=12)).train()
    chosen = model.choose_latents(5, generator=torch.Generator().manual_seed(2))
    assert chosen is not None
    assert chosen.shape == (5, 1, 6)
    assert all(len(set(row.tolist())) == 6 and max(row) < 12 for row in chosen[:, 0])
    assert len({tuple(sorted(row.tolist())) for row in chosen[:, 0]}) > 1
    inputs = sample(batch=5)
    same = [model(inputs, chosen=chosen)["image"] for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(model(inputs)["image"], model(inputs)["image"])
    sizes: list[int] = []
    model.blocks[1].register_forward_hook(lambda module, args, result: sizes.append(result.shape[2]))
    model(inputs)
    model.eval()(inputs)
    assert sizes == [6, 12]


def test_no_latents_are_drawn_where_training_uses_all() -> None:
    model = build(tiny()).train()
    assert model.choose_latents(3) is None
    inputs = sample()
    assert torch.equal(model(inputs)["label"], model(inputs)["label"])


def test_paths_are_left_out_in_training_only() -> None:
    model, inputs = build(tiny(drop_path=0.5)), sample(batch=13)
    assert torch.equal(model(inputs)["image"], model(inputs)["image"])
    model.train()
    assert not torch.equal(model(inputs)["image"], model(inputs)["image"])
    assert [layer.drop_path.rows for block in model.blocks for layer in block.layers] == [3, 1, 1, 3]


def test_data_sets_share_weights_and_modalities_of_one_name() -> None:
    config = tiny(data_sets=(PICTURES, FILMS), project_positions=True)
    model = build(config)
    pictures, films = sample(PICTURES), sample(FILMS)
    assert set(model(pictures, data_set="pictures")) == {"image", "label"}
    outputs = model(films, data_set="films")
    assert {name: x.shape for name, x in outputs.items()} == {"sound": (2, 11, 2), "image": (2, 7, 3)}
    assert set(model.modalities) == {"image", "label", "sound"}
    # One projection for the first modality of every data set, and one for the second.
    used = torch.autograd.grad(outputs["sound"].sum(), list(model.position_projections.parameters()))
    assert len(used) == 2
    with pytest.raises(ValueError, match="data_set=None: choose one of pictures, films"):
        model(pictures)
    with pytest.raises(ValueError, match="data_set='film': choose one of pictures, films"):
        model(films, data_set="film")


def test_first_weights() -> None:
    torch.manual_seed(5)
    wide = Modality(name="wide", positions=1009, channels=101)
    model = HiP(tiny(data_sets=(DataSet(name="d", modalities=(wide,)),), embed_dim=103, project_positions=True))
    weights = model.modalities["wide"]
    assert weights.positions.std().item() == pytest.approx(1 / math.sqrt(1009), rel=0.02)
    assert weights.embed.weight.std().item() == pytest.approx(1 / math.sqrt(101), rel=0.02)
    assert model.position_projections[0].weight.std().item() == pytest.approx(1 / math.sqrt(103), rel=0.02)
    assert weights.positions.abs().max() < 2 / math.sqrt(1009) / 0.87
    assert not weights.unembed.weight.any()
    assert model(sample(DataSet(name="d", modalities=(wide,))))["wide"].abs().max() == 0
    torch.manual_seed(5)
    scaled = HiP(dataclasses.replace(model.config, embed_scale=0.5)).state_dict()
    for name, first in model.state_dict().items():
        assert torch.equal(scaled[name], first * (0.5 if name == "modalities.wide.embed.weight" else 1.0))


def test_a_modality_may_not_be_called_like_a_part_of_pytorch() -> None:
    data_set = DataSet(name="d", modalities=(Modality(name="values", positions=7, channels=2),))
    with pytest.raises(ValueError, match="modality 'values': PyTorch's ModuleDict uses this name; choose another"):
        HiP(tiny(data_sets=(data_set,)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "inputs has no 'image'; data set pictures has image, label"),
        ({"imgae": torch.zeros(2, 7, 3)}, "inputs has modality 'imgae'; data set pictures has image, label"),
        (
            {"image": torch.zeros(2, 6, 3)},
            r"image has shape \[2, 6, 3\], expected is \[2, 7, 3\]: batch x 7 positions x 3 channels; flatten images",
        ),
        ({"label": torch.zeros(3, 2, 5)}, r"label has shape \[3, 2, 5\], expected is \[2, 2, 5\]"),
        ({"image": torch.full((2, 7, 3), math.nan)}, "image: 42 of 42 values are NaN or infinite"),
    ],
)
def test_bad_inputs_are_refused(change: dict[str, Any], message: str) -> None:
    inputs = {name: x for name, x in (sample() | change).items() if x is not None}
    with pytest.raises(ValueError, match=message):
        build(tiny())(inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_groups_of_padding_alone_give_what_their_zeros_give(dtype: torch.dtype) -> None:
    """11 groups for 9 positions: image has 8 of them for 7, label 3 for 2; the others hold zeros, which are read."""
    model = build(tiny(groups=(11, 1, 11), latents=(2, 11, 2))).to(dtype)
    blocks = []
    model.blocks[0].register_forward_hook(lambda _module, args, result: blocks.append((args[0], result)))
    result = model({name: x.to(dtype) for name, x in sample().items()})
    packed, first = blocks[0]
    empty = (packed == 0).flatten(2).all(-1)[0].nonzero()[:, 0].tolist()
    assert empty == [7, 10]
    alone = model.blocks[0](torch.zeros_like(packed))[:, empty]
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-3, "atol": 2e-3}
    torch.testing.assert_close(first[:, empty], alone, **tolerance)
    sum(x.float().square().sum() for x in result.values()).backward()
    assert all(x.isfinite().all() for x in result.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("masked", "message"),
    [
        ({"sound": torch.ones(2, 11).bool()}, "masked has modality 'sound'; data set pictures has image, label"),
        ({"image": torch.ones(2, 6).bool()}, r"masked\['image'\] has shape \[2, 6\], expected is \[2, 7\]"),
    ],
)
def test_bad_masks_are_refused(masked: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(tiny())(sample(), masked=masked)
