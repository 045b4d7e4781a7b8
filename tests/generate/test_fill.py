import math

import pytest
import torch
from torch import nn

from perceivers.generate.fill import fill, text_length
from perceivers.models.feature_config import PixelFeatures, TokenFeatures
from perceivers.models.input_config import FourierPositions, InputConfig, LearnedPositions
from perceivers.models.output_config import AverageOutputConfig, GridQueries, QueryOutputConfig, TiedHead
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig
from perceivers.models.perceiver_io import PerceiverIO, build_perceiver_io

ENCODER = EncoderConfig(num_latents=3, dim=10, blocks=1, depth=1, heads=5)
PAD, MASK, OFFSET = 0, 3, 6


def config_of(seq_len: int, vocab_size: int = 262) -> PerceiverIOConfig:
    positions = LearnedPositions(channels=6)
    features = TokenFeatures(vocab_size=vocab_size, seq_len=seq_len, dim=6)
    return PerceiverIOConfig(
        input=InputConfig(features=features, positions=positions, combine="add"),
        encoder=ENCODER,
        output=QueryOutputConfig(
            queries=GridQueries(shape=(seq_len,), positions=positions),
            channels=None,
            head=TiedHead(vocab_size=vocab_size),
            heads=2,
        ),
    )


def language_model(*, seq_len: int = 13, vocab_size: int = 262) -> PerceiverIO:
    torch.manual_seed(1)
    return build_perceiver_io(config_of(seq_len, vocab_size))


class Alphabet(nn.Module):
    """Knows what follows a letter that it sees, with probability 3/4 or so, and nothing else."""

    def __init__(self, seq_len: int = 23) -> None:
        super().__init__()
        self.config, self.seq_len = config_of(seq_len), seq_len
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(
        self, tokens: torch.Tensor, *, mask: torch.Tensor | None, query_mask: torch.Tensor | None
    ) -> torch.Tensor:
        assert tokens.shape[1] == self.seq_len
        assert mask is query_mask
        assert (mask is None) == bool((tokens != PAD).all())
        if mask is not None:
            assert torch.equal(mask, tokens != PAD)
        logits = torch.zeros(*tokens.shape, 262)
        logits[..., :OFFSET] = 100.0  # ids that must never be chosen
        logits[..., OFFSET + ord("?")] = 0.5
        for row, place in (tokens[:, :-1] > MASK).nonzero().tolist():
            logits[row, place + 1, tokens[row, place] + 1] = math.log(3 * 255)
        return logits


def test_bytes_are_filled_where_the_model_is_surest() -> None:
    model = Alphabet()
    filled = fill(model, "a____f and x__.", top=1)
    assert filled.text == "abcdef and xyz."
    assert [(blank.start, blank.length) for blank in filled.blanks] == [(1, 4), (12, 2)]
    assert [blank.choices[0].text for blank in filled.blanks] == ["bcde", "yz"]
    first = filled.blanks[1].choices[0].probability
    step = 3 * 255 / (3 * 255 + 254 + math.exp(0.5))
    assert first == pytest.approx(step**2, rel=1e-6)


def test_choices_are_a_distribution_in_order() -> None:
    model = language_model()
    choices = fill(model, "ab__e", top=31).blanks[0].choices
    probabilities = [choice.probability for choice in choices]
    assert probabilities == sorted(probabilities, reverse=True)
    one = fill(model, "ab[MASK]e", top=256).blanks[0].choices
    assert sum(choice.probability for choice in one) == pytest.approx(1, rel=1e-6)
    assert len(one) == 256


def test_probabilities_follow_the_chain_rule() -> None:
    model = language_model()
    choice = fill(model, "ab__e", top=1).blanks[0].choices[0]
    tokens = torch.zeros(1, 13, dtype=torch.int64)
    tokens[0, :5] = torch.tensor([OFFSET + ord("a"), OFFSET + ord("b"), MASK, MASK, OFFSET + ord("e")])
    real, expected = tokens > 0, 1.0
    model.eval()
    for _ in range(2):
        with torch.no_grad():
            probabilities = model(tokens, mask=real, query_mask=real)[0, :, OFFSET:].softmax(-1)
        open_places = (tokens[0] == MASK).nonzero()[:, 0]
        place = open_places[probabilities[open_places].amax(-1).argmax()]
        expected *= float(probabilities[place].max())
        tokens[0, place] = probabilities[place].argmax() + OFFSET
    assert choice.probability == pytest.approx(expected, rel=1e-4)


