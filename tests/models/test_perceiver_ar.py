import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from perceivers.models.perceiver_ar import PerceiverAR
from perceivers.models.perceiver_ar_config import (
    InputQueries,
    LearnedQueries,
    MLPQueries,
    PerceiverARConfig,
    RotaryPositions,
    TablePositions,
)

SEQ_LEN, LATENTS, VOCAB = 13, 5, 43  # more ids than tokens, so that each token is projected
CONFIGS: dict[str, dict[str, Any]] = {
    "rotary": {},
    "some-heads": {"positions": RotaryPositions(head_share=0.5, channel_share=1.0)},
    "table": {"positions": TablePositions(learned=True)},
    "from-the-end": {"position_source": "end"},
    "mlp-queries": {"queries": MLPQueries(layers=2)},
    "learned-queries": {"queries": LearnedQueries()},
    "two-latents": {"latents_per_position": 2},
    "extra-cross-attend": {"extra_cross_attends": (0,)},
    "query-offset": {"query_offset": True},
    "no-query-residual": {"query_residual": False, "input_dim": 22, "cross_channels": "latent"},
}
every_config = pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)


def tiny(**options: Any) -> PerceiverAR:
    """Fresh weights from seed 1, none of them zero, in float64."""
    torch.manual_seed(1)
    config = PerceiverARConfig(
        **{
            "vocab_size": VOCAB,
            "max_seq_len": SEQ_LEN,
            "num_latents": LATENTS,
            "dim": 14,
            "depth": 2,
            "heads": 2,
            "cross_heads": 2,
            "dropout": 0.0,
            "zero_logits": False,
            **options,
        }
    )
    model = PerceiverAR(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.double().eval()


def rows(lengths: list[int], seq_len: int = SEQ_LEN) -> dict[str, Tensor]:
    """Arguments of a model for random right-padded rows."""
    length = torch.tensor(lengths)
    real = torch.arange(seq_len) < length[:, None]
    tokens = torch.randint(3, VOCAB, (len(lengths), seq_len), generator=torch.Generator().manual_seed(5))
    positions = torch.arange(1, seq_len + 1).expand(len(lengths), -1)
    return {"tokens": tokens * real, "positions": (positions * real)[..., None], "lengths": length}


def valid(lengths: Tensor, num_latents: int = LATENTS) -> Tensor:
    return lengths[:, None] + torch.arange(-num_latents, 0) >= 0


def read_columns(model: PerceiverAR, latent: int, **inputs: Any) -> list[list[bool]]:
    """Which columns of the (right-aligned) embedding reach a latent's logits, row by row."""
    seen: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, out: Tensor) -> None:
        out.retain_grad()
        seen.append(out)

    hook = model.token_embedding.register_forward_hook(keep)
    model(**inputs)[:, latent].sum().backward()
    hook.remove()
    gradient = seen[0].grad
    assert gradient is not None
    return (gradient.abs().sum(-1) > 0).tolist()


@every_config
def test_no_latent_reads_the_future(options: dict[str, Any]) -> None:
    inputs = rows([SEQ_LEN])
    inputs.pop("lengths")
    for latent in range(LATENTS):
        column = SEQ_LEN - LATENTS + latent
        for backend in ("reference", "sdpa"):
            read = read_columns(tiny(**options, backend=backend), latent, **inputs)
            assert read == [[True] * (column + 1) + [False] * (SEQ_LEN - column - 1)]


@every_config
def test_no_latent_reads_the_future_or_padding_of_a_padded_row(options: dict[str, Any]) -> None:
    lengths = [SEQ_LEN, 7, 3]
    for latent in range(LATENTS):
        after = LATENTS - 1 - latent
        read = read_columns(tiny(**options), latent, **rows(lengths))
        for length, columns in zip(lengths, read, strict=True):
            if length > after:  # the latent is inside its row
                assert columns == [False] * (SEQ_LEN - length) + [True] * (length - after) + [False] * after


