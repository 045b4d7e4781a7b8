import re
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from perceivers.models.ecp import (
    ECP,
    CompressingAttention,
    DoubleAttention,
    LatentAttention,
    SegmentAttention,
    SplitAttention,
)
from perceivers.models.ecp_config import ECPConfig

CLEAN = ECPConfig(vocab_size=31, max_seq_len=13, segment_len=3, dim=12, depth=2, heads=2, widening=2, dropout=0.0)
CONTEXT = replace(CLEAN, num_latents=5, compressed_len=3, pattern="double")
CONFIGS = {
    "ecp": CLEAN,
    "authors' ecp": replace(CLEAN, tied_kv=True, rotary="first", first_output=True),
    "double": CONTEXT,
    "double, keys normalised": replace(CONTEXT, key_norm=True),
    "compressed": replace(CONTEXT, pattern="compressed"),
    "ssplit": replace(CONTEXT, pattern="ssplit"),
    "perceiver_ar": replace(CONTEXT, pattern="perceiver_ar", rotary="first", tied_kv=True, key_norm=True),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
ecp_alone = pytest.mark.parametrize("config", [CONFIGS["ecp"], CONFIGS["authors' ecp"]], ids=["clean", "authors'"])


def fresh(config: ECPConfig) -> ECP:
    """Weights from seed 1, none of them zero, in float64."""
    torch.manual_seed(1)
    model = ECP(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.double().eval()


def tokens(*shape: int) -> Tensor:
    return torch.randint(3, 31, shape, generator=torch.Generator().manual_seed(5))


def padded(lengths: list[int], seq_len: int) -> dict[str, Tensor]:
    """Arguments of a model for random right-padded rows."""
    length = torch.tensor(lengths)
    return {
        "tokens": tokens(len(lengths), seq_len) * (torch.arange(seq_len) < length[:, None]),
        "lengths": length,
    }


def read_columns(model: ECP, row: int, place: int, **inputs: Any) -> list[bool]:
    """Which columns of the embedding reach the logits at a place of a row."""
    seen: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, out: Tensor) -> None:
        out.retain_grad()
        seen.append(out)

    hook = model.token_embedding.register_forward_hook(keep)
    model(**inputs)[row, place].square().sum().backward()
    hook.remove()
    gradient = seen[0].grad
    assert gradient is not None
    return (gradient[row].abs().sum(-1) > 0).tolist()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (SegmentAttention, {"pattern": "ecp", "num_latents": None, "segment_len": 2}),
        (DoubleAttention, {"pattern": "double"}),
        (SplitAttention, {"pattern": "ssplit", "segment_len": 2}),
        (LatentAttention, {"pattern": "perceiver_ar"}),
        (CompressingAttention, {"pattern": "compressed", "compressed_len": 3}),
    ],
)
def test_the_tables(kind: type, changes: dict[str, Any]) -> None:
    """The picture in each docstring is what one layer reads; of compressed, what the whole model does."""
    table = [
        [mark == "1" for mark in line.split()]
        for line in (kind.__doc__ or "").splitlines()
        if re.fullmatch(r"[1. ]+", line.strip())
    ]
    size = len(table[0])
    config = replace(CONTEXT, **{"max_seq_len": size, "num_latents": 2, "depth": 1, **changes})
    model = fresh(config)
    layer: Any = model.layers[0]
    assert type(layer.attention) is kind
    if kind is CompressingAttention:  # the residual of its rows comes from the first ones, which the table leaves out
        layer.attention.carry = lambda x, latents, real: (torch.zeros_like(x[:, :5]), real)
    embedded = model.token_embedding(tokens(1, size)).detach().requires_grad_()
    rotate = model.rotation(torch.arange(size)[None])
    out, _ = layer(embedded, latents=2, real=None, rotate=rotate)
    for row, columns in enumerate(table):
        (gradient,) = torch.autograd.grad(out[0, row].square().sum(), embedded, retain_graph=True)
        assert (gradient[0].abs().sum(-1) > 0).tolist() == columns


@ecp_alone
def test_ecp_reads_as_many_segments_back_as_it_has_layers_and_no_future(config: ECPConfig) -> None:
    model = fresh(config)
    for place in range(13):
        first = max(0, (place // 3 - config.depth) * 3)
        expected = [first <= column <= place for column in range(13)]
        assert read_columns(model, 0, place, tokens=tokens(1, 13)) == expected


@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if config.num_latents])
def test_no_latent_reads_the_future(name: str) -> None:
    for latent in range(5):
        read = read_columns(fresh(CONFIGS[name]), 0, latent, tokens=tokens(1, 13))
        assert read == [column <= 8 + latent for column in range(13)]


@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if config.num_latents])
def test_no_latent_reads_padding(name: str) -> None:
    inputs = padded([13, 7, 3], 13)
    for latent in range(5):
        for row, length in enumerate([13, 7, 3]):
            if length <= 4 - latent:
                continue  # before the row's start
            read = read_columns(fresh(CONFIGS[name]), row, latent, **inputs)
            assert read == [13 - length <= column <= 8 + latent for column in range(13)]


@every_config
def test_a_row_counts_for_itself(config: ECPConfig) -> None:
    """In a batch, padded or not, and alone."""
    model, lengths = fresh(config), [13, 7, 3, 1]
    inputs = padded(lengths, 13)
    together = model(**inputs)
    for row, length in enumerate(lengths):
        alone = model(inputs["tokens"][row : row + 1, :length])[0]
        predicting = min(length, config.num_targets)
        own = together[row, :length] if config.pattern == "ecp" else together[row, -predicting:]
        torch.testing.assert_close(own, alone, atol=1e-12, rtol=0)


