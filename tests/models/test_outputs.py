import pytest
import torch
from torch import nn

from perceivers.models.input_config import FourierPositions, LearnedPositions
from perceivers.models.inputs import InputTokens
from perceivers.models.output_config import (
    AudioHead,
    AverageOutputConfig,
    ClassHead,
    GridHead,
    GridQueries,
    InputQueries,
    LinearHead,
    MultimodalOutputConfig,
    OutputModality,
    PatchHead,
    QueryOutputConfig,
    TiedHead,
    UpsampleHead,
)
from perceivers.models.output_heads import build_head
from perceivers.models.outputs import AverageOutput, MultimodalOutput, QueryOutput

LATENTS = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
TOKENS = InputTokens(torch.randn(2, 11, 7), torch.randn(2, 11, 7), torch.randn(13, 7))


def queries(**options) -> QueryOutput:
    torch.manual_seed(0)
    config = QueryOutputConfig(**({"channels": 3} | options))
    dim = 7 if isinstance(config.queries, InputQueries) else config.queries.dim + 7 * int(config.queries.features)
    return QueryOutput(config, 6, dim).eval()


LEARNED = GridQueries(shape=(11,), positions=LearnedPositions(channels=7, init_std=1.0))
FOURIER = GridQueries(shape=(3, 5), positions=FourierPositions(bands=2))


def test_average_starts_at_zero_and_is_linear() -> None:
    output = AverageOutput(AverageOutputConfig(classes=7), 6)
    assert output(LATENTS).abs().max() == 0
    nn.init.normal_(output.linear.weight)
    torch.testing.assert_close(output(LATENTS), output.linear(LATENTS).mean(1))
    with pytest.raises(ValueError, match="an average has no queries"):
        output(LATENTS, points=torch.tensor([0]))


@pytest.mark.parametrize(("grid", "count"), [(LEARNED, 11), (FOURIER, 15), (InputQueries(), 11)])
def test_each_query_gets_its_own_answer(grid, count: int) -> None:
    output = queries(queries=grid)
    results = output(LATENTS, TOKENS)
    assert results.shape == (2, count, 3)
    torch.testing.assert_close(output(LATENTS[1:], InputTokens(TOKENS.tokens[1:])), results[1:])


@pytest.mark.parametrize("grid", [LEARNED, InputQueries()])
def test_chosen_points_are_some_of_all(grid) -> None:
    output = queries(queries=grid)
    points = torch.tensor([7, 2, 2])
    torch.testing.assert_close(output(LATENTS, TOKENS, points=points), output(LATENTS, TOKENS)[:, points])


def test_points_beyond_the_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"points reach from 0 to 15, but a grid of \[3, 5\] has 0 to 14"):
        queries(queries=FOURIER)(LATENTS, points=torch.tensor([0, 15]))


def test_masked_queries_read_zeros() -> None:
    output = queries(queries=LEARNED)
    mask = torch.rand(2, 11) < 0.5
    mask[:, :2] = torch.tensor([True, False])
    results, full = output(LATENTS, query_mask=mask), output(LATENTS)
    torch.testing.assert_close(results[mask], full[mask])
    # Without a query residual they all have the same answer, whatever the latents are.
    assert torch.equal(results[~mask], output(LATENTS + 1, query_mask=mask)[~mask])
    assert torch.allclose(results[~mask], results[~mask][:1])
    with pytest.raises(ValueError, match=r"query_mask has shape \[2, 10\], but there are \[2, 11\] queries"):
        output(LATENTS, query_mask=mask[:, 1:])


def test_features_of_the_input_stand_before_positions() -> None:
    output = queries(queries=GridQueries(shape=(11,), positions=LearnedPositions(channels=7), features=True))
    asked = output.make_queries(LATENTS, TOKENS)
    assert TOKENS.features is not None
    assert torch.equal(asked[..., :7], TOKENS.features)
    assert torch.equal(output.make_queries(LATENTS, TOKENS, torch.tensor([3])), asked[:, [3]])
    with pytest.raises(ValueError, match="pass inputs="):
        output(LATENTS)


