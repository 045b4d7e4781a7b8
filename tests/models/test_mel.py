import math

import pytest
import torch

from perceivers.models.mel import LogMel, mel_filters


def test_triangles_overlap_to_one() -> None:
    filters = mel_filters(sample_rate=8000, window=512, bands=11)
    assert filters.shape == (11, 257)
    peaks = filters.argmax(1)
    assert (peaks.diff() > 0).all()
    inside = filters[:, peaks[0] + 1 : peaks[-1]]
    torch.testing.assert_close(inside.sum(0), torch.ones_like(inside[0]))


@pytest.mark.parametrize("hertz", [250, 1000, 3000])
def test_a_tone_is_in_its_band(hertz: int) -> None:
    mel = LogMel(sample_rate=8000, window=512, hop=128, bands=23)
    tone = torch.sin(2 * math.pi * hertz * torch.arange(1024) / 8000)
    spectrum = mel(tone[None, :, None])
    assert spectrum.shape == (1, 5, 23, 1)
    expected = mel_filters(sample_rate=8000, window=512, bands=23)[:, round(hertz / 8000 * 512)].argmax()
    assert (spectrum[0, :, :, 0].argmax(1) == expected).all()
    assert mel(torch.zeros(1, 1024, 1)).max().item() == pytest.approx(math.log(1e-6))


def test_bands_without_a_frequency_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\d+ of 101 mel bands hold none of the 65 frequencies of a window of 128"):
        LogMel(sample_rate=8000, window=128, hop=64, bands=101)
