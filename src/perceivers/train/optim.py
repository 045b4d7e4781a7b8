"""Optimiser, learning-rate schedule and clipping."""

import math

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from perceivers.train.config import OptimConfig
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


def learning_rate(config: OptimConfig, step: int, *, decay_steps: int, decayed: float | None = None) -> float:
    """Learning rate of update `step`, counted from 0.

    After a linear warm-up from 0 the schedule counts its own steps from 0.

    Args:
        config: Schedule.
        step: Updates done before this one.
        decay_steps: Steps after warm-up that the schedule lasts.
        decayed: Share of them that is over, where a clock decides it in place of the step.

    Source: `get_learning_rate_schedule` of the official experiment.py; as in the reference, `rsqrt` needs no warm-up of
    its own and steps fall at 50, 80 and 95 % by a factor of 10.
    """
    warmup = config.warmup_steps
    if step < warmup:
        return config.lr * step / warmup
    after = step - warmup
    decay_step = after if decayed is None else decayed * decay_steps
    match config.schedule:
        case "constant":
            return config.lr
        case "cosine":
            share = min(decay_step / decay_steps, 1.0)
            return config.end_lr + (config.lr - config.end_lr) * (1 + math.cos(math.pi * share)) / 2
        case "steps":
            boundaries = [int(part * decay_steps) for part in (0.5, 0.8, 0.95)]
            return config.lr * 0.1 ** sum(decay_step >= boundary for boundary in boundaries)
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
