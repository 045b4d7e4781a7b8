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


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_quiet_sound_is_no_silence_in_narrow_types(dtype: torch.dtype, autocast: bool) -> None:
    """Its power is less than float16 holds; only the result is rounded."""
    mel = LogMel(sample_rate=8000, window=512, hop=128, bands=23)
    tone = (0.01 * torch.sin(2 * math.pi * 1000 * torch.arange(1024) / 8000))[None, :, None].to(dtype)
    expected = mel(tone.float())
    with torch.autocast("cpu", dtype, enabled=autocast):
        result = mel(tone.float() if autocast else tone)
    torch.testing.assert_close(result.float(), expected, rtol=torch.finfo(dtype).eps, atol=0)
    assert expected.max() > math.log(1e-6) + 1
