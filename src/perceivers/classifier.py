"""A Perceiver for people with arrays: fit and predict, as scikit-learn's estimators do.

    from perceivers import PerceiverClassifier

    classifier = PerceiverClassifier(max_steps=2000).fit(X, y)
    classifier.predict(X)

Needs the extra `sklearn`.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped

from perceivers.data.picture_config import PictureConfig
from perceivers.data.picture_loader import picture_batches
from perceivers.data.picture_store import PictureSplit, PictureStore
from perceivers.evaluate.pictures import class_logits
from perceivers.models.feature_config import PixelFeatures
from perceivers.models.input_config import FourierPositions, InputConfig, LearnedPositions
from perceivers.models.output_config import AverageOutputConfig
from perceivers.models.perceiver_config import EncoderConfig, PerceiverIOConfig
from perceivers.train.config import CrossEntropy, OptimConfig, TrainConfig
from perceivers.train.loop import train

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("PerceiverClassifier needs scikit-learn: pip install 'perceivers[sklearn]'") from error


class PerceiverClassifier(ClassifierMixin, BaseEstimator):
    """A Perceiver that names the class of a row of features, or of a picture.

    Every feature (or pixel) is a token with its place; a few latents read them all. Values are standardised first:
    features one by one, pictures by one mean and deviation.

    Args:
        num_latents: Latents.
        dim: Channels of a latent, a multiple of 4.
        blocks: How often latents read the input, each time followed by `depth` self-attention layers.
        depth: Layers of a block.
        max_steps: Updates.
        batch_size: Samples an update.
        lr: Learning rate, which falls to 0 along a cosine.
        random_state: Seed of weights and order; None for another one each time. Global generators stay as they are.
        device: cpu, cuda, mps, or auto.
        progress: Show a bar with ETA.

    Attributes:
        classes_: The labels that were seen.
        model_: The trained module.
    """

    def __init__(
        self,
        *,
        num_latents: int = 16,
        dim: int = 64,
        blocks: int = 2,
        depth: int = 1,
        max_steps: int = 1000,
        batch_size: int = 64,
        lr: float = 2e-3,
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
        progress: bool = False,
    ) -> None:
        self.num_latents = num_latents
        self.dim = dim
        self.blocks = blocks
        self.depth = depth
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.lr = lr
        self.random_state = random_state
        self.device = device
        self.progress = progress

    def fit(self, X: Any, y: Any) -> "PerceiverClassifier":
        """Learn from samples.

        Args:
            X: Numbers [samples, features], or pictures [samples, rows, columns] or [samples, rows, columns, channels].
            y: A label a sample, of any kind.

        Raises:
            ValueError: NaNs, lengths that differ, labels that are no classes.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, allow_nd=True)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        axes = 0 if X.ndim == 2 else None
        self.mean_ = X.mean(axes)
        self.scale_ = np.where(X.max(axes) > X.min(axes), X.std(axes), 1.0)  # rounding alone is no deviation
        pixels = self._pixels(X)
        names = [str(name) for name in self.classes_]
        store = PictureStore.in_memory({"train": (pixels, labels.astype(np.int64))}, classes=names)
        chooser = np.random.RandomState() if self.random_state is None else check_random_state(self.random_state)
        seed = int(chooser.randint(2**31))
        config = self._config(pixels.shape[1:], seed)
        with TemporaryDirectory() as out:
            self.model_ = train(config, Path(out), store=store, progress=self.progress).model.eval()
        return self

    def predict_proba(self, X: Any) -> Float[np.ndarray, "samples classes"]:
        """Probability of each of `classes_`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, allow_nd=True, reset=False)
        split = PictureSplit("new", self._pixels(X), None)
        device = next(self.model_.parameters()).device
        with torch.no_grad():
            parts = [
                class_logits(self.model_, batch.to(device).pixels).double().softmax(-1).cpu().numpy()
                for batch in picture_batches(split, PictureConfig(batch_size=self.batch_size))
            ]
        return np.concatenate(parts)

    def predict(self, X: Any) -> Shaped[np.ndarray, " samples"]:
        """The most likely of `classes_`."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(1)]

    def _pixels(self, X: Float[np.ndarray, "samples *shape"]) -> Float[np.ndarray, "samples rows columns channels"]:
        """Standardised, and narrowed only then; features are pictures of one row."""
        X = ((X - self.mean_) / self.scale_).astype(np.float32)
        if X.ndim == 2:
            return X[:, None, :, None]
        return X[..., None] if X.ndim == 3 else X

    def _config(self, shape: tuple[int, ...], seed: int) -> TrainConfig:
        rows, columns, channels = shape
        positions = (
            LearnedPositions(channels=32 - channels % 2, init_std=1.0) if rows == 1 else FourierPositions(bands=6)
        )
        model = PerceiverIOConfig(
            input=InputConfig(features=PixelFeatures(shape=(rows, columns, channels)), positions=positions),
            encoder=EncoderConfig(
                num_latents=self.num_latents,
                dim=self.dim,
                blocks=self.blocks,
                depth=self.depth,
                block_sharing="none",
                cross_attends=self.blocks,
                cross_sharing="all",
                heads=4,
                widening=2,
                cross_widening=2,
            ),
            output=AverageOutputConfig(classes=len(self.classes_)),
        )
        optim = OptimConfig(lr=self.lr, schedule="cosine", warmup_steps=min(50, self.max_steps // 10))
        return TrainConfig(
            model=model,
            data=PictureConfig(batch_size=self.batch_size),
            objective=CrossEntropy(z_loss=0.0),
            optim=optim,
            max_steps=self.max_steps,
            save_every=self.max_steps,
            precision="float32",
            device=self.device,
            seed=seed,
        )
