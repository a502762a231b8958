"""Learning rate as a function of the step, and which parameters decay."""

import math
from typing import Any

from torch import nn

from training.config import OptimConfig


def learning_rate(optim: OptimConfig, *, step: int, num_steps: int) -> float:
    """Return the learning rate of step `step`, counted from 1, of a run of `num_steps`.

    Warms up linearly to `lr` (reached at the last warm-up step), then follows the schedule down to
    lr x min_lr_ratio at the last step. Example: lr 1, 2 warm-up steps of 4, linear: 0.5, 1, 0.5, 0.
    """
    warmup = num_warmup_steps(optim, num_steps=num_steps)
    if step <= warmup:
        return optim.lr * step / warmup
    if optim.schedule == "constant":
        return optim.lr
    progress = (step - warmup) / max(1, num_steps - warmup)
    remaining = 1 - progress if optim.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return optim.lr * (optim.min_lr_ratio + (1 - optim.min_lr_ratio) * remaining)


def num_warmup_steps(optim: OptimConfig, *, num_steps: int) -> int:
    """Return the warm-up in steps; a `warmup` below 1 is a share of all steps."""
    return round(optim.warmup * num_steps) if optim.warmup < 1 else round(optim.warmup)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trainable parameters as groups with and without weight decay.

    Norm weights and biases (one-dimensional) do not decay. Shapes are read from `ds_shape` where ZeRO-3 has
    partitioned a parameter, for then its own shape is empty.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for parameter in trainable:
        groups[len(getattr(parameter, "ds_shape", parameter.shape)) < 2].append(parameter)
    return [
        {"params": params, "weight_decay": decay}
        for params, decay in zip(groups, (weight_decay, 0.0), strict=True)
        if params
    ]