def test_other_blanks_are_as_filled_when_choices_are_found() -> None:
    model = Alphabet()
    filled = fill(model, "a__ then __", top=3)
    assert filled.text.startswith("abc then")
    assert len(filled.blanks) == 2
    assert filled.blanks[0].choices[0].text == "bc"
    assert len({choice.text for choice in filled.blanks[0].choices}) == 3
    assert filled.text[9:] == filled.blanks[1].choices[0].text


def test_one_underscore_is_no_blank_and_letters_may_be_long() -> None:
    model = Alphabet()
    assert fill(model, "a_b é y[MASK]", top=1).text == "a_b é yz"
    blanks = fill(model, "é__", top=1).blanks
    assert [(blank.start, blank.length) for blank in blanks] == [(2, 2)]
    assert len(fill(model, "[MASK]__[MASK]", top=1).blanks) == 1


def test_names_of_special_tokens_are_these_tokens_and_are_read() -> None:
    """As transformers' tokenizer has it: a written [PAD] is token 0, which is attended to."""
    model = language_model()
    text = "[CLS]a[PAD] __[SEP]"
    filled = fill(model, text, top=256)
    best = filled.blanks[0].choices[0].text
    assert filled.text == text.replace("__", best)
    assert (filled.blanks[0].start, filled.blanks[0].length) == (12, 2)
    model.eval()
    tokens = torch.tensor([[4, OFFSET + ord("a"), PAD, OFFSET + ord(" "), MASK, 5]])
    real = torch.arange(13) < tokens.shape[1]
    padded = nn.functional.pad(tokens, (0, 7))
    with torch.no_grad():
        probabilities = model(padded, mask=real[None], query_mask=real[None])[0, 4, OFFSET:].softmax(-1)
    one = fill(model, "[CLS]a[PAD] [MASK][SEP]", top=1).blanks[0].choices[0]
    assert one.probability == pytest.approx(float(probabilities.max()), rel=1e-5)


def test_a_full_input_has_no_mask_and_the_model_trains_on() -> None:
    model = Alphabet(seq_len=7).train()
    assert fill(model, "abcde__", top=2).text == "abcdefg"
    assert model.training


def test_what_cannot_be_filled_is_refused() -> None:
    model = language_model()
    with pytest.raises(ValueError, match="the text 'nothing_here' has no blank: write two underscores or more"):
        fill(model, "nothing_here")
    with pytest.raises(ValueError, match="the text has 14 bytes, this model reads 13: shorten it"):
        fill(model, "a" * 12 + "__")
    with pytest.raises(ValueError, match="top=0 must be 1 or more"):
        fill(model, "a__", top=0)


def test_other_models_are_refused() -> None:
    assert text_length(language_model(seq_len=7)) == 7
    pictures = PerceiverIOConfig(
        input=InputConfig(features=PixelFeatures(shape=(5, 7, 3)), positions=FourierPositions(bands=2)),
        encoder=ENCODER,
        output=AverageOutputConfig(classes=11),
    )
    for model in (build_perceiver_io(pictures), nn.Linear(2, 3)):
        with pytest.raises(ValueError, match="reads no text with holes"):
            text_length(model)
    with pytest.raises(ValueError, match="knows 100 ids, but bytes with their special ids are 262"):
        text_length(language_model(vocab_size=100))


def test_predictions_that_are_no_numbers_are_told() -> None:
    model = language_model()
    with torch.no_grad():
        next(iter(model.parameters())).fill_(torch.inf)
    with pytest.raises(FloatingPointError, match="is not a number"):
        fill(model, "a ____ c")
