"""Every function of the package with a backward pass of its own: right second derivatives, or an error."""

import pkgutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import perceivers
from perceivers.models.build import build
from perceivers.models.perceiver_ar_config import PerceiverARConfig
from perceivers.nn import activations, attention, normed, partial, positions, rows, spread
from perceivers.nn.masks import AttentionMask
from perceivers.nn.positions import Rotation, rotary_frequencies
from perceivers.nn.rows import TakenRows, take_rows
from perceivers.nn.spread import Spread

IDS = torch.tensor([[4, 0, 4], [1, 4, 3]])


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def rotation() -> Rotation:
    return Rotation.by(torch.arange(3)[None].expand(2, -1), rotary_frequencies(2, 7), dtype=torch.float64)


def keys_values(table: Tensor) -> tuple[Tensor, Tensor]:
    return TakenRows(table, IDS, 2, (6, 6), rotation()).whole()


def taken(table: Tensor) -> Tensor:
    return take_rows(table, IDS)


def normed_rows(*tensors: Tensor) -> Tensor:
    made: Tensor = normed._NormedLinear.apply(*tensors, 1e-3)  # pyright: ignore
    return made


def squared(x: Tensor) -> Tensor:
    return activations.activate(x, "sq_relu")


Twice = dict[type[torch.autograd.Function], tuple[Callable[..., object], tuple[Tensor, ...]]]

DIFFERENTIABLE: Twice = {
    activations._SquaredReLU: (squared, (random(3, 5),)),
    normed._NormedLinear: (normed_rows, (random(2, 3, 5), random(5), random(5) + 1, random(7, 5), random(7))),
    positions._Turn: (lambda x: rotation()(x), (random(2, 5, 3, 4),)),
    rows._TakeRows: (taken, (random(5, 3),)),
    rows._TakeKeysValues: (keys_values, (random(5, 12),)),
}


def end_of_keys(q: Tensor, kv: Tensor) -> Tensor:
    return partial.lower_right(q, kv, kv, None)


def end_of_rows(q: Tensor, table: Tensor) -> Tensor:
    return partial.lower_right_rows(q, TakenRows(table, IDS.repeat(1, 3)[:, :7], 3, (6, 6)), None)


def kept_scores(q: Tensor, kv: Tensor) -> Tensor:
    made: Tensor = attention._MatmulAttention.apply(q.bfloat16(), kv.bfloat16(), kv.bfloat16(), AttentionMask())  # pyright: ignore
    return made


def spread_context(q: Tensor, kv: Tensor) -> Tensor:
    return Spread(dist.group.WORLD).attend(q, kv, kv, mask=AttentionMask(causal=True))  # pyright: ignore


FIRST_ONLY: Twice = {
    partial._MergedAttention: (end_of_keys, (random(2, 3, 5, 2), random(2, 3, 7, 2))),
    partial._RowsAttention: (end_of_rows, (random(2, 3, 5, 2), random(5, 12))),
    attention._MatmulAttention: (kept_scores, (random(2, 3, 5, 2), random(2, 3, 7, 2))),
    spread._Spread: (spread_context, (random(2, 3, 5, 2), random(2, 3, 7, 2))),
}


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> object:
    """A group of this one process, over which a context can be spread."""
    meeting = tmp_path_factory.mktemp("meeting") / "file"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_no_function_is_forgotten() -> None:
    for module in pkgutil.walk_packages(perceivers.__path__, "perceivers."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    own = {f for f in _subclasses(torch.autograd.Function) if f.__module__.startswith("perceivers.")}
    assert own == DIFFERENTIABLE.keys() | FIRST_ONLY.keys()
    written = sum(path.read_text().count("autograd.Function)") for path in Path(perceivers.__path__[0]).rglob("*.py"))
    assert written == len(own)


def _subclasses(cls: type) -> set[type]:
    return {cls}.union(*map(_subclasses, cls.__subclasses__())) - {torch.autograd.Function}


@pytest.mark.parametrize("function", DIFFERENTIABLE, ids=lambda f: f.__name__)
def test_second_derivatives_are_right(function: type[torch.autograd.Function]) -> None:
    call, inputs = DIFFERENTIABLE[function]
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


def test_a_layer_without_bias_has_second_derivatives() -> None:
    inputs = tuple(x.clone().requires_grad_() for x in (random(3, 5), random(5), random(5), random(7, 5)))
    assert gradgradcheck(lambda *tensors: normed_rows(*tensors, None), inputs)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("function", FIRST_ONLY, ids=lambda f: f.__name__)
def test_missing_second_derivatives_are_said(function: type[torch.autograd.Function]) -> None:
    """Even of a plain sum, whose gradient depends on nothing."""
    call, inputs = FIRST_ONLY[function]
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    out = call(*inputs)
    assert isinstance(out, Tensor)
    torch.autograd.grad(out.sum(), inputs, retain_graph=True)
    with pytest.raises(NotImplementedError, match=r"first derivatives only: .* backend='reference'"):
        torch.autograd.grad(out.sum(), inputs, create_graph=True)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_curvature_of_a_model(backend: str) -> None:
    """A Hessian-vector product beside differences of gradients; or an error, and never another number."""
    torch.manual_seed(0)
    sizes = {"max_seq_len": 11, "num_latents": 5, "dim": 14, "depth": 2, "heads": 7, "cross_heads": 2}
    config = PerceiverARConfig(vocab_size=13, **sizes, backend=backend, zero_logits=False)  # pyright: ignore
    model = build(config).double().eval()
    tokens, places = torch.randint(1, 13, (2, 11)), torch.arange(1, 12).expand(2, -1)[..., None]
    parameters = [p for p in model.parameters() if p.requires_grad]
    directions = [random(*p.shape) for p in parameters]

    def gradients(*, create_graph: bool = False) -> tuple[Tensor, ...]:
        loss = model(tokens, positions=places).logsumexp(-1).sum()
        return torch.autograd.grad(loss, parameters, create_graph=create_graph)

    if backend != "reference":
        with pytest.raises(NotImplementedError, match="first derivatives only"):
            gradients(create_graph=True)
        return
    along = sum((g * d).sum() for g, d in zip(gradients(create_graph=True), directions, strict=True))
    product = torch.autograd.grad(along, parameters)  # pyright: ignore[reportArgumentType]
    step = 1e-5
    ahead, behind = (_moved(parameters, directions, by, gradients) for by in (step, -step))
    for exact, a, b in zip(product, ahead, behind, strict=True):
        torch.testing.assert_close(exact, (a - b) / (2 * step), rtol=1e-5, atol=1e-5)


def _moved(
    parameters: list[nn.Parameter], directions: list[Tensor], step: float, gradients: Callable[[], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Gradients where the parameters have moved by so much in their directions; they are put back."""
    with torch.no_grad():
        torch._foreach_add_(parameters, directions, alpha=step)  # pyright: ignore
    found = gradients()
    with torch.no_grad():
        torch._foreach_add_(parameters, directions, alpha=-step)  # pyright: ignore
    return found