@pytest.mark.parametrize("options", [o for name, o in CONFIGS.items() if name != "table"])
def test_projecting_each_id_once_changes_nothing(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for by_id in (True, False):
        monkeypatch.setattr(PerceiverAR, "reads_by_id", lambda _self, _tokens, by_id=by_id: by_id)
        model = tiny(**options)
        inputs = rows([SEQ_LEN, 7, 3])
        logits = model(**inputs)[valid(inputs["lengths"])]
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_ids_are_projected_where_they_are_fewer_than_tokens() -> None:
    tokens = torch.zeros(2, 11, dtype=torch.long)
    assert tiny(vocab_size=21).reads_by_id(tokens)
    assert not tiny(vocab_size=22).reads_by_id(tokens)
    assert not tiny(vocab_size=5, positions=TablePositions()).reads_by_id(tokens)


def test_without_a_cross_attend_the_prefix_is_not_read() -> None:
    model = tiny(initial_cross_attend=False)
    inputs = rows([SEQ_LEN])
    inputs.pop("lengths")
    assert read_columns(model, 2, **inputs) == [[False] * 8 + [True] * 3 + [False] * 2]


@every_config
def test_padding_changes_nothing_for_the_rest(options: dict[str, Any]) -> None:
    model = tiny(**options)
    inputs = rows([11, 7, 3, 0])
    logits = model(**inputs)
    kept = valid(inputs["lengths"])
    padded = inputs["tokens"] == 0
    noise = dict(inputs, tokens=inputs["tokens"] + padded * 9, positions=inputs["positions"] + 2 * padded[..., None])
    assert torch.equal(model(**noise)[kept], logits[kept])
    narrow = {name: value[:, :11] if value.ndim > 1 else value for name, value in inputs.items()}
    torch.testing.assert_close(model(**narrow)[kept], logits[kept], atol=1e-12, rtol=0)
    assert logits.isfinite().all()


@every_config
def test_a_batch_of_one_equals_a_row_of_a_batch(options: dict[str, Any]) -> None:
    model = tiny(**options)
    inputs = rows([SEQ_LEN, 7, 3])
    logits = model(**inputs)
    for row, length in enumerate(inputs["lengths"].tolist()):
        latents = min(length, LATENTS)  # a row shorter than the latents has as many as it has tokens
        alone = model(
            inputs["tokens"][row : row + 1, :length],
            positions=inputs["positions"][row : row + 1, :length],
            num_latents=latents,
        )
        torch.testing.assert_close(alone[0], logits[row, -latents:], atol=1e-12, rtol=0)


@every_config
def test_full_rows_need_no_lengths(options: dict[str, Any]) -> None:
    model = tiny(**options)
    inputs = rows([SEQ_LEN, SEQ_LEN])
    masked = model(**inputs)
    inputs.pop("lengths")
    torch.testing.assert_close(model(**inputs), masked, atol=1e-12, rtol=0)


def gradients(options: dict[str, Any], backend: str, dtype: torch.dtype, seq_len: int) -> dict[str, Tensor]:
    """Logits of ragged rows, and the gradient of every parameter; weights are bfloat16 numbers in any `dtype`."""
    inputs = rows([seq_len, 4, 2], seq_len)
    kept = valid(inputs["lengths"])
    model = tiny(**options, backend=backend).bfloat16().to(dtype)
    logits = model(**inputs)[kept]
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (logits * weights.to(dtype)).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert found.keys() == dict(model.named_parameters()).keys()
    return {"logits": logits, **found}


@pytest.mark.parametrize("seq_len", [SEQ_LEN, LATENTS + 1, LATENTS])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=str)
@every_config
def test_back_ends_agree_in_logits_and_every_gradient(
    options: dict[str, Any], dtype: torch.dtype, tolerance: float, seq_len: int
) -> None:
    """The judge is the reference in float64; the tolerance is of a tensor's largest value, or of 1."""
    judge = gradients(options, "reference", torch.float64, seq_len)
    for name, actual in gradients(options, "sdpa", dtype, seq_len).items():
        expected = judge[name]
        difference = (actual.double() - expected).abs().max() / expected.abs().max().clamp(min=1)
        assert difference <= tolerance, f"{name}: {difference}"


