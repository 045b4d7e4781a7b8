"""How a model is trained: frozen dataclasses. Imports no torch."""

from dataclasses import field
from typing import Literal

from perceivers.data.config import CopyConfig, DataConfig
from perceivers.data.masked_config import MaskedTextConfig
from perceivers.data.picture_config import PictureConfig, WarpConfig
from perceivers.models.config import ModelConfig, SequenceConfig
from perceivers.models.perceiver_ar_config import PerceiverARConfig
from perceivers.records import not_negative, record

WARMUP_SHARE = 0.05
"""Most of a run that warm-up takes, where a clock ends it."""


@record
class CrossEntropy:
    """Nats of the right label: of the token after each latent, of each masked token, or of the class."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    z_loss: float = 1e-4
    """Weight of log Z squared, which keeps the logits' normaliser near 1."""
    label_smoothing: float = 0.0
    """Probability spread evenly over the wrong labels."""
    sweep: int = 1
    """Perceiver AR: so many blocks of num_latents tokens, a row's last, predict in one step and share a context."""

    def __post_init__(self) -> None:
        if self.sweep < 1:
            raise ValueError(f"sweep={self.sweep} must be at least 1 block")
        not_negative(self, "z_loss")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing} must lie in [0, 1)")


@record
class EndPointError:
    """Distance, in pixels, between where a pixel goes and where the predicted flow says it does."""

    kind: Literal["end_point_error"] = "end_point_error"


@record
class Reconstruction:
    """Squared error at hidden positions: masked auto-encoding."""

    kind: Literal["reconstruction"] = "reconstruction"


ObjectiveConfig = CrossEntropy | EndPointError | Reconstruction