@every_config
@pytest.mark.parametrize("num_latents", [1, 4])
def test_the_last_positions_alone(config: ECPConfig, num_latents: int) -> None:
    """Of each row; in ecp and compressed the same numbers as without."""
    model, lengths = fresh(config), [13, 7]
    inputs = padded(lengths, 13)
    some = model(**inputs, num_latents=num_latents)
    assert some.shape == (2, num_latents, 31)
    if config.pattern in ("ecp", "compressed"):
        every = model(**inputs)
        for row, length in enumerate(lengths):
            whole = every[row, :length] if config.pattern == "ecp" else every[row]
            torch.testing.assert_close(some[row], whole[-num_latents:], atol=1e-12, rtol=0)


@ecp_alone
@pytest.mark.parametrize("seq_len", [1, 3, 4, 6, 8, 29])
def test_ecp_of_any_length(config: ECPConfig, seq_len: int) -> None:
    """The beginning of a long input gives what it gives alone, whatever part of the last segment is there."""
    model, row = fresh(config), tokens(2, 31)
    torch.testing.assert_close(model(row[:, :seq_len]), model(row)[:, :seq_len], atol=1e-12, rtol=0)


def test_context_of_any_length() -> None:
    """s-split counts its segments back from the latents."""
    model, row = fresh(replace(CONTEXT, pattern="ssplit", depth=1, rotary="first")), tokens(1, 29)
    read = [read_columns(model, 0, 0, tokens=row[:, :n]) for n in (6, 12, 29)]
    assert [sum(columns) for columns in read] == [2, 8, 25]
    assert model.states(row).shape == (1, 29, 12)


def test_one_segment_is_a_plain_decoder() -> None:
    """ECP with a long segment, double attention without context and the baseline without history are the same."""
    ecp = fresh(replace(CLEAN, segment_len=13))
    row = tokens(2, 13)
    expected = ecp(row)
    for pattern in ("double", "ssplit", "perceiver_ar"):
        other = ECP(replace(CONTEXT, pattern=pattern, num_latents=13)).double().eval()
        other.load_state_dict(ecp.state_dict())
        torch.testing.assert_close(other(row), expected, atol=1e-12, rtol=0)


def test_positions_count_from_a_rows_first_token() -> None:
    """Where keys alone turn, any first position gives the same."""
    model = fresh(CLEAN)
    row = tokens(1, 13)
    expected = model(row)
    assert torch.equal(model(row, positions=torch.arange(1, 14)[None, :, None]), expected)
    rotation = model.rotation
    model.rotation = lambda steps: rotation(steps + 1000)
    torch.testing.assert_close(model(row), expected, atol=1e-9, rtol=0)


@every_config
def test_back_ends_agree(config: ECPConfig) -> None:
    inputs = padded([13, 7, 3, 1], 13)
    real = inputs["lengths"][:, None] - min(13, config.num_targets) + torch.arange(config.num_targets) >= 0
    if config.pattern == "ecp":
        real = torch.arange(13) < inputs["lengths"][:, None]
    one, other = (fresh(replace(config, backend=backend))(**inputs)[real] for backend in ("reference", "sdpa"))
    torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@every_config
def test_every_parameter_gets_a_gradient(config: ECPConfig) -> None:
    model = fresh(config).train()
    model(tokens(2, 13)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@every_config
def test_saved_and_loaded_is_the_same(config: ECPConfig) -> None:
    model, other = fresh(config), ECP(config).double().eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(tokens(2, 13)), other(tokens(2, 13)))


@every_config
def test_a_few_tokens_are_learned_by_heart(config: ECPConfig) -> None:
    torch.manual_seed(3)
    model = ECP(config).train()
    row = tokens(2, 14)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        logits = model(row[:, :-1])
        labels = row[:, -logits.shape[1] :]
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_fresh_weights_hold_every_token_equally_likely() -> None:
    model = ECP(CLEAN)
    assert (model(tokens(2, 5)) == 0).all()
    layer: Any = model.layers[0]
    assert 0.8 < layer.feed_forward.up.weight.std() * 12**0.5 < 1.2


def test_dropout_in_training_alone() -> None:
    model, row = fresh(replace(CLEAN, dropout=0.5)), tokens(1, 13)
    assert torch.equal(model(row), model(row))
    model.train()
    assert not torch.equal(model(row), model(row))


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_no_matrix_of_the_whole_input(backend: Any, largest_tensor: Any) -> None:
    """Nothing that ever exists has n x n numbers, and work grows as the input does."""
    sizes, work = [], []
    for seq_len in (509, 1013):
        model = ECP(replace(CLEAN, vocab_size=31, segment_len=7, depth=1, dim=4, heads=1, backend=backend))
        with largest_tensor() as seen:
            model(tokens(1, seq_len)).sum().backward()
        sizes.append(seen.elements)
        with FlopCounterMode(display=False) as counted:
            model(tokens(1, seq_len)).sum().backward()
        work.append(counted.get_total_flops())
    assert sizes[0] < 509 * 40  # logits have 31 a token, scores 14, of a matrix it would be 509
    assert sizes[1] / sizes[0] < 2.1
    assert 1.9 < work[1] / work[0] < 2.1


def test_inputs_that_compressed_can_not_read() -> None:
    model = fresh(CONFIGS["compressed"])
    with pytest.raises(ValueError, match=r"14 tokens are more than max_seq_len=13: .* cut the input"):
        model(tokens(1, 14))
    with pytest.raises(ValueError, match=r"num_latents=6 must lie in 1\.\.5 for pattern 'compressed'"):
        model(tokens(1, 13), num_latents=6)
