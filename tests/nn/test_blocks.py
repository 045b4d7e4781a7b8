import math
from typing import Any

import pytest
import torch

from perceivers.nn.blocks import CrossAttentionBlock, FeedForward, SelfAttentionBlock, activate
from perceivers.nn.masks import AttentionMask


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sq_relu", lambda x: max(x, 0) ** 2),
        ("relu", lambda x: max(x, 0)),
        ("silu", lambda x: x / (1 + math.exp(-x))),
        ("gelu", lambda x: x * (1 + math.erf(x / 2**0.5)) / 2),
        ("gelu_tanh", lambda x: x * (1 + math.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2),
    ],
)
def test_activations(name: Any, expected: Any) -> None:
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(activate(x, name), torch.tensor([expected(v) for v in x.tolist()]).double())


def test_squared_relu_has_the_gradient_that_autograd_finds() -> None:
    x = torch.linspace(-3, 3, 7, dtype=torch.float64).requires_grad_()
    weights = torch.arange(1, 8, dtype=torch.float64)
    expected = torch.autograd.grad((weights * x.relu().square()).sum(), x)
    torch.testing.assert_close(torch.autograd.grad((weights * activate(x, "sq_relu")).sum(), x), expected)


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
