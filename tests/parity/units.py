"""Small functions of the official code, each answered by ours."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from perceivers.convert.official_ar import config_from_official
from perceivers.data.blocks import evaluation_blocks
from perceivers.evaluate.likelihood import BUCKETS
from perceivers.models.perceiver_ar import PerceiverAR
from perceivers.models.perceiver_ar_config import PerceiverARConfig, RotaryPositions
from perceivers.nn.activations import activate
from perceivers.nn.blocks import SelfAttentionBlock
from perceivers.nn.masks import align_right, length_mask
from perceivers.nn.positions import (
    Rotation,
    fourier_features,
    fourier_table,
    linear_coordinates,
    sinusoidal_table,
)
from perceivers.train.objectives import cross_entropy

from .official import Case, Output, compare_output, row_lengths, run, shifted, token_batch

Results = Iterator[tuple[str, Tensor]]


def check_call(case: Case, name: str, call: Mapping[str, Any]) -> None:
    """Compare every result of one call."""
    if call["fn"] == "make_block_causal_masks":
        output = _masks(case, call)
        compare_output(case, output, f"{name}/", atol=0, dtype=torch.float32)
        return
    if call["fn"] == "generate_linear_features":  # "for debugging only", says the official code: not built
        call["kwargs"]
        _linear_features_are_refused()
        return
    wanted = {key for key in case.arrays if key == f"out/{name}" or key.startswith(f"out/{name}/")}
    for suffix, actual in _results(case, call):
        key = f"out/{name}{suffix}"
        wanted.remove(key)
        expected = case.tensor(key)
        if expected.is_floating_point():
            atol = case.tolerance["layer_norm_atol" if call["fn"] == "layer_norm" else "floats_atol"]
            torch.testing.assert_close(actual.float(), expected.float(), atol=atol, rtol=0)
        else:
            assert torch.equal(actual.long(), expected), name
    assert not wanted, f"nothing of ours was compared with {wanted}"


def _results(case: Case, call: Mapping[str, Any]) -> Results:
    match call["fn"]:
        case "get_sequence_length":
            yield "", row_lengths(case.tensor(call["input"]))
        case "truncate_sequence":
            yield "", _without_last(case.tensor(call["input"]))
        case "events_to_shifted_inputs_and_targets":
            yield from _shifted(case.tensor(call["input"]))
        case "make_positions_terminal_relative":
            yield "", _from_the_end(case, call)
        case "generate_sinusoidal_features":
            options = {"max_len": 2048} | call["kwargs"]
            yield "", sinusoidal_table(options.pop("max_len"), options.pop("size"), **options)
        case "generate_fourier_features":
            yield "", _fourier(case, call)
        case "build_linear_positions":
            low, high = call["kwargs"].get("output_range", (-1, 1))
            coordinates = linear_coordinates(tuple(call["kwargs"]["index_dims"]))
            yield "", low + (coordinates + 1) * (high - low) / 2
        case "rotary_inverse_frequencies":
            turn = Rotation.at(
                torch.ones(1, 1).long(), channels=call["rotated_channels"], max_wavelength=call["max_wavelength"]
            )
            yield "/cos_at_position_1", turn.cos.flatten()
            yield "/sin_at_position_1", turn.sin.flatten()[1::2].repeat_interleave(2)
        case "apply_rotary_encoding_to_subset":
            yield "", _rotated(case, call)
        case "get_activation":
            official = {"num_classes": 5, "input_idx_size": [-1], "max_context_length": 7, "z_index_dim": 3}
            official |= {"position_encoding_type": "rotary", "activation_name": call["activation_name"]}
            yield "", activate(case.tensor(call["x"]), config_from_official(official).activation)
        case "layer_norm":
            x = case.tensor(call["x"])
            norm = SelfAttentionBlock(x.shape[-1], heads=1, widening=1, activation="relu").norm
            norm.load_state_dict({"weight": case.tensor(call["scale"]), "bias": case.tensor(call["offset"])})
            yield "", norm(x).detach()
        case "compute_weighted_cross_entropy":
            yield from _cross_entropy(case, call)
        case "load_block_eval":
            yield from _blocks(case, call)
        case "eval_index_bucket":
            yield from _buckets(case, call)
        case fn:
            pytest.fail(f"no counterpart of the official function {fn} is known")


def _linear_features_are_refused() -> None:
    official = {"num_classes": 5, "input_idx_size": [7], "max_context_length": 7, "z_index_dim": 3}
    with pytest.raises(ValueError, match="position_encoding='linear' is not built"):
        config_from_official(official | {"position_encoding_type": "absolute", "position_encoding": "linear"})


def _masks(case: Case, call: Mapping[str, Any]) -> Output:
    tokens = case.tensor(call["input"])
    per_position = call["latents_per_position"]
    config = PerceiverARConfig(
        vocab_size=int(tokens.max()) + 1,
        max_seq_len=tokens.shape[1],
        num_latents=call["latent_index_dim"] // per_position,
        latents_per_position=per_position,
        position_source="end",
        dim=4,
        depth=1,
        heads=1,
        cross_heads=1,
        dropout=0.0,
    )
    return run(PerceiverAR(config).train(call["is_training"]), tokens, None)


def _without_last(rows: Tensor) -> Tensor:
    kept = row_lengths(rows) - 1
    return rows.masked_fill(torch.arange(rows.shape[1]) == kept.clamp(min=0)[:, None], 0)


def _shifted(rows: Tensor) -> Results:
    """Tokens, or positions of one or several axes; those come without the tokens that they belong to."""
    if rows.ndim == 2:
        inputs, _, targets = shifted(token_batch(rows, rows[..., None]))
        yield "/inputs", inputs
        yield "/targets", targets
    else:
        _, inputs, _ = shifted(token_batch(rows[..., 0], rows))
        if rows.shape[2] > 1:
            # With several axes the official search for the first zero runs over all of them at once, and the position
            # of the last token of a padded row stays. Nothing reads it; put it back to compare the others.
            last = row_lengths(rows[..., 0]) - 1
            padded = (last >= 0) & (last < inputs.shape[1])
            inputs[padded, last[padded]] = rows[padded, last[padded]]
        yield "/inputs", inputs
        yield "/targets", rows[:, 1:]  # ours has no use for the positions of targets


def _from_the_end(case: Case, call: Mapping[str, Any]) -> Tensor:
    """Positions of the model, in the order of right-padded rows."""
    tokens = case.tensor(call["input"])
    seq_len, lengths = tokens.shape[1], row_lengths(tokens)
    config = PerceiverARConfig(
        vocab_size=9, max_seq_len=seq_len, num_latents=1, position_source="end", dim=4, heads=1, cross_heads=1, depth=1
    )
    aligned = PerceiverAR(config)._positions(align_right(tokens, lengths), None, length_mask(lengths, seq_len))[..., 0]
    steps = torch.stack([aligned[0].roll(-(seq_len - int(length))) for length in lengths])
    return case.tensor(call["positions"]).gather(1, steps) if "positions" in call else steps


def _fourier(case: Case, call: Mapping[str, Any]) -> Tensor:
    options = {"max_res": 224, "concat_pos": True} | call["kwargs"]
    shape = call.get("build_linear_positions")
    if shape == [options["max_res"]] and not options["concat_pos"]:
        return fourier_table(shape[0], 2 * options["n_bands"])
    return fourier_features(
        case.tensor(call["pos"]) if shape is None else linear_coordinates(tuple(shape)).flatten(0, -2),
        bands=options["n_bands"],
        max_resolution=options["max_res"],
        concat=options["concat_pos"],
    )


def _rotated(case: Case, call: Mapping[str, Any]) -> Tensor:
    x = case.tensor(call["x"]).transpose(1, 2)  # [b, n, h, d] there, [b, h, n, d] here
    share = RotaryPositions(channel_share=call["fraction_to_rotate"], head_share=call["fraction_heads_to_rotate"])
    turn = Rotation.at(
        case.tensor(call["positions"]),
        channels=share.channels(x.shape[-1]),
        heads=share.heads(x.shape[1]),
        max_wavelength=call["max_wavelength"],
    )
    return turn(x).transpose(1, 2)


def _cross_entropy(case: Case, call: Mapping[str, Any]) -> Results:
    logits = case.tensor(call["logits"]).requires_grad_()
    loss, z = cross_entropy(
        logits, case.tensor(call["targets"]), z_loss=call["z_loss"], label_smoothing=call["label_smoothing"]
    )
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    weights = case.tensor(call["weights"]) if "weights" in call else torch.ones_like(loss)
    yield "/loss", (loss * weights).detach()
    yield "/z_loss", (z * weights).detach()
    yield "/weight_sum", weights.sum()
    yield "/grad_of_sum_unweighted", gradient


def _blocks(case: Case, call: Mapping[str, Any]) -> Results:
    events, positions = case.tensor(call["events"]), case.tensor(call["event_idxs"])
    size = call["max_context_length"]
    blocks = evaluation_blocks(len(events), max_len=size, stride=call["block_eval_window"])

    def rows(values: Tensor, shift: int = 0) -> Tensor:
        cut = [values[block.start + shift : block.stop - 1 + shift] for block in blocks]
        return torch.stack([torch.cat([row, row.new_zeros(size - len(row), *row.shape[1:])]) for row in cut])

    yield "/inputs", rows(events)
    yield "/targets", rows(events, shift=1)
    yield "/input_idxs", rows(positions)
    yield "/input_lengths", rows(torch.arange(1, len(events) + 1))


def _buckets(case: Case, call: Mapping[str, Any]) -> Results:
    places = (case.tensor(call["input_lengths"]) - 1).clamp(min=0)
    yield "/bucket_index", torch.bucketize(places, torch.tensor(BUCKETS), right=True) - 1
    yield "/bucket_edges", torch.tensor([*zip(BUCKETS, (*BUCKETS[1:], float("inf")), strict=True)])
