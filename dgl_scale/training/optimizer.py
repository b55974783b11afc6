"""Parameter groups and the learning-rate schedule of the published runs (docs/recipes.md)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dgl_scale.config import OptimConfig


def learning_rate(step: int, total_steps: int, config: OptimConfig) -> float:
    """Learning rate of optimizer step `step` (from 0): linear warm-up, then cosine to `min_lr`."""
    warmup = math.ceil(config.warmup_fraction * total_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if total_steps <= warmup + 1:
        return config.lr
    progress = (step - warmup) / (total_steps - 1 - warmup)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def parameter_groups(parameters: Sequence[tuple[str, nn.Parameter]], config: OptimConfig) -> list[dict[str, Any]]:
    """Two groups, with and without weight decay; names ending in `bias` get none."""
    decayed = [p for name, p in parameters if not name.endswith("bias")]
    undecayed = [p for name, p in parameters if name.endswith("bias")]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(parameters: Sequence[tuple[str, nn.Parameter]], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trained parameters."""
    return torch.optim.AdamW(parameter_groups(parameters, config), lr=config.lr, betas=config.betas, eps=config.eps)