def test_tied_logits_are_products_with_the_embedding() -> None:
    output = queries(queries=LEARNED, channels=None, head=TiedHead(vocab_size=13))
    nn.init.normal_(output.head.bias)
    read = output.attend(LATENTS, output.make_queries(LATENTS))
    torch.testing.assert_close(output(LATENTS, TOKENS), read @ TOKENS.table.T + output.head.bias)
    with pytest.raises(ValueError, match="a tied head needs an input with an embedding table"):
        output(LATENTS, InputTokens(TOKENS.tokens))


@pytest.mark.parametrize("residual", [True, False])
def test_first_weights(residual: bool) -> None:
    output = queries(queries=LEARNED, query_residual=residual, zero_channels=True)
    assert output(LATENTS).abs().max() == 0
    assert output.cross_attend.query_residual == residual


@pytest.mark.parametrize(
    ("head", "shape"),
    [
        (ClassHead(), (2, 8)),
        (ClassHead(classes=3), (2, 3)),
        (LinearHead(channels=3), (2, 12, 3)),
        (AudioHead(samples_per_patch=5), (2, 60)),
        (GridHead(shape=(2, 3, 2)), (2, 2, 3, 2, 8)),
        (PatchHead(shape=(3, 4), patch=2), (2, 6, 8, 2)),
        (PatchHead(shape=(2, 3, 2), patch=2, time_patch=2), (2, 4, 6, 4, 1)),
        (UpsampleHead(shape=(3, 4), channels=5), (2, 12, 16, 5)),
        (UpsampleHead(shape=(2, 3, 2), channels=5), (2, 2, 12, 8, 5)),
        (UpsampleHead(shape=(2, 3, 2), channels=5, time_factor=2, factor=4), (2, 4, 12, 8, 5)),
        (UpsampleHead(shape=(2, 3, 2), channels=5, time_factor=4, factor=1), (2, 8, 3, 2, 5)),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_heads(head, shape: tuple[int, ...]) -> None:
    module = build_head(head, 8)
    assert module is not None
    x = torch.randn(2, 12, 8, requires_grad=True)
    result = module(x)
    assert result.shape == shape
    torch.testing.assert_close(module(x[1:])[0], result[1])
    result.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_a_grid_must_be_full() -> None:
    head = build_head(GridHead(shape=(3, 4), scale=0.5), 8)
    assert head is not None
    x = torch.randn(2, 12, 8)
    assert torch.equal(head(x), 0.5 * x.view(2, 3, 4, 8))
    with pytest.raises(ValueError, match=r"11 results do not fill a grid of \[3, 4\], which has 12"):
        head(x[:, 1:])


def multimodal() -> MultimodalOutput:
    torch.manual_seed(0)
    config = MultimodalOutputConfig(
        modalities=(
            OutputModality(name="sound", queries=LEARNED, head=AudioHead(samples_per_patch=5)),
            OutputModality(name="film", queries=FOURIER, head=LinearHead(channels=3)),
            OutputModality(
                name="label",
                queries=GridQueries(positions=LearnedPositions(channels=3)),
                head=ClassHead(classes=13),
            ),
        ),
        channels=9,
    )
    return MultimodalOutput(config, 6)


def test_modalities_get_their_own_results() -> None:
    output = multimodal()
    results = output(LATENTS)
    assert {name: tuple(r.shape) for name, r in results.items()} == {
        "film": (2, 15, 3),
        "label": (2, 13),
        "sound": (2, 55),
    }
    some = output(LATENTS, points={"sound": torch.tensor([7])})
    torch.testing.assert_close(some["sound"], results["sound"][:, 35:40])
    torch.testing.assert_close(some["film"], results["film"])


def test_modalities_that_are_not_there_and_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="points are given for the unknown modality 'smell'; this model has film"):
        multimodal()(LATENTS, points={"smell": torch.tensor([0])})
    with pytest.raises(ValueError, match="points reach from 11 to 11"):
        multimodal()(LATENTS, points={"sound": torch.tensor([11])})
    with pytest.raises(ValueError, match="query_mask: an output of several modalities has none"):
        multimodal()(LATENTS, query_mask=torch.ones(2, 27, dtype=torch.bool))
