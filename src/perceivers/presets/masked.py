"""Settings for text with holes: Perceiver IO as a masked language model of bytes."""

from perceivers.data.masked_config import MaskedTextConfig
from perceivers.models.feature_config import TokenFeatures
from perceivers.models.input_config import InputConfig, LearnedPositions
from perceivers.models.output_config import GridQueries, QueryOutputConfig, TiedHead
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig
from perceivers.train.config import CrossEntropy, OptimConfig, TrainConfig


def masked_small() -> TrainConfig:
    """Masked bytes of text, 256 at a time: the published language model made small enough for two cores.

    Its inputs and queries hold the 3 bytes on either side too, through a convolution. Without that, 800 steps taught a
    model of 128 channels how often each byte occurs, and no more.
    """
    positions = LearnedPositions(channels=192, init_std=0.1)
    return TrainConfig(
        model=PerceiverIOConfig(
            input=InputConfig(
                features=TokenFeatures(seq_len=256, dim=192, init_std=0.1, window=7),
                positions=positions,
                combine="add",
            ),
            encoder=EncoderConfig(
                num_latents=128,
                dim=192,
                blocks=1,
                depth=4,
                heads=8,
                cross_heads=8,
                cross_channels="latent",
                widening=2,
                cross_widening=2,
                init_std=1.0,
            ),
            output=QueryOutputConfig(
                queries=GridQueries(shape=(256,), positions=positions, features=True),
                channels=192,
                head=TiedHead(),
                heads=8,
                value_dim=192,
                widening=2,
            ),
        ),
        data=MaskedTextConfig(batch_size=16, unit="bytes"),
        objective=CrossEntropy(z_loss=0.0),
        optim=OptimConfig(
            optimizer="adamw", lr=2e-3, weight_decay=0.01, betas=(0.9, 0.98), schedule="cosine", warmup_steps=300
        ),
        max_steps=1_000_000,
        max_minutes=30.0,
        eval_every=1000,
        eval_tokens=65_536,
        save_every=1000,
    )
