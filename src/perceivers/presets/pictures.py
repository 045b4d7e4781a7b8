"""Settings for pictures: Perceiver, Perceiver IO and Hierarchical Perceiver, small enough for two cores."""

from dataclasses import replace

from perceivers.data.picture_config import PictureConfig, WarpConfig
from perceivers.models.feature_config import PatchFeatures, PixelFeatures
from perceivers.models.hip_config import DataSet, HiPConfig, Modality
from perceivers.models.input_config import FourierPositions, InputConfig, LearnedPositions
from perceivers.models.output_config import AverageOutputConfig, InputQueries, PatchHead, QueryOutputConfig
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig
from perceivers.train.config import CrossEntropy, EndPointError, OptimConfig, Reconstruction, TrainConfig


def mnist() -> TrainConfig:
    """Handwritten digits from raw pixels: a Perceiver that reads all 784 of them three times."""
    return TrainConfig(
        model=_digits(FourierPositions(bands=6)),
        data=PictureConfig(batch_size=64, shift=1),
        objective=CrossEntropy(z_loss=0.0),
        optim=_optim(lr=3e-3),
        max_steps=1_000_000,
        max_minutes=40.0,
        eval_every=2000,
        eval_tokens=5000,
        save_every=2000,
    )


def mnist_permuted() -> TrainConfig:
    """Handwritten digits whose pixels stand in one random order: the model learns where they belong."""
    plain = mnist()
    assert isinstance(plain.data, PictureConfig)
    return replace(
        plain,
        model=_digits(LearnedPositions(channels=31, init_std=1.0)),
        data=replace(plain.data, permutation=0),  # digits are moved before their pixels are mixed
    )


def _digits(positions: FourierPositions | LearnedPositions) -> PerceiverIOConfig:
    return PerceiverIOConfig(
        input=InputConfig(features=PixelFeatures(shape=(28, 28, 1)), positions=positions),
        encoder=EncoderConfig(
            num_latents=16,
            dim=96,
            blocks=3,
            depth=1,
            block_sharing="none",
            cross_attends=3,
            cross_sharing="all",
            heads=4,
            widening=2,
            cross_widening=2,
        ),
        output=AverageOutputConfig(classes=10),
    )


def _optim(*, lr: float) -> OptimConfig:
    return OptimConfig(
        optimizer="adamw", lr=lr, weight_decay=0.02, betas=(0.9, 0.98), schedule="cosine", warmup_steps=300
    )


def flow_small() -> TrainConfig:
    """Optical flow between photos and their warped copies: Perceiver IO on patches of two grey frames of 64 x 96."""
    shape, patch = (64, 96), 8
    grid = (shape[0] // patch, shape[1] // patch)
    return TrainConfig(
        model=PerceiverIOConfig(
            input=InputConfig(
                # Of coloured patches, or of such that differ in contrast, next to nothing was learned in 150 steps,
                # in which these bring the error down by 40 %.
                features=PatchFeatures(shape=(2, *shape, 1), patch=patch, time_patch=2, normalize=True),
                positions=FourierPositions(bands=4),
            ),
            encoder=EncoderConfig(
                num_latents=96,
                dim=192,
                blocks=1,
                depth=4,
                heads=6,
                cross_heads=6,
                cross_channels="latent",
                widening=2,
                init_std=1.0,
            ),
            output=QueryOutputConfig(
                queries=InputQueries(),
                channels=2 * patch**2,
                head=PatchHead(shape=grid, patch=patch),
                heads=6,
                widening=4,
                query_residual=True,
                zero_channels=True,
            ),
        ),
        data=WarpConfig(batch_size=16, shape=shape, mean=2.0, spacing=32),
        objective=EndPointError(),
        optim=_optim(lr=1e-3),
        max_steps=1_000_000,
        max_minutes=20.0,
        eval_every=1000,
        save_every=1000,
    )


def fashion_mae() -> TrainConfig:
    """Hidden pixels of clothes: a Hierarchical Perceiver learns where pixels belong, before it classifies.

    So few pixels are one group. In two, each group's latents made up a code of their own for rows and columns.
    """
    return TrainConfig(
        model=HiPConfig(
            data_sets=(
                DataSet(
                    name="pictures",
                    modalities=(
                        Modality(name="image", positions=784, channels=1),
                        Modality(name="label", positions=1, channels=10),
                    ),
                ),
            ),
            label_modalities=("label",),
            groups=(1, 1, 1),
            latents=(32, 16, 32),
            dims=(64, 96, 64),
            depths=(1, 2, 1),
            heads=(2, 4, 2),
            cross_heads=(4, 1, 4),
            widening=(2, 2, 2),
            embed_dim=32,
            embed_scale=0.02,
        ),
        data=PictureConfig(batch_size=32, shift=6, hidden=0.75),
        objective=Reconstruction(),
        optim=_optim(lr=2e-3),
        max_steps=1_000_000,
        max_minutes=18.0,
        eval_every=1000,
        eval_tokens=2000,
        save_every=1000,
    )


def fashion_classes() -> TrainConfig:
    """Kinds of clothes, with the model of `fashion_mae`: start from its weights with --init.

    So narrow a model takes 126 ms a step in float32 and 166 with bfloat16 (compiled, one thread).
    """
    return replace(
        fashion_mae(),
        data=PictureConfig(batch_size=64, flip=True),
        objective=CrossEntropy(z_loss=0.0),
        optim=_optim(lr=1e-3),
        max_minutes=42.0,
        precision="float32",
        eval_tokens=5000,
    )
