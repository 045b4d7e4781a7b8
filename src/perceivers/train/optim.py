"""Optimiser, learning-rate schedule and clipping."""

import math

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from perceivers.train.config import WARMUP_SHARE, OptimConfig
from perceivers.train.parallel import local


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Adam (epsilon outside the root, bias correction) or AdamW over all parameters of `model`."""
    settings = {"lr": config.lr, "betas": config.betas, "eps": config.eps, "fused": True}
    if config.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), **settings)
    decayed = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    others = [p for p in model.parameters() if all(p is not weight for weight in decayed)]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, **settings)


def warmed_up(config: OptimConfig, step: int, *, done: float | None = None) -> float:
    """How much of the warm-up is over before update `step`: 1 or more is all of it.

    Args:
        config: Schedule.
        step: Updates done before this one.
        done: Share of the run that is over, where a clock ends it.
    """
    by_step = step / config.warmup_steps if config.warmup_steps else 1.0
    return by_step if done is None else max(by_step, done / WARMUP_SHARE)


def learning_rate(config: OptimConfig, step: int, *, decay_steps: int, done: float | None = None) -> float:
    """Learning rate of update `step`, counted from 0.

    After a linear warm-up from `warmup_lr` the schedule counts its own steps from 0. Where a clock ends the run, the
    share of the run that is over takes the place of steps: in warm-up, and in schedules that last to the end.

    Args:
        config: Schedule.
        step: Updates done before this one.
        decay_steps: Steps after warm-up that the schedule lasts.
        done: Share of the run that is over, where a clock ends it.

    Source: `_get_lr_schedule` of the official experiment.py. As in the reference: steps fall at `int(share * steps)`,
    and shares that fall on one step count once. Differs from the reference: `rsqrt` without warm-up is as with one step
    of it, where the official rate is not a number, and then 0.
    """
    warmup = config.warmup_steps
    if (warmed := warmed_up(config, step, done=done)) < 1:
        return config.warmup_lr + (config.lr - config.warmup_lr) * warmed
    after = max(step - warmup, 0)
    decay_step = after if done is None or config.decay_steps is not None else done * decay_steps
    match config.schedule:
        case "constant":
            return config.lr
        case "cosine":
            share = min(decay_step / decay_steps, 1.0)
            return config.end_lr + (config.lr - config.end_lr) * (1 + math.cos(math.pi * share)) / 2
        case "steps":
            boundaries = {int(share * decay_steps) for share in config.decay_at}
            return config.lr * config.decay_factor ** sum(decay_step >= boundary for boundary in boundaries)
        case "rsqrt":
            return config.lr * math.sqrt(max(warmup, 1) / (after + max(warmup, 1)))


def clip_gradients(model: nn.Module, max_norm: float) -> torch.Tensor:
    """Scale gradients down to a global norm of `max_norm` (0: never) and return the norm before.

    Differs from `torch.nn.utils.clip_grad_norm_`, as in the reference: no 1e-6 is added to the norm.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    if max_norm > 0:
        scale = (max_norm / norm).clamp(max=1.0)
        torch._foreach_mul_([local(gradient) for gradient in gradients], scale)  # pyright: ignore[reportPrivateImportUsage]
    return norm
