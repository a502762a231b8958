"""The learning rate as a function of the step."""

import pytest
import torch

from training.config import OptimConfig
from training.optim import learning_rate, parameter_groups


def rates(num_steps: int = 4, **keys: object) -> list[float]:
    optim = OptimConfig.model_validate({"lr": 1.0, "warmup": 2, **keys})
    return [
        round(learning_rate(optim, step=step, num_steps=num_steps), 4) for step in range(1, num_steps + 1)
    ]


def test_linear() -> None:
    assert rates(schedule="linear") == [0.5, 1.0, 0.5, 0.0]


def test_cosine_with_a_floor() -> None:
    assert rates(schedule="cosine", min_lr_ratio=0.1) == [0.5, 1.0, 0.55, 0.1]


def test_constant_and_warmup_as_a_share() -> None:
    assert rates(schedule="constant", warmup=0.5) == [0.5, 1.0, 1.0, 1.0]
    assert rates(schedule="constant", warmup=0) == [1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_norms_and_biases_do_not_decay(weight_decay: float) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    groups = parameter_groups(model, weight_decay)
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [
        (1, weight_decay),
        (3, 0.0),
    ]
