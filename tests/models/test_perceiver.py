import pytest
import torch
from torch import Tensor

from perceivers.models.perceiver import Encoder
from perceivers.models.perceiver_config import EncoderConfig, Sharing, weight_set


def encoder(**options) -> Encoder:
    torch.manual_seed(0)
    defaults = {"num_latents": 3, "dim": 10, "blocks": 3, "depth": 2, "heads": 5, "cross_attends": 3}
    model = Encoder(EncoderConfig(**(defaults | options)), 7).eval()
    with torch.no_grad():
        model.latents.normal_()
    return model


@pytest.mark.parametrize(
    ("sharing", "sets"), [("none", [0, 1, 2, 3]), ("all", [0, 0, 0, 0]), ("after_first", [0, 1, 1, 1])]
)
def test_weight_sets(sharing: Sharing, sets: list[int]) -> None:
    assert [weight_set(i, sharing) for i in range(4)] == sets
    model = encoder(cross_sharing=sharing, block_sharing=sharing)
    assert len(model.cross_attends) == len(model.blocks) == len(set(sets[:3]))


def test_shared_weights_are_the_same_as_equal_ones() -> None:
    shared, own = encoder(cross_sharing="after_first"), encoder(cross_sharing="none", block_sharing="none")
    own.latents = shared.latents
    for i in range(3):
        own.cross_attends[i].load_state_dict(shared.cross_attends[min(i, 1)].state_dict())
        own.blocks[i].load_state_dict(shared.blocks[0].state_dict())
    tokens = torch.randn(2, 11, 7)
    torch.testing.assert_close(shared(tokens), own(tokens))


def test_steps_are_named_in_order() -> None:
    tokens = torch.randn(2, 11, 7)
    model = encoder(cross_attends=2)
    steps = list(model.steps(tokens))
    assert [name for name, _ in steps] == ["cross_attend", "block", "cross_attend", "block", "block"]
    assert torch.equal(steps[-1][1], model(tokens))


def test_hidden_tokens_change_nothing_and_get_no_gradient() -> None:
    model = encoder()
    tokens = torch.randn(2, 11, 7, requires_grad=True)
    mask = torch.rand(2, 11) < 0.5
    mask[:, 0], mask[:, 1] = True, False
    model(tokens, mask=mask).sum().backward()
    assert tokens.grad is not None
    assert torch.equal(tokens.grad.abs().sum(-1) > 0, mask)
    short = model(tokens[:1, mask[0]])
    torch.testing.assert_close(short, model(tokens, mask=mask)[:1])


def test_a_batch_is_its_rows_and_their_order_does_not_matter() -> None:
    model = encoder()
    tokens = torch.randn(2, 11, 7)
    latents = model(tokens)
    for row in range(2):
        torch.testing.assert_close(model(tokens[row, None, torch.randperm(11)])[0], latents[row])


def test_latents_that_may_read_nothing_are_not_averages() -> None:
    model = encoder(blocks=1, cross_attends=1)
    tokens = torch.randn(2, 11, 7)
    nothing = model(tokens, mask=torch.zeros(2, 11, dtype=torch.bool))
    torch.testing.assert_close(nothing[0], nothing[1])


def test_latents_that_may_read_nothing_are_averages_if_wanted() -> None:
    """Which is what latents without any preference read."""
    model = encoder(blocks=1, cross_attends=1, empty="average")
    tokens = torch.randn(2, 11, 7)
    nothing = model(tokens, mask=torch.zeros(2, 11, dtype=torch.bool))
    for parameter in model.cross_attends[0].attention.to_q.parameters():  # pyright: ignore
        torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(nothing, model(tokens))


@pytest.mark.parametrize("options", [{"cross_channels": "latent"}, {"qk_dim": 5, "value_dim": 4}, {"cross_heads": 7}])
def test_widths_of_the_cross_attend(options: dict) -> None:
    model = encoder(**options)
    qk_dim, value_dim = model.config.cross_dims(7)
    assert model.cross_attends[0].attention.widths == (qk_dim, value_dim)
    assert model(torch.randn(2, 11, 7)).shape == (2, 3, 10)


def test_every_parameter_gets_a_gradient() -> None:
    model = encoder(cross_sharing="none", block_sharing="after_first").train()
    model(torch.randn(2, 11, 7)).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_first_weights() -> None:
    model = encoder(dim=100, num_latents=50)
    model = Encoder(model.config, 7)
    assert abs(model.latents.std().item() - 0.02 * 0.88) < 0.001
    assert abs(model.blocks[0][0].attention.to_q.weight.std().item() - 0.1) < 0.005


def test_backends_agree() -> None:
    tokens = torch.randn(2, 11, 7)
    results: list[Tensor] = [encoder(backend=backend)(tokens) for backend in ("reference", "sdpa")]
    torch.testing.assert_close(*results)
