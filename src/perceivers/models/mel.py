"""Log-mel spectrograms, on any device and with gradients."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


def mel_filters(*, sample_rate: int, window: int, bands: int) -> Float[Tensor, "bands bins"]:
    """Triangles over the bins of a Fourier transform, evenly spaced in mel, from 0 to half the sample rate.

    Mel is 2595 log10(1 + Hz / 700), as in HTK; a triangle's peak is 1.
    """
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2, dtype=torch.float64) / 2595) - 1)
    bins = torch.linspace(0, sample_rate / 2, window // 2 + 1, dtype=torch.float64)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)


class LogMel(nn.Module):
    """Log of the power in mel bands, frame by frame; frames lie inside the recording.

    Args:
        sample_rate: Samples a second.
        window: Samples of a frame (Hann).
        hop: Samples from frame to frame.
        bands: Mel bands.

    Raises:
        ValueError: A band is too narrow to hold a bin of the Fourier transform.
    """

    filters: Tensor
    hann: Tensor

    def __init__(self, *, sample_rate: int, window: int, hop: int, bands: int) -> None:
        super().__init__()
        with torch.device("cpu"):  # their numbers are looked at, even where the model is made without any
            filters = mel_filters(sample_rate=sample_rate, window=window, bands=bands)
        if empty := int((filters.sum(1) == 0).sum()):
            raise ValueError(
                f"{empty} of {bands} mel bands hold none of the {window // 2 + 1} frequencies of a window of {window} "
                "samples; use fewer bands or a longer window"
            )
        self.window, self.hop = window, hop
        self.register_buffer("filters", filters.float(), persistent=False)
        self.register_buffer("hann", torch.hann_window(window), persistent=False)

    def forward(self, x: Float[Tensor, "b samples 1"]) -> Float[Tensor, "b frames bands 1"]:
        """Log of 1e-6 plus the power, in float32 or wider whatever autocast says: float16 does not hold such powers."""
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            frames = x[..., 0].to(wide).unfold(-1, self.window, self.hop) * self.hann.to(wide)
            power = torch.fft.rfft(frames, norm="forward").abs().square()
            return (power @ self.filters.T.to(wide) + 1e-6).log()[..., None].to(x.dtype)
