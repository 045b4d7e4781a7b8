import pytest
import torch

from perceivers.models.hip import HiP
from perceivers.models.hip_config import DataSet, HiPConfig, Modality
from perceivers.models.hip_masking import masked_reconstruction, random_mask, squared_error

IMAGE = Modality(name="image", positions=13, channels=3)
LABEL = Modality(name="label", positions=2, channels=5)


def build(**options: object) -> HiP:
    torch.manual_seed(7)
    values = {
        "data_sets": (DataSet(name="pictures", modalities=(IMAGE, LABEL)),),
        "groups": (3, 1, 3),
        "latents": (2, 6, 2),
        "dims": (4, 8, 6),
        "depths": (1, 1, 1),
        "heads": (2, 2, 1),
        "embed_dim": 5,
    }
    model = HiP(HiPConfig(**(values | options)))  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def sample(batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        m.name: torch.randn(batch, m.positions, m.channels, generator=generator).requires_grad_()
        for m in (IMAGE, LABEL)
    }


@pytest.mark.parametrize("labels", [(), ("label",)], ids=["grouped", "bottleneck"])
def test_a_masked_value_is_not_seen(labels: tuple[str, ...]) -> None:
    model, inputs = build(label_modalities=labels), sample()
    predictions, targets, masks = masked_reconstruction(
        model, inputs, share=0.5, generator=torch.Generator().manual_seed(1)
    )
    loss, _ = squared_error(predictions, {name: x.detach() for name, x in targets.items()}, masks)
    loss.backward()
    assert any(mask.any() for mask in masks.values())
    for name, x in inputs.items():
        assert x.grad is not None
        seen = x.grad.abs().sum(-1) > 0
        assert torch.equal(seen, ~masks[name]), name


def test_only_masked_positions_count() -> None:
    masks = {"image": torch.zeros(2, 13).bool(), "label": torch.zeros(2, 2).bool()}
    masks["image"][0, 3], masks["image"][1, 12], masks["label"][1, 0] = True, True, True
    targets = {name: x.detach() for name, x in sample().items()}
    predictions = {name: (x + 1000).requires_grad_() for name, x in targets.items()}
    with torch.no_grad():
        for name, mask in masks.items():
            predictions[name][mask] = targets[name][mask] + 2
    total, count = squared_error(predictions, targets, masks)
    assert count == 2 * 3 + 5
    assert total.item() == pytest.approx(4 * (2 * 3 + 5), rel=1e-5)
    total.backward()
    for name, x in predictions.items():
        assert x.grad is not None
        assert torch.equal(x.grad.abs().sum(-1) > 0, masks[name])


def test_a_share_for_each_modality() -> None:
    model, inputs = build(), sample(batch=5)
    _, targets, masks = masked_reconstruction(model, inputs, share={"image": 1.0})
    assert masks["image"].all()
    assert not masks["label"].any()
    assert targets["image"] is inputs["image"]


def test_the_share_holds_for_each_sample_and_on_the_mean() -> None:
    generator = torch.Generator().manual_seed(5)
    counts = random_mask(torch.zeros(2003, 7, 2), 0.3, generator=generator).sum(1)
    assert set(counts.tolist()) == {2, 3}
    assert counts.float().mean().item() == pytest.approx(2.1, abs=0.04)
    places = random_mask(torch.zeros(5003, 7, 2), 0.3, generator=generator).float().mean(0)
    torch.testing.assert_close(places, torch.full((7,), 0.3), atol=0.04, rtol=0)


def test_the_generator_decides_masks_and_latents() -> None:
    model, inputs = build(train_latents=3).train(), sample()
    one, other, different = (
        masked_reconstruction(model, inputs, share=0.5, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[2][name], other[2][name]) for name in inputs)
    assert all(torch.equal(one[0][name], other[0][name]) for name in inputs)
    assert not torch.equal(one[2]["image"], different[2]["image"])


def test_what_is_masked_is_learned() -> None:
    torch.manual_seed(1)
    model = HiP(build(dims=(16,) * 3, embed_dim=17, heads=(2,) * 3).config)
    generator = torch.Generator().manual_seed(1)
    # Samples differ in their sign alone, which every position that is seen tells.
    sign = torch.randn(17, 1, 1, generator=generator).sign()
    inputs = {"image": sign * torch.randn(1, 13, 3, generator=generator).sign(), "label": sign * torch.ones(17, 2, 5)}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        total, count = squared_error(*masked_reconstruction(model, inputs, share=0.5, generator=generator))
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        losses.append((total / count).item())
    assert losses[0] == 1
    assert sum(losses[-5:]) / 5 < 0.6


def test_bad_shares_are_refused() -> None:
    model, inputs = build(), sample()
    with pytest.raises(ValueError, match=r"share=1.5 must lie in \[0, 1\]"):
        masked_reconstruction(model, inputs, share=1.5)
    with pytest.raises(ValueError, match="share names modality 'sound'; the inputs are image, label"):
        masked_reconstruction(model, inputs, share={"sound": 0.5})


def test_the_model_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="inputs has no 'image'; data set pictures has image, label"):
        masked_reconstruction(build(), {}, share=0.5)
