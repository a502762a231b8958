"""Twin-Flow (`offload_optimizer.ratio` below 1): a share of the optimizer's sub-groups stays on the GPU.

DeepSpeed 0.19.8 updates them by a second AdamW of torch's, with moments and a learning rate of its own.
"""

from typing import Any

import torch


def updater(optimizer: Any, index: int) -> torch.optim.Optimizer:
    """Return the optimizer that updates a sub-group, and holds its moments."""
    twin = _twin(optimizer)
    found = optimizer.optimizer if twin is None or optimizer.subgroup_to_device[index] == "cpu" else twin
    assert isinstance(found, torch.optim.Optimizer)
    return found


def copy_rates(optimizer: Any) -> None:
    """Give the GPU's share the learning rates of the other; DeepSpeed leaves its first group's as it began."""
    twin = _twin(optimizer)
    if twin is not None:
        for group, own in zip(optimizer.param_groups, twin.param_groups, strict=True):
            own["lr"] = group["lr"]


def _twin(optimizer: Any) -> Any:
    return getattr(optimizer, "backup_optimizer", None)
