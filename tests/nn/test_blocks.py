from typing import Any

import pytest
import torch

from perceivers.nn.blocks import CrossAttentionBlock, FeedForward, SelfAttentionBlock
from perceivers.nn.masks import AttentionMask


def cross_block(**options: Any) -> CrossAttentionBlock:
    torch.manual_seed(1)
    return CrossAttentionBlock(7, 11, heads=3, inner_dim=15, widening=2, activation="sq_relu", **options)


def test_feed_forward_widens() -> None:
    layer = FeedForward(5, widening=3, activation="relu")
    assert layer.up.out_features == layer.down.in_features == 15
    assert layer(torch.randn(2, 5)).shape == (2, 5)


@pytest.mark.parametrize("residual", [True, False])
def test_the_query_residual_can_be_left_out(residual: bool) -> None:
    block = cross_block(query_residual=residual).eval()
    block.feed_forward.down.weight.data.zero_()  # leaves the attention alone
    block.feed_forward.down.bias.data.zero_()
    latents, context = torch.randn(2, 3, 7), torch.randn(2, 5, 11)
    mask = AttentionMask(causal=True)
    read = block.attention(block.norm_latents(latents), block.norm_context(context), mask=mask)
    expected = latents + read if residual else read
    torch.testing.assert_close(block(latents, context, mask=mask), expected)


@pytest.mark.parametrize("zero_empty", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_one_head_reads_the_normed_context_itself(masked: bool, zero_empty: bool) -> None:
    """Values and gradients are those of projected keys and values; the keys' bias changes nothing."""
    torch.manual_seed(2)
    widths = {"inner_dim": 13, "value_dim": 11, "zero_empty": zero_empty}
    block = CrossAttentionBlock(7, 5, heads=1, widening=2, activation="gelu", **widths).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    latents, context = (
        torch.randn(2, n, width, dtype=torch.float64, requires_grad=True) for n, width in ((3, 7), (17, 5))
    )
    real = torch.arange(17) < torch.tensor([11, 0 if zero_empty else 4])[:, None]
    mask = AttentionMask(keys=real if masked else None)
    keys, values = block.keys_values(context, queries=3)
    assert keys is values
    assert keys.shape == (2, 1, 17, 5)
    inputs = [latents, context, *block.parameters()]
    read = block(latents, context, mask=mask)
    expected = block.read(latents, *block.keys_values(context), mask=mask)
    torch.testing.assert_close(read, expected, rtol=1e-11, atol=1e-11)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    found, wanted = (torch.autograd.grad((out * weights).sum(), inputs) for out in (read, expected))
    for got, exactly in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, exactly, rtol=1e-9, atol=1e-10)
    with torch.autocast("cpu", torch.bfloat16):
        single = block.float()
        rounded = single(latents.float(), context.float(), mask=mask)
    torch.testing.assert_close(rounded.double(), expected, rtol=0.05, atol=0.05 * expected.abs().max().item())


@pytest.mark.parametrize(("changed", "queries"), [({"heads": 3}, 3), ({"inner_dim": 3}, 3), ({}, 17), ({}, None)])
def test_keys_are_projected_where_that_is_less_work(changed: dict[str, int], queries: int | None) -> None:
    block = CrossAttentionBlock(7, 5, **{"heads": 1, "inner_dim": 15, "widening": 2, "activation": "gelu"} | changed)
    keys, values = block.keys_values(torch.randn(2, 17, 5), queries=queries)
    assert keys is not values


def test_self_attention_block_adds_two_branches() -> None:
    block = SelfAttentionBlock(6, heads=2, widening=2, activation="gelu").eval()
    x = torch.randn(2, 5, 6)
    normed = block.norm_attention(x)
    middle = x + block.attention(normed, normed, mask=AttentionMask(causal=True))
    torch.testing.assert_close(
        block(x, mask=AttentionMask(causal=True)), middle + block.feed_forward(block.norm(middle))
    )


def test_dropout_is_for_training_alone() -> None:
    mask = AttentionMask(causal=True)
    latents, context = torch.randn(2, 3, 7), torch.randn(2, 5, 11)
    block, without = cross_block(dropout=0.5), cross_block()
    without.load_state_dict(block.state_dict())
    torch.testing.assert_close(block.eval()(latents, context, mask=mask), without(latents, context, mask=mask))
    torch.manual_seed(2)
    first = block.train()(latents, context, mask=mask)
    assert not torch.equal(first, block(latents, context, mask=mask))
    torch.manual_seed(2)
    assert torch.equal(first, block(latents, context, mask=mask))


def test_every_parameter_gets_a_gradient() -> None:
    block = cross_block()
    block(torch.randn(2, 3, 7), torch.randn(2, 5, 11), mask=AttentionMask(causal=True)).square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