@every_config
def test_bfloat16(options: dict[str, Any]) -> None:
    """Eight bits, through a dozen layers and back: shares of the length of logits and of the whole gradient.

    Over a dozen seeds the reference itself was off by up to 0.02 and 0.10; `tests/nn/test_attention.py` is finer.
    """
    judge = gradients(options, "reference", torch.float64, SEQ_LEN)
    for backend in ("reference", "sdpa"):
        actual = gradients(options, backend, torch.bfloat16, SEQ_LEN)
        assert all(tensor.dtype == torch.bfloat16 for tensor in actual.values())
        logits = actual.pop("logits").double() - judge["logits"]
        assert logits.norm() <= 0.03 * judge["logits"].norm()
        squares = [(tensor.double() - judge[name]).square().sum() for name, tensor in actual.items()]
        length = sum(judge[name].square().sum() for name in actual) ** 0.5
        assert sum(squares) ** 0.5 <= 0.15 * length


@every_config
def test_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    model = tiny(**options)
    model(**rows([SEQ_LEN, 7])).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_number_of_latents_can_change() -> None:
    model = tiny()
    inputs = rows([SEQ_LEN, 7])
    for num_latents in (1, 3, SEQ_LEN):
        assert model(**inputs, num_latents=num_latents).shape == (2, num_latents, VOCAB)
    torch.testing.assert_close(model(**inputs, num_latents=LATENTS), model(**inputs))
    # One layer reads the context alone, so that there the number changes nothing.
    shallow = tiny(depth=0)
    torch.testing.assert_close(shallow(**inputs, num_latents=2), shallow(**inputs)[:, -2:], atol=1e-12, rtol=0)


def test_learned_queries_belong_to_places_from_the_end() -> None:
    model = tiny(queries=LearnedQueries(), depth=0)
    inputs = rows([SEQ_LEN])
    torch.testing.assert_close(model(**inputs, num_latents=2), model(**inputs)[:, -2:], atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="num_latents=7, but this model learned one query for each of 5 latents"):
        model(**inputs, num_latents=7)
    shared = tiny(queries=LearnedQueries(shared=True))
    assert shared(**inputs, num_latents=7).shape == (1, 7, VOCAB)


@pytest.mark.parametrize("queries", [InputQueries(), MLPQueries(layers=3), LearnedQueries(shared=True)])
def test_queries_start_the_latents(queries: Any) -> None:
    model = tiny(queries=queries)
    started: list[Tensor] = []
    assert model.cross_attend is not None
    model.cross_attend.register_forward_pre_hook(lambda _module, args: started.append(args[0]))
    model(**rows([SEQ_LEN, SEQ_LEN]))
    same_everywhere = torch.allclose(started[0], started[0][:1, :1].expand_as(started[0]))
    assert same_everywhere == isinstance(queries, LearnedQueries)


def test_positions_can_come_from_the_input() -> None:
    """With rotary positions only distances count, so that counting from either end gives the same."""
    inputs = rows([SEQ_LEN, 7, 3])
    kept = valid(inputs["lengths"])
    expected = tiny()(**inputs)[kept]
    without = {name: value for name, value in inputs.items() if name != "positions"}
    for source in ("start", "negative_end"):
        torch.testing.assert_close(tiny(position_source=source)(**without)[kept], expected, atol=1e-12, rtol=0)
    assert not torch.allclose(tiny(position_source="end")(**without)[kept], expected)


def test_a_table_counts_from_the_start_of_each_row() -> None:
    inputs = rows([SEQ_LEN, 7])
    kept = valid(inputs["lengths"])
    table = TablePositions(table="random")
    expected = tiny(positions=table)(**dict(inputs, positions=(inputs["positions"] - 1).clamp(min=0)))[kept]
    without = {name: value for name, value in inputs.items() if name != "positions"}
    torch.testing.assert_close(tiny(positions=table, position_source="start")(**without)[kept], expected)


