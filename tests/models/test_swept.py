from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from perceivers.data.batch import TokenBatch
from perceivers.models.build import build
from perceivers.models.perceiver_ar import PerceiverAR
from perceivers.models.perceiver_ar_config import LearnedQueries, PerceiverARConfig, TablePositions
from perceivers.models.swept import swept
from perceivers.nn.attention import FUSED_KERNELS
from perceivers.train.config import CrossEntropy
from perceivers.train.objectives import count_targets, objective_loss

OPTIONS: dict[str, dict[str, Any]] = {
    "by id": {"vocab_size": 13},
    "by token": {"vocab_size": 97},
    "table": {"vocab_size": 13, "positions": TablePositions(learned=True)},
    "two latents, two reads": {"vocab_size": 13, "latents_per_position": 2, "extra_cross_attends": (0,)},
    "learned queries": {"vocab_size": 13, "queries": LearnedQueries(), "backend": "reference"},
    "no cross-attend": {"vocab_size": 13, "initial_cross_attend": False, "extra_cross_attends": (1,)},
}


def model(**options: Any) -> PerceiverAR:
    torch.manual_seed(0)
    settings = {"max_seq_len": 17, "num_latents": 3, "dim": 14, "depth": 2, "heads": 2, "cross_heads": 2}
    net = build(PerceiverARConfig(**{**settings, "dropout": 0.0, "zero_logits": False, **options}))
    assert isinstance(net, PerceiverAR)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.4)
    return net.double().train()


def batch(lengths: list[int]) -> TokenBatch:
    """Rows with one token more than the model reads."""
    torch.manual_seed(1)
    real = torch.arange(18) < torch.tensor(lengths)[:, None]
    positions = torch.arange(1, 19).expand(len(lengths), -1)
    return TokenBatch(
        torch.randint(3, 13, (len(lengths), 18)) * real, (positions * real)[..., None], torch.tensor(lengths)
    )


def crop(whole: TokenBatch, row: int, length: int) -> TokenBatch:
    return TokenBatch(whole.tokens[row, None, :length], whole.positions[row, None, :length], torch.tensor([length]))


def gradients(net: PerceiverAR) -> list[Tensor]:
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_the_loss_is_that_of_as_many_crops(name: str) -> None:
    net, rows, blocks = model(**OPTIONS[name]), batch([18, 13]), 4
    objective = CrossEntropy(sweep=blocks, label_smoothing=0.1)
    loss = objective_loss(net, rows, objective)
    assert count_targets(rows, net.config, objective) == 2 * blocks * 3
    loss.sum.backward()
    found = gradients(net)
    expected = torch.zeros((), dtype=torch.float64)
    for row, length in ((0, 18), (1, 13)):
        for block in range(blocks):
            one = objective_loss(net, crop(rows, row, length - 3 * block), CrossEntropy(label_smoothing=0.1)).sum
            one.backward()
            expected += one.detach()
    torch.testing.assert_close(loss.sum, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(found, gradients(net), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_one_block_is_the_model_itself() -> None:
    net, rows = model(vocab_size=13), batch([18, 9])
    inputs = {"positions": rows.positions[:, :-1], "lengths": rows.lengths - 1}
    expected = net(rows.tokens[:, :-1], **inputs)
    torch.testing.assert_close(swept(net, rows.tokens[:, :-1], **inputs, num_latents=3), expected)


def test_the_first_block_has_what_is_left() -> None:
    net, rows = model(vocab_size=13), batch([18])
    inputs = {"positions": rows.positions[:, :-1]}
    logits = swept(net, rows.tokens[:, :-1], **inputs, num_latents=7)
    assert logits.shape == (1, 7, 13)
    first = net(rows.tokens[:, :11], positions=rows.positions[:, :11], num_latents=1)
    torch.testing.assert_close(logits[:, :1], first)


def test_blocks_are_computed_again_for_their_gradients() -> None:
    """So that of the stack nothing is kept but what enters a block; the last is needed at once."""
    net, rows, calls = model(vocab_size=13), batch([18]), []
    net.layers[0].register_forward_pre_hook(lambda _module, inputs: calls.append(inputs[0].shape[1]))
    loss = objective_loss(net, rows, CrossEntropy(sweep=5)).sum
    assert calls == [3] * 5
    loss.backward()
    assert calls == [3] * 9


class Kernels(TorchDispatchMode):
    """Counts calls of the fused attention."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func in FUSED_KERNELS
        return func(*args, **(kwargs or {}))


def test_attention_is_not_computed_again() -> None:
    net, rows = model(vocab_size=13), batch([18])
    with Kernels() as kernels:
        loss = objective_loss(net, rows, CrossEntropy(sweep=5)).sum
        forward = kernels.calls
        loss.backward()
    assert forward == 5 * (2 + 2)  # a block reads what is before it, itself, and has two layers
    assert kernels.calls == forward


@pytest.mark.parametrize("name", ["by id", "table"])
def test_blocks_are_computed_again_in_bfloat16(name: str) -> None:
    """Autocast keeps what it made of weights for later blocks; the first of them to be computed again finds nothing."""
    net, rows = model(**OPTIONS[name]).float(), batch([18])
    exact = objective_loss(net, rows, CrossEntropy(sweep=5)).sum
    exact.backward()
    expected = gradients(net)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective_loss(net, rows, CrossEntropy(sweep=5)).sum
    loss.backward()
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)
    for one, other in zip(gradients(net), expected, strict=True):
        assert (one - other).norm() <= 0.1 * other.norm() + 1e-3


def test_prefix_dropout_is_refused() -> None:
    with pytest.raises(ValueError, match="sweep without it"):
        swept(model(vocab_size=13, prefix_dropout=0.5), torch.zeros(1, 9, dtype=torch.long), num_latents=6)
