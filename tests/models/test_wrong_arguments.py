"""Tensors of another shape or kind, as a user would pass them: each is refused in words, by every model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from perceivers.models.build import build
from perceivers.models.cached import CachedPerceiverAR
from perceivers.models.ecp import ECP
from perceivers.models.ecp_cached import CachedECP
from perceivers.models.ecp_config import ECPConfig
from perceivers.models.feature_config import PixelFeatures, TokenFeatures
from perceivers.models.hip import HiP
from perceivers.models.hip_config import DataSet, HiPConfig, Modality
from perceivers.models.input_config import FourierPositions, InputConfig
from perceivers.models.output_config import GridQueries, QueryOutputConfig
from perceivers.models.perceiver import Encoder
from perceivers.models.perceiver_ar import PerceiverAR
from perceivers.models.perceiver_ar_config import PerceiverARConfig
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig, ResamplerConfig
from perceivers.models.resampler import PerceiverResampler

pytestmark = pytest.mark.usefixtures("unchecked")

TOKENS = torch.arange(26).reshape(2, 13) % 17
COUNTED = torch.arange(1, 14)[None, :, None].expand(2, -1, -1)
ENCODER = EncoderConfig(dim=14, num_latents=3, depth=1, heads=7)
REAL = torch.ones(2, 13, dtype=torch.bool)


def perceiver_ar(**options: Any) -> PerceiverAR:
    config = PerceiverARConfig(
        vocab_size=17, max_seq_len=13, num_latents=5, dim=14, depth=1, heads=7, cross_heads=2, zero_logits=False
    )
    return PerceiverAR(config).eval()


def ecp() -> ECP:
    return ECP(ECPConfig(vocab_size=17, max_seq_len=13, segment_len=5, dim=14, depth=1, heads=7)).eval()


def text() -> Any:
    source = InputConfig(features=TokenFeatures(vocab_size=17, seq_len=13, dim=14))
    output = QueryOutputConfig(queries=GridQueries(shape=(5,)))
    return build(PerceiverIOConfig(input=source, encoder=ENCODER, output=output)).eval()


def picture() -> Any:
    source = InputConfig(features=PixelFeatures(shape=(3, 5, 2)), positions=FourierPositions(bands=2))
    return build(PerceiverIOConfig(input=source, encoder=ENCODER, output=QueryOutputConfig())).eval()


def hip() -> HiP:
    data = DataSet(name="pictures", modalities=(Modality(name="image", positions=12, channels=3),))
    sizes: dict[str, Any] = {"latents": (2, 6, 2), "dims": (4, 6, 4), "depths": (1, 1, 1), "heads": (2, 2, 2)}
    return HiP(HiPConfig(data_sets=(data,), groups=(3, 1, 3), embed_dim=5, **sizes)).eval()


SEQUENCES: list[tuple[dict[str, Any], str]] = [
    ({"tokens": TOKENS.float()}, r"tokens holds numbers of type float32; expected are integers \(int64 or int32\)"),
    ({"tokens": TOKENS[0]}, r"tokens has shape \[13\]; expected is \[any, any\]"),
    ({"tokens": TOKENS.tolist()}, "tokens is of type list; pass a tensor of integers"),
    ({"tokens": TOKENS + 1}, r"tokens holds 17; the model knows ids 0\.\.16"),
    ({"tokens": TOKENS - 1}, r"tokens holds -1; the model knows ids 0\.\.16"),
    ({"positions": COUNTED[:, :9]}, r"positions has shape \[2, 9, 1\]; expected is \[2, 13, any\]"),
    ({"positions": COUNTED[:1]}, r"positions has shape \[1, 13, 1\]; expected is \[2, 13, any\]"),
    ({"positions": COUNTED[..., 0]}, r"positions has shape \[2, 13\]; expected is \[2, 13, any\]"),
    ({"positions": torch.arange(30)[None, :, None].expand(2, -1, 1)}, r"positions has shape \[2, 30, 1\]"),
    ({"positions": COUNTED + 0.5}, "positions holds numbers of type float32; expected are integers"),
    ({"positions": COUNTED * float("nan")}, "positions holds numbers of type float32; expected are integers"),
    ({"lengths": torch.tensor([7])}, r"lengths has shape \[1\]; expected is \[2\]"),
    ({"lengths": torch.tensor([-3, 13])}, r"lengths holds -3; a row has columns 0\.\.13"),
    ({"lengths": torch.tensor([7, 14])}, r"lengths holds 14; a row has columns 0\.\.13"),
    ({"lengths": torch.tensor([7.0, 13.0])}, "lengths holds numbers of type float32"),
    ({"lengths": torch.tensor([7, 13], dtype=torch.uint8)}, "lengths holds numbers of type uint8"),
    ({"lengths": [7, 13]}, "lengths is of type list"),
    ({"num_latents": -1}, "num_latents=-1 must"),
]


@pytest.mark.parametrize("make", [perceiver_ar, ecp])
@pytest.mark.parametrize(("wrong", "message"), SEQUENCES)
def test_of_sequences(make: Callable[[], Any], wrong: dict[str, Any], message: str) -> None:
    given = {"tokens": TOKENS, "positions": COUNTED, "lengths": torch.tensor([13, 7])}
    make()(**given)
    with pytest.raises(ValueError, match=message):
        make()(**given | wrong)


def test_a_row_is_no_longer_than_the_model() -> None:
    with pytest.raises(ValueError, match=r"rows of 15 tokens are longer than max_seq_len=13: cut them"):
        perceiver_ar()(torch.zeros(2, 15, dtype=torch.long))


def test_an_unknown_id_in_the_prefix_alone() -> None:
    """Where keys are taken by id, those of the prefix are looked up nowhere else."""
    model, tokens = perceiver_ar(), TOKENS.clone()
    assert model.reads_by_id(tokens)
    tokens[1, 0] = 17
    with pytest.raises(ValueError, match="tokens holds 17"):
        model(tokens)


PROMPTS: list[tuple[Any, dict[str, Any], str]] = [
    ([], {}, "each prompt is a list of at least one id, and there is at least one prompt"),
    ([[]], {}, "each prompt is a list of at least one id"),
    ([[3], []], {}, "each prompt is a list of at least one id"),
    (TOKENS, {}, "each prompt is a list of at least one id"),
    ([[17]], {}, r"tokens holds 17; the model knows ids 0\.\.16"),
    ([[3, -1]], {}, r"tokens holds -1; the model knows ids 0\.\.16"),
    ([[3.5]], {}, "tokens holds numbers of type float32"),
    ([[True]], {}, "tokens holds numbers of type bool"),
    ([[3]], {"samples": 0}, "samples=0 must be at least 1"),
]
FED: list[tuple[Tensor, str]] = [
    (torch.tensor([3]), r"tokens has shape \[1\]; expected is \[2\]"),
    (torch.tensor([3, 5, 7]), r"tokens has shape \[3\]; expected is \[2\]"),
    (torch.tensor([[3], [5]]), r"tokens has shape \[2, 1\]; expected is \[2\]"),
    (torch.tensor([3.0, 5.0]), "tokens holds numbers of type float32"),
    (torch.tensor([True, False]), "tokens holds numbers of type bool"),
]


@pytest.mark.parametrize("make", [lambda: CachedPerceiverAR(perceiver_ar()), lambda: CachedECP(ecp())])
def test_of_what_is_read_token_by_token(make: Callable[[], Any]) -> None:
    for prompts, options, message in PROMPTS:
        with pytest.raises(ValueError, match=message):
            make().start(prompts, **{"max_tokens": 3} | options)
    cached = make()
    cached.start([[3, 5], [7]], max_tokens=3)
    for tokens, message in FED:
        with pytest.raises(ValueError, match=message):
            cached.feed(tokens)
    assert cached.feed(torch.tensor([3, 5])).shape == (2, 17)


@pytest.mark.parametrize("most", [0, -1])
def test_of_how_many_tokens_follow(most: int) -> None:
    with pytest.raises(ValueError, match=f"max_tokens={most} must be at least 1"):
        CachedPerceiverAR(perceiver_ar()).start([[3]], max_tokens=most)


PICTURE = torch.zeros(2, 3, 5, 2)
FRAMES = torch.zeros(2, 3, 5, 14)
IMAGE = {"image": torch.zeros(2, 12, 3)}
GRIDS: list[tuple[Callable[[], Any], tuple[Any, ...], dict[str, Any], dict[str, Any], str]] = [
    (text, (TOKENS,), {"mask": REAL}, {"mask": REAL.long()}, "mask holds numbers of type int64; expected are truth"),
    (text, (TOKENS,), {"mask": REAL}, {"mask": REAL[:1]}, r"mask has shape \[1, 13\]"),
    (text, (TOKENS,), {}, {"query_mask": torch.ones(2, 5)}, "query_mask holds numbers of type float32"),
    (text, (TOKENS,), {}, {"query_mask": REAL}, r"query_mask has shape \[2, 13\]"),
    (text, (TOKENS,), {}, {"points": torch.tensor([1.0])}, "points holds numbers of type float32"),
    (text, (TOKENS,), {}, {"points": torch.tensor([[1]])}, r"points has shape \[1, 1\]"),
    (text, (TOKENS,), {}, {"points": torch.tensor([5])}, "points reach from 5 to 5"),
    (picture, (PICTURE,), {}, {"positions": torch.zeros(2, 15, 3)}, r"positions have shape \[2, 15, 3\]"),
    (picture, (PICTURE,), {}, {"positions": torch.full((2, 15, 2), torch.nan)}, "positions hold NaN or an infinity"),
    (picture, (PICTURE,), {}, {"positions": torch.full((2, 15, 2), -torch.inf)}, "positions hold NaN or an infinity"),
    (picture, (PICTURE,), {}, {"positions": torch.zeros(2, 15, 2).long()}, "positions holds numbers of type int64"),
    (hip, (IMAGE,), {}, {"masked": {"image": torch.zeros(2, 12)}}, r"masked\['image'\] holds numbers of type float32"),
    (hip, (IMAGE,), {}, {"masked": {"image": REAL[:, :12][:1]}}, r"masked\['image'\] has shape \[1, 12\]"),
    (hip, (IMAGE,), {}, {"chosen": torch.zeros(2, 1, 3)}, "chosen holds numbers of type float32"),
    (hip, (IMAGE,), {}, {"chosen": torch.zeros(2, 3).long()}, r"chosen has shape \[2, 3\]"),
    (hip, (IMAGE,), {}, {"chosen": torch.full((2, 1, 3), 6)}, r"chosen holds 6; the processor has latents 0\.\.5"),
]


@pytest.mark.parametrize(("make", "args", "right", "wrong", "message"), GRIDS)
def test_of_other_models(make: Any, args: Any, right: dict[str, Any], wrong: dict[str, Any], message: str) -> None:
    make()(*args, **right)
    with pytest.raises(ValueError, match=message):
        make()(*args, **wrong)


@pytest.mark.parametrize(
    ("make", "x", "message"),
    [
        (text, TOKENS.float(), "input holds numbers of type float32; expected are integers"),
        (text, TOKENS + 1, "token ids reach from 1 to 17"),
        (picture, PICTURE.long(), "input holds numbers of type int64; expected are real numbers"),
        (picture, PICTURE[:, :2], r"input has shape \[2, 2, 5, 2\]"),
        (hip, {"image": IMAGE["image"].long()}, "image holds numbers of type int64"),
        (hip, {"image": IMAGE["image"][0]}, r"image has shape \[12, 3\]"),
        (hip, {"image": [1, 2]}, "image is of type list"),
    ],
)
def test_of_inputs(make: Any, x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()(x)


@pytest.mark.parametrize(
    ("features", "mask", "message"),
    [
        (FRAMES[0], None, r"features has shape \[3, 5, 14\]"),
        (FRAMES.long(), None, "features holds numbers of type int64"),
        (FRAMES[..., :7], None, "features have 7 channels"),
        (FRAMES, torch.ones(2, 3), "mask holds numbers of type float32"),
        (FRAMES, torch.ones(2, 5, dtype=torch.bool), r"mask has shape \[2, 5\]"),
    ],
)
def test_of_the_resampler(features: Tensor, mask: Tensor | None, message: str) -> None:
    resampler = PerceiverResampler(ResamplerConfig(dim=14, num_latents=3, depth=1, heads=7, frames=5))
    resampler(FRAMES, mask=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=message):
        resampler(features, mask=mask)


@pytest.mark.parametrize(
    ("tokens", "mask", "message"),
    [
        (torch.zeros(2, 13, 7), None, r"tokens has shape \[2, 13, 7\]; expected is \[any, any, 11\]"),
        (torch.zeros(13, 11), None, r"tokens has shape \[13, 11\]"),
        (torch.zeros(2, 13, 11), REAL[:, :7], r"mask has shape \[2, 7\]; expected is \[2, 13\]"),
        (torch.zeros(2, 13, 11), REAL.int(), "mask holds numbers of type int32"),
    ],
)
def test_of_an_encoder_alone(tokens: Tensor, mask: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoder(ENCODER, 11)(tokens, mask=mask)
