"""Small settings for models of sequences: music, text and the copy task."""

from perceivers.data.config import CopyConfig, DataConfig
from perceivers.models.ecp_config import ECPConfig
from perceivers.models.perceiver_ar_config import PerceiverARConfig, RotaryPositions, TablePositions
from perceivers.train.config import OptimConfig, TrainConfig

MUSIC_VOCAB, BYTES_VOCAB = 391, 259
"""388 performance events or 256 bytes, and PAD, EOS, SOS."""


def bach_demo() -> TrainConfig:
    """Bach's chorales in minutes on two cores: 768 events of context, more than most chorales have."""
    return TrainConfig(
        model=PerceiverARConfig(
            vocab_size=MUSIC_VOCAB,
            max_seq_len=768,
            num_latents=256,
            dim=256,
            depth=4,
            heads=4,
            cross_heads=4,
            positions=RotaryPositions(channel_share=0.5),
            dropout=0.1,
        ),
        data=DataConfig(batch_size=4, crop="uniform", transpose=6),
        optim=OptimConfig(lr=1.2e-3, betas=(0.9, 0.99), schedule="cosine", warmup_steps=100),
        max_steps=20_000,
        max_minutes=7.5,
        eval_every=300,
        eval_tokens=6000,
        save_every=1000,
    )


def music_small() -> TrainConfig:
    """Piano performances in an hour on two cores: 2048 events of context, half a minute to a minute."""
    return TrainConfig(
        model=PerceiverARConfig(
            vocab_size=MUSIC_VOCAB,
            max_seq_len=2048,
            num_latents=512,
            dim=256,
            depth=5,
            heads=4,
            cross_heads=4,
            positions=RotaryPositions(channel_share=0.5),
            dropout=0.05,
            prefix_dropout=0.25,
        ),
        data=DataConfig(batch_size=4, crop="uniform", transpose=3, stretch=(0.95, 0.975, 1.0, 1.025, 1.05)),
        optim=OptimConfig(lr=1.2e-3, betas=(0.9, 0.99), schedule="cosine", warmup_steps=200),
        max_steps=100_000,
        max_minutes=60.0,
        eval_every=500,
        eval_tokens=16_384,
    )


def copy_4096() -> TrainConfig:
    """The copy task over 4096 tokens, in half an hour: remember 2047 random bytes and say them backwards.

    Sequences grow from 32 tokens outwards from a fixed centre; started at full length, training stays at chance.
    """
    return TrainConfig(
        model=PerceiverARConfig(
            vocab_size=BYTES_VOCAB,
            max_seq_len=4096,
            num_latents=512,
            dim=128,
            depth=1,
            heads=4,
            cross_heads=4,
            widening=1,
            cross_widening=1,
            positions=TablePositions(table="sinusoidal"),
            dropout=0.0,
        ),
        data=CopyConfig(length=4096, batch_size=1, min_mirrored=512, start_length=32, growth_steps=4000),
        optim=OptimConfig(lr=2e-3, schedule="cosine", warmup_steps=50),
        max_steps=100_000,
        max_minutes=30.0,
        eval_every=500,
        eval_tokens=16_384,
    )


def copy_tiny() -> TrainConfig:
    """The copy task over 32 tokens: 99.98 % right after 40 seconds on one core."""
    return TrainConfig(
        model=PerceiverARConfig(
            vocab_size=BYTES_VOCAB,
            max_seq_len=32,
            num_latents=16,
            dim=128,
            depth=1,
            heads=4,
            cross_heads=4,
            positions=TablePositions(table="sinusoidal"),
            dropout=0.0,
        ),
        data=CopyConfig(length=32, batch_size=64, min_mirrored=16),
        optim=OptimConfig(lr=2e-3, schedule="cosine", warmup_steps=50),
        max_steps=500,
        eval_every=100,
        eval_tokens=8192,
    )


def text_small() -> TrainConfig:
    """Text as bytes: 4096 of them, about 700 English words, as context."""
    return TrainConfig(
        model=PerceiverARConfig(
            vocab_size=BYTES_VOCAB,
            max_seq_len=4096,
            num_latents=1024,
            dim=320,
            depth=8,
            heads=5,
            cross_heads=5,
            positions=RotaryPositions(channel_share=0.5),
            dropout=0.1,
        ),
        data=DataConfig(batch_size=8, crop="uniform"),
        optim=OptimConfig(optimizer="adamw", lr=6e-4, weight_decay=0.01, schedule="cosine", warmup_steps=500),
        max_steps=20_000,
        sample_every=2000,
    )


def bytes_ecp() -> TrainConfig:
    """Text as bytes with ECP: each of 2048 reads its segment of 256 and the one before, in every layer."""
    return _bytes(
        ECPConfig(vocab_size=BYTES_VOCAB, max_seq_len=2048, segment_len=256, dim=192, depth=10, heads=3, dropout=0.05)
    )


def bytes_perceiver_ar() -> TrainConfig:
    """As bytes_ecp and equally large, with Perceiver AR: 512 latents read 2048 bytes once."""
    return _bytes(_bytes_ar(num_latents=512, depth=9))


def bytes_decoder() -> TrainConfig:
    """As bytes_ecp and equally large, with a plain decoder: each of 2048 bytes reads all before it."""
    return _bytes(_bytes_ar(num_latents=2048, depth=10, initial_cross_attend=False))


def _bytes_ar(*, num_latents: int, depth: int, initial_cross_attend: bool = True) -> PerceiverARConfig:
    return PerceiverARConfig(
        vocab_size=BYTES_VOCAB,
        max_seq_len=2048,
        num_latents=num_latents,
        initial_cross_attend=initial_cross_attend,
        dim=192,
        depth=depth,
        heads=3,
        cross_heads=3,
        positions=RotaryPositions(channel_share=0.5),
        activation="gelu",
        dropout=0.05,
    )


def _bytes(model: PerceiverARConfig | ECPConfig) -> TrainConfig:
    """What three models of one size have in common."""
    return TrainConfig(
        model=model,
        data=DataConfig(batch_size=2, crop="uniform"),
        optim=OptimConfig(lr=2e-3, betas=(0.9, 0.99), schedule="cosine", warmup_steps=200),
        max_steps=100_000,
        max_minutes=30.0,
        eval_every=500,
    )


def bytes_1b() -> TrainConfig:
    """A billion parameters on 131,072 bytes, for a cluster: `perceivers show bytes_1b --gpus 8` says what it takes.

    No run of it is on record. 512 rows an update are 2.1 M predicted bytes.
    """
    return TrainConfig(
        model=PerceiverARConfig(
            vocab_size=BYTES_VOCAB,
            max_seq_len=131_072,
            num_latents=4096,
            dim=2048,
            depth=20,
            heads=16,
            cross_heads=16,
            positions=RotaryPositions(channel_share=0.5),
            dropout=0.0,
        ),
        data=DataConfig(batch_size=512, crop="uniform"),
        optim=OptimConfig(lr=2e-4, betas=(0.9, 0.95), schedule="cosine", warmup_steps=2000),
        max_steps=100_000,
    )
