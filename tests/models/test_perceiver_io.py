from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from perceivers.models.feature_config import PixelFeatures, TokenFeatures, VectorFeatures
from perceivers.models.input_config import (
    FourierPositions,
    InputConfig,
    LearnedPositions,
    Modality,
    MultimodalInputConfig,
)
from perceivers.models.inputs import Input
from perceivers.models.output_config import (
    AverageOutputConfig,
    ClassHead,
    GridQueries,
    LinearHead,
    MultimodalOutputConfig,
    OutputModality,
    QueryOutputConfig,
    TiedHead,
)
from perceivers.models.outputs import AverageOutput
from perceivers.models.perceiver import Encoder
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig
from perceivers.models.perceiver_io import PerceiverIO, build_perceiver_io, decode_in_chunks

ENCODER = EncoderConfig(num_latents=3, dim=10, blocks=2, depth=2, heads=5)
PIXELS = InputConfig(features=PixelFeatures(shape=(5, 7, 3)), positions=FourierPositions(bands=2))
LABEL = InputConfig(features=VectorFeatures(dim=11))
CLASS_QUERY = GridQueries(positions=LearnedPositions(channels=6))
TEXT_QUERIES = GridQueries(shape=(7,), positions=LearnedPositions(channels=6))

CONFIGS = {
    "average": PerceiverIOConfig(input=PIXELS, encoder=ENCODER, output=AverageOutputConfig(classes=11)),
    "class": PerceiverIOConfig(
        input=PIXELS,
        encoder=ENCODER,
        output=QueryOutputConfig(queries=CLASS_QUERY, channels=11, head=ClassHead(), query_residual=True),
    ),
    "text": PerceiverIOConfig(
        input=InputConfig(
            features=TokenFeatures(vocab_size=13, seq_len=7, dim=6),
            positions=LearnedPositions(channels=6),
            combine="add",
        ),
        encoder=ENCODER,
        output=QueryOutputConfig(queries=TEXT_QUERIES, channels=None, head=TiedHead(vocab_size=13), heads=2),
    ),
    "multimodal": PerceiverIOConfig(
        input=MultimodalInputConfig(
            modalities=(Modality(name="film", input=PIXELS), Modality(name="label", input=LABEL, mask_share=0.0)),
        ),
        encoder=ENCODER,
        output=MultimodalOutputConfig(
            modalities=(
                OutputModality(
                    name="film",
                    queries=GridQueries(shape=(5, 7), positions=FourierPositions(bands=2)),
                    head=LinearHead(channels=3),
                ),
                OutputModality(name="label", queries=CLASS_QUERY, head=ClassHead(classes=11)),
            ),
            channels=9,
        ),
    ),
}


def model(name: str) -> PerceiverIO:
    torch.manual_seed(0)
    return build_perceiver_io(CONFIGS[name])


def example(name: str, batch: int = 2):
    torch.manual_seed(1)
    if name == "text":
        return torch.randint(13, (batch, 7))
    film = torch.randn(batch, 5, 7, 3)
    return {"label": torch.randn(batch, 11), "film": film} if name == "multimodal" else film


def flat(result) -> torch.Tensor:
    parts = result.values() if isinstance(result, dict) else [result]
    return torch.cat([part.flatten(1) for part in parts], 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_is_its_rows(name: str) -> None:
    net, x = model(name).eval(), example(name)
    for row in range(2):
        one = {k: v[row, None] for k, v in x.items()} if isinstance(x, dict) else x[row, None]
        torch.testing.assert_close(flat(net(one))[0], flat(net(x))[row])


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_is_loaded(name: str, tmp_path: Path) -> None:
    net = model(name).eval()
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(7)
    other = build_perceiver_io(CONFIGS[name]).eval()
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(flat(other(example(name))), flat(net(example(name))))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    net = model(name).train()
    for parameter in net.output.parameters():  # what starts at zero hides what is before it
        nn.init.normal_(parameter)
    flat(net(example(name))).square().sum().backward()
    # A share of 0 hides nothing, so its token is not used.
    without = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert without == ({"input.mask_tokens.label"} if name == "multimodal" else set())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_small_batch_is_learned(name: str) -> None:
    net, x = model(name).train(), example(name, 3)
    target = torch.randint(11, (3,))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(60):
        result = net(x)
        if name == "text":
            loss = nn.functional.cross_entropy(result.flatten(0, 1), x.flatten())
        else:
            loss = nn.functional.cross_entropy(result["label"] if isinstance(result, dict) else result, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize("combine", ["concat", "add"])
def test_pixels_and_their_positions_in_another_order_change_nothing(combine: str) -> None:
    positions = LearnedPositions(channels=3, init_std=1.0)
    config = PerceiverIOConfig(
        input=InputConfig(features=PixelFeatures(shape=(5, 7, 3)), positions=positions, combine=combine),
        encoder=ENCODER,
        output=AverageOutputConfig(classes=11),
    )
    torch.manual_seed(0)
    net = build_perceiver_io(config).double().eval()
    nn.init.normal_(net.output.get_parameter("linear.weight"))  # zero at first, which would hide everything
    pixels = torch.randn(2, 5, 7, 3, dtype=torch.float64)
    before = net(pixels)
    order = torch.randperm(35)
    mixed = pixels.flatten(1, 2)[:, order].unflatten(1, (5, 7))
    assert (net(mixed) - before).abs().max() > 1e-3
    with torch.no_grad():
        for table in net.input.positions.parameters():
            table.copy_(table[order])
    torch.testing.assert_close(net(mixed), before, rtol=1e-12, atol=1e-12)


def test_padding_changes_nothing() -> None:
    net, x = model("text").eval(), example("text")
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    other = torch.where(mask, x, (x + 1) % 13)
    results = [net(tokens, mask=mask, query_mask=mask) for tokens in (x, other)]
    assert torch.equal(*results)
    # As in the reference: all masked queries have one answer.
    assert torch.allclose(results[0][1, 4:], results[0][1, 4:5])


def test_parts_are_put_together_by_hand() -> None:
    net = PerceiverIO(
        input=Input(PIXELS), encoder=Encoder(ENCODER, PIXELS.dim), output=AverageOutput(AverageOutputConfig(), 10)
    )
    assert net.config is None
    assert net(example("average")).shape == (2, 1000)
    assert model("average").config == CONFIGS["average"]


def test_one_reading_answers_many_questions() -> None:
    net = model("multimodal").eval()
    encoded = net.encode(example("multimodal"))
    full = net.decode(encoded)
    torch.testing.assert_close(net(example("multimodal")), full)
    some = net.decode(encoded, points={"film": torch.arange(35)})
    # As in the reference: chosen points lie at other coordinates than all of them do.
    assert not torch.allclose(some["film"], full["film"])


def test_chunks_are_decoded_one_by_one() -> None:
    net = model("multimodal").eval()
    encoded = net.encode(example("multimodal"))
    whole = net.decode(encoded, points={"film": torch.arange(35)})
    torch.testing.assert_close(decode_in_chunks(net, encoded, points={"film": 35}, chunks=5), whole)
    with pytest.raises(ValueError, match=r"35 points of film are not 4 equal chunks: 35 = 4 \* 8 \+ 3"):
        decode_in_chunks(net, encoded, points={"film": 35}, chunks=4)


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask has shape \[2, 5\], but the input has \[2, 35\] tokens"):
        model("class")(example("class"), mask=torch.ones(2, 5, dtype=torch.bool))
