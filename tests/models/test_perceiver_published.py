import pytest
import torch

from perceivers.models import perceiver_published as published
from perceivers.models.perceiver_io import build_perceiver_io


@pytest.mark.parametrize(
    ("name", "parameters", "latents", "input_dim"),
    [
        ("imagenet_learned", 62_255_848, (512, 1024), 512),
        ("imagenet_fourier", 48_440_627, (512, 1024), 261),
        ("imagenet_conv", 48_646_522, (512, 1024), 322),
        ("masked_language_model", 201_108_230, (256, 1280), 768),
        ("optical_flow", 41_057_134, (2048, 512), 322),
        ("video_autoencoder", 19_858_855, (784, 512), 704),
    ],
)
def test_parameters_are_those_published(name: str, parameters: int, latents: tuple[int, int], input_dim: int) -> None:
    config = getattr(published, name)()
    with torch.device("meta"):
        model = build_perceiver_io(config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert (config.encoder.num_latents, config.encoder.dim) == latents
    assert config.input.dim == input_dim


def test_the_first_papers_perceiver_reads_eight_times() -> None:
    config = published.perceiver_imagenet()
    with torch.device("meta"):
        model = build_perceiver_io(config)
    assert (config.encoder.cross_attends, config.encoder.blocks, config.encoder.depth) == (8, 8, 6)
    assert len(model.encoder.cross_attends) == 2
    assert len(model.encoder.blocks) == 1