def test_prefix_dropout_hides_columns_of_the_prefix_alone() -> None:
    model = tiny(prefix_dropout=0.25).train()
    tokens = torch.randperm(VOCAB - 3)[:SEQ_LEN][None] + 3  # all different
    positions = torch.arange(1, SEQ_LEN + 1)[None, :, None]
    widths: list[int] = []
    assert model.cross_attend is not None
    model.cross_attend.register_forward_pre_hook(lambda _module, args: widths.append(args[1].shape[1]))
    torch.manual_seed(3)
    first = model(tokens, positions=positions)
    assert widths == [SEQ_LEN - 2]  # a quarter of a prefix of eight
    first.sum().backward()
    gradient = model.token_embedding.weight.grad
    assert gradient is not None
    hidden = gradient[tokens[0]].abs().sum(-1) == 0
    assert hidden.sum() == 2
    assert not hidden[-LATENTS:].any()

    torch.manual_seed(3)
    assert torch.equal(model(tokens, positions=positions), first)
    assert not torch.equal(model(tokens, positions=positions), first)
    # What stays is read as if the hidden columns had never been there.
    left = ~hidden[None]
    plain = tiny()(tokens[left][None], positions=positions[left][None])
    torch.testing.assert_close(first, plain)


def test_prefix_dropout_differs_between_rows_and_keeps_padding_hidden() -> None:
    model = tiny(prefix_dropout=0.5).train()
    inputs = rows([SEQ_LEN, SEQ_LEN, 9])
    inputs["tokens"][1] = inputs["tokens"][0]
    torch.manual_seed(3)
    logits = model(**inputs)
    assert not torch.allclose(logits[0], logits[1])
    padded = inputs["tokens"] == 0
    torch.manual_seed(3)
    assert torch.equal(model(**dict(inputs, tokens=inputs["tokens"] + padded * 9)), logits)


def test_latent_dropout_hides_latents_from_the_others() -> None:
    model = tiny(latent_dropout=0.5, latents_per_position=2).train()
    masks: list[Tensor] = []
    layer = model.layers[0]
    layer.register_forward_pre_hook(lambda _module, _args, kwargs: masks.append(kwargs["mask"].pairs), with_kwargs=True)
    torch.manual_seed(3)
    logits = model(**rows([SEQ_LEN, 3]))
    pairs = masks[0]
    assert pairs.shape == (2, 2 * LATENTS, 2 * LATENTS)
    assert pairs.diagonal(dim1=1, dim2=2).all()
    # A latent is read by all that come later, or by none.
    others = pairs & ~torch.eye(2 * LATENTS, dtype=torch.bool)
    read_by_last = others[0, -1, :-2]
    assert torch.equal(others[0, -2, :-2], read_by_last)
    assert 0 < read_by_last.sum() < len(read_by_last)
    assert not others[1, :, :4].any()  # before the start of the short row
    torch.manual_seed(3)
    assert torch.equal(model(**rows([SEQ_LEN, 3])), logits)