@record
class OptimConfig:
    """Optimiser, learning rate and clipping."""

    optimizer: Literal["adam", "adamw"] = "adam"
    """Adam as in the paper, or with decoupled weight decay."""
    lr: float = 3e-4
    """Learning rate after warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two moments."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """AdamW only; not on biases, norms and embeddings."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 turns it off."""
    reduction: Literal["mean", "sum"] = "mean"
    """What is differentiated: the loss a token, or, as the official recipe does before clipping, the summed loss."""
    schedule: Literal["constant", "cosine", "steps", "rsqrt"] = "constant"
    """Learning rate after warm-up."""
    warmup_steps: int = 1000
    """Steps of linear warm-up; where a clock ends the run, it takes at most a twentieth of the run."""
    warmup_lr: float = 0.0
    """Where warm-up starts."""
    decay_steps: int | None = None
    """Steps after warm-up that cosine and steps last; None = to the end of the run."""
    decay_at: tuple[float, ...] = (0.5, 0.8, 0.95)
    """Where steps fall, in shares of those steps."""
    decay_factor: float = 0.1
    """What each fall multiplies the rate by."""
    end_lr: float = 0.0
    """Where cosine ends."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr={self.lr} must be positive")
        not_negative(self, "warmup_lr", "decay_factor", "end_lr", "eps", "weight_decay")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas} must lie in [0, 1)")
        if self.optimizer == "adam" and self.weight_decay:
            raise ValueError("weight_decay needs --optim.optimizer adamw")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps={self.warmup_steps} must be 0 (none) or more")
        if self.decay_steps is not None and self.decay_steps < 1:
            raise ValueError(f"decay_steps={self.decay_steps} must be at least 1, or None for the rest of the run")
        if self.max_grad_norm < 0:
            raise ValueError(f"max_grad_norm={self.max_grad_norm} must be 0 (off) or more")


@record
class ParallelConfig:
    """The processes of a run, which torchrun starts: dp x fsdp x cp of them, each with a device of its own."""

    dp: int = 1
    """Copies of the model; each reads rows of its own."""
    fsdp: int = 1
    """Parts in which weights, gradients and moments are cut; each process keeps one, and reads rows of its own."""
    cp: int = 1
    """Parts in which the context of a Perceiver AR is cut; each process reads one, of the same rows."""

    def __post_init__(self) -> None:
        for name in ("dp", "fsdp", "cp"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}={value} must be at least 1 process")

    @property
    def processes(self) -> int:
        """All of them."""
        return self.dp * self.fsdp * self.cp


@record
class TrainConfig:
    """A complete training run."""

    model: ModelConfig
    """The model."""
    data: DataConfig | CopyConfig | MaskedTextConfig | PictureConfig | WarpConfig
    """Batches."""
    objective: ObjectiveConfig = field(default_factory=CrossEntropy)
    """The loss."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser."""
    max_steps: int = 100_000
    """Updates."""
    max_minutes: float | None = None
    """Stop after this much training time; resumed parts count, and neither evaluation, samples nor compiling. Warm-up
    and schedules that last to the end of the run then follow the clock."""
    accumulate: int = 1
    """Batches an update."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of matrix products; auto = bfloat16 where the machine has it in hardware."""
    compile: bool | Literal["auto"] = "auto"
    """Train what torch.compile makes of the model; minutes to start, then faster steps. CPUs need a C++ compiler. auto
    = where it pays within the run, as far as was measured."""
    recompute: bool = False
    """Keep only what enters each layer for the backward pass and compute the rest again: less memory, more time."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Processes that train together."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto."""
    seed: int = 0
    """Weights, data order, dropout."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    eval_every: int = 1000
    """Steps between evaluations on the validation split; 0 = at the end only."""
    eval_tokens: int = 65_536
    """Validation tokens (or pictures) that an evaluation in training scores; the same ones each time."""
    save_every: int = 500
    """Steps between checkpoints."""
    sample_every: int = 0
    """Steps between samples, written to samples/; 0 = none, and several processes write none."""
    sample_tokens: int = 512
    """Tokens of a sample."""

    @property
    def targets(self) -> str:
        """What a run counts: things that get a loss, in the plural."""
        names = {"masked_text": "masked bytes", "pictures": "pictures", "warps": "pixels"}
        hides = isinstance(self.objective, Reconstruction)
        return "hidden numbers" if hides else names.get(self.data.kind, "tokens")

    def __post_init__(self) -> None:
        check_sweep(self.model, self.objective)
        check_parallel(self)
        for name in ("max_steps", "accumulate", "log_every", "save_every", "eval_tokens", "sample_tokens"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        for name in ("eval_every", "sample_every", "seed"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{name}={value} must be 0 or more")
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise ValueError(f"max_minutes={self.max_minutes} must be positive")


def num_targets(model: SequenceConfig, objective: ObjectiveConfig) -> int:
    """Last tokens of a row that predict in a step."""
    return model.num_targets * (objective.sweep if isinstance(objective, CrossEntropy) else 1)


def check_sweep(model: ModelConfig, objective: ObjectiveConfig) -> None:
    """Check that a model has room for the blocks that are to predict."""
    if not isinstance(objective, CrossEntropy) or objective.sweep == 1:
        return
    if not isinstance(model, PerceiverARConfig):
        raise ValueError(f"sweep={objective.sweep} is for Perceiver AR; a model of kind {model.kind!r} has sweep=1")
    if model.prefix_dropout:
        raise ValueError(f"sweep={objective.sweep} shares one context: set prefix_dropout to 0, or sweep to 1")
    if objective.sweep * model.num_latents > model.max_seq_len:
        raise ValueError(
            f"sweep={objective.sweep} blocks x {model.num_latents} latents = {objective.sweep * model.num_latents} "
            f"tokens, but the model reads {model.max_seq_len}: sweep at most {model.max_seq_len // model.num_latents}"
        )


def check_parallel(config: TrainConfig) -> None:
    """Check that a run can be shared as it says."""
    parallel, rows = config.parallel, config.data.batch_size
    if rows % (readers := parallel.dp * parallel.fsdp):
        raise ValueError(
            f"batch_size={rows} rows do not divide among dp={parallel.dp} x fsdp={parallel.fsdp} = {readers} processes"
        )
    if parallel.cp > 1 and not isinstance(config.model, PerceiverARConfig):
        raise ValueError(f"cp={parallel.cp} cuts a Perceiver AR's context; for a {config.model.kind!r} use dp or fsdp")
    if parallel.cp > 1 and isinstance(config.objective, CrossEntropy) and config.objective.sweep > 1:
        raise ValueError(f"sweep={config.objective.sweep} needs the context whole: set cp to 1")
