"""The published settings.

"Released" means the code that the authors released (`get_config` of perceiver_ar/experiment.py,
google-research/perceiver-ar), "reported" what is reported of the paper (Hawthorne et al. 2022,
https://arxiv.org/abs/2202.07765), "chosen" what neither says. The paper's word-level WikiText-103 model is left out:
its adaptive input and softmax layers are not built here.
"""

from dataclasses import replace

from perceivers.data.config import CopyConfig, DataConfig
from perceivers.models.perceiver_ar_config import PerceiverARConfig, RotaryPositions, TablePositions
from perceivers.presets.sequences import MUSIC_VOCAB
from perceivers.train.config import OptimConfig, TrainConfig


def copy_32() -> TrainConfig:
    """Published: the copy task over 32 tokens, 26.8 M parameters.

    Released as `random_mirrored_32`; all numbers are from there. Its cosine lasts the 1,000,000 steps that all released
    configurations have.
    """
    return _copy(length=32, num_latents=16, depth=1, batch_size=1024, accumulate=4)


def copy_131072() -> TrainConfig:
    """Published: the copy task over 131,072 tokens; 100 % of the mirrored half right, reported after 25,000 steps.

    Released as `random_mirrored_131072`; all numbers are from there. A step has 4096 rows, one a device and accelerator
    batch; here they are 4096 batches of one row.
    """
    return _copy(length=131_072, num_latents=1024, depth=6, batch_size=4096, accumulate=4096)


def imagenet64() -> TrainConfig:
    """Published: ImageNet at 64 x 64, pixel by pixel; 3.40 bits a dimension reported. Can't be trained yet.

    Released as `imagenet_w_positions`. Positions have three axes (row, column, channel; tables of 66, 66 and 5 rows),
    which token stores don't hold, and image stores are not built: `perceivers train` refuses this preset. Its model can
    be built, and official weights of this shape converted. Its data settings are only the batch size. Reported, and not
    said here: the last 50,000 of the 750,000 steps had a cosine schedule.
    """
    model = PerceiverARConfig(
        max_seq_len=12_416,
        num_latents=1024,
        dim=1024,
        depth=60,
        heads=16,
        cross_heads=16,
        positions=TablePositions(table="random", learned=True, sizes=(66, 66, 5)),
    )
    return _published(model, DataConfig(batch_size=2048), _recipe(), accumulate=2048, max_steps=750_000)


def maestro_symbolic() -> TrainConfig:
    """Published: piano performances of MAESTRO, 4096 events; 1.82 nats an event reported on v1, 1.91 on v3.

    Reported: 4096 inputs, 2048 latents, 12 layers, 1 cross-attend head and 4 heads in the stack, rotary positions on a
    quarter of the channels, prefix dropout 0.7, learning rate 1e-4, a million steps, no augmentation. Inferred: 1024
    channels, the released default (165.6 M parameters; about 164 M are reported). Chosen: 128 rows a step. Adam's first
    decay is 0.9, as released; the paper prints 0.1.
    """
    model = PerceiverARConfig(
        vocab_size=MUSIC_VOCAB,
        max_seq_len=4096,
        num_latents=2048,
        dim=1024,
        depth=12,
        heads=4,
        cross_heads=1,
        positions=RotaryPositions(channel_share=0.25),
        prefix_dropout=0.7,
    )
    return _published(model, DataConfig(batch_size=128), _recipe(lr=1e-4), accumulate=16)


def pg19() -> TrainConfig:
    """Published: books of PG-19 in 32,000 SentencePiece tokens; perplexity 28.9 a word reported on test.

    Reported: 2048 inputs of width 4096, 1024 latents, 60 layers, 128 cross-attend heads, prefix dropout of 0.875 to
    0.96875, about 200,000 steps of 2048 rows. Inferred: 1024 latent channels and 16 heads, the released defaults; with
    them the model has 974.2 M parameters, and 974.6 M are reported. Unsure: which prefix dropout goes with 2048 inputs,
    and the share of rotated channels (released default). Its store is one of ids: `perceivers prepare tokens`.
    """
    model = PerceiverARConfig(
        vocab_size=32_003,
        max_seq_len=2048,
        num_latents=1024,
        dim=1024,
        input_dim=4096,
        depth=60,
        heads=16,
        cross_heads=128,
        positions=RotaryPositions(channel_share=0.5),
        prefix_dropout=0.875,
    )
    return _published(model, DataConfig(batch_size=2048), _recipe(), accumulate=2048, max_steps=200_000)


def _copy(*, length: int, num_latents: int, depth: int, batch_size: int, accumulate: int) -> TrainConfig:
    model = PerceiverARConfig(
        max_seq_len=length,
        num_latents=num_latents,
        dim=1024,
        depth=depth,
        heads=16,
        cross_heads=16,
        positions=TablePositions(table="sinusoidal"),
    )
    optim = _recipe(schedule="cosine", warmup_steps=1000, decay_steps=1_000_000)
    return _published(model, CopyConfig(length=length, batch_size=batch_size), optim, accumulate=accumulate)


def _recipe(**changes) -> OptimConfig:
    """What all released configurations share: Adam, 3e-4 after 10,000 steps, summed loss, clipping at norm 1."""
    return OptimConfig(**{"lr": 3e-4, "warmup_steps": 10_000, "reduction": "sum", **changes})


def _published(
    model: PerceiverARConfig,
    data: DataConfig | CopyConfig,
    optim: OptimConfig,
    *,
    accumulate: int,
    max_steps: int = 1_000_000,
) -> TrainConfig:
    """A step of `data.batch_size` rows in `accumulate` batches; float32, as released."""
    return TrainConfig(
        model=model,
        data=replace(data, batch_size=data.batch_size // accumulate),
        optim=optim,
        max_steps=max_steps,
        accumulate=accumulate,
        precision="float32",
    )