@pytest.mark.parametrize("share", ["dropout", "prefix_dropout", "latent_dropout"])
def test_nothing_is_dropped_in_evaluation(share: str) -> None:
    inputs = rows([SEQ_LEN, 7])
    dropping = tiny(**{share: 0.5})
    assert torch.equal(dropping(**inputs), tiny()(**inputs))
    assert not torch.equal(dropping.train()(**inputs), tiny()(**inputs))


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({}, {"num_latents": 0}, r"num_latents=0 must lie in 1\.\.13, the length of the input"),
        ({}, {"num_latents": 14}, r"num_latents=14 must lie in 1\.\.13"),
        (
            {"positions": TablePositions(sizes=(7, 5))},
            {"positions": None},
            r"this model takes positions from the data, and those of 2 axes can't be counted: pass positions= \[batch",
        ),
        ({}, {"positions": torch.ones(1, 13, 3, dtype=torch.long)}, "positions have 3 axes, but the model has 1"),
        (
            {"positions": TablePositions(sizes=(7, 5))},
            {"positions": torch.ones(1, 13, 1, dtype=torch.long)},
            "positions have 1 axes, but the model has 2",
        ),
        (
            {"positions": TablePositions()},
            {"positions": torch.full((1, 13, 1), 14)},
            r"positions reach from \[14\] to \[14\], but the position tables have rows 0 to \[13\]",
        ),
    ],
)
def test_errors(options: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tiny(**options)(**rows([SEQ_LEN]) | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_the_share_of_latents_that_is_hidden(share: float) -> None:
    """From each other latent, while each still reads itself."""
    model = tiny(max_seq_len=101, num_latents=101, latent_dropout=share).train()
    torch.manual_seed(3)
    pairs = model.latent_mask(torch.zeros(97, 101, 14), None).pairs
    assert pairs is not None
    assert pairs.diagonal(dim1=1, dim2=2).all()
    below = torch.ones(101, 101, dtype=torch.bool).tril(-1)
    assert 1 - pairs[:, below].double().mean().item() == pytest.approx(share, abs=0.03)
    hidden = ~pairs[:, -1, :-1]
    assert hidden.double().mean().item() == pytest.approx(share, abs=0.02)
    assert (pairs[:, 50, :50] == pairs[:, -1, :50]).all()


@pytest.mark.parametrize("lengths", [None, [13, 7]])
def test_positions_of_one_axis_count_from_one_where_none_are_given(lengths: list[int] | None) -> None:
    for options in ({}, {"positions": TablePositions(table="random")}, {"vocab_size": 7}):
        model = tiny(**options)
        given: dict[str, Any] = rows([13, 13])
        given["tokens"] = given["tokens"] % model.config.vocab_size
        given["lengths"] = None if lengths is None else torch.tensor(lengths)
        counted = torch.arange(1, 14)[None, :, None].expand(2, -1, -1)
        expected = model(**given | {"positions": counted})
        assert torch.equal(model(**given | {"positions": None}), expected)
        assert not torch.allclose(model(**given | {"positions": counted * 2 % 13}), expected)


def test_of_several_tables_the_first_is_counted_from_the_end() -> None:
    """As in the reference, which reads as many tables as positions have axes: counted ones have one."""
    several = tiny(positions=TablePositions(table="random", learned=True, sizes=(17, 7)), position_source="end")
    one = tiny(positions=TablePositions(table="random", learned=True, sizes=(17,)), position_source="end")
    one.load_state_dict({name: value for name, value in several.state_dict().items() if "axis1" not in name})
    given = rows([13, 4])
    logits = several(**given)
    assert torch.equal(logits, one(**given))
    logits.sum().backward()
    first, second = several.get_parameter("position_tables.axis0"), several.get_parameter("position_tables.axis1")
    assert first.grad is not None
    assert second.grad is None


@pytest.mark.parametrize("options", [{}, {"positions": TablePositions()}, {"extra_cross_attends": (1,)}], ids=str)
def test_no_matrix_of_latents_and_inputs_exists_in_training(options: dict[str, Any], largest_tensor: Any) -> None:
    seq_len, num_latents = 431, 211
    inputs = rows([seq_len], seq_len)
    inputs.pop("lengths")
    elements = {}
    for backend in ("reference", "sdpa"):
        model = tiny(**options, max_seq_len=seq_len, num_latents=num_latents, backend=backend).float().train()
        with largest_tensor() as seen:
            model(**inputs).sum().backward()
        elements[backend] = seen.elements
    assert elements["reference"] >= num_latents * seq_len
    assert elements["sdpa"] < num_latents * seq_len


def test_fixed_tables_are_not_trained() -> None:
    learned = tiny(positions=TablePositions(learned=True))
    fixed = tiny(positions=TablePositions(learned=False))
    assert dict(learned.named_parameters()).keys() - dict(fixed.named_parameters()).keys() == {"position_tables.axis0"}
    assert learned.state_dict().keys() == fixed.state_dict().keys()


def test_config_is_kept() -> None:
    assert dataclasses.replace(tiny().config, dim=28).dim == 28
