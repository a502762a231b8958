"""The arithmetic of speed."""

from types import SimpleNamespace
from typing import Any

import pytest

from training.step import StepResult
from training.throughput import speed

HIDDEN, LAYERS, HEADS = 8, 3, 2


def engine_of(*sizes: tuple[int, bool]) -> Any:
    """Return what `speed` looks at of an engine: a configuration, and weights with their sizes."""
    config = SimpleNamespace(hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS)
    weights = [SimpleNamespace(ds_numel=size, requires_grad=trained) for size, trained in sizes]
    return SimpleNamespace(
        module=SimpleNamespace(hf=SimpleNamespace(config=config), parameters=lambda: weights)
    )


def measure(**named: Any) -> dict[str, float]:
    result = StepResult(
        loss=1.0,
        grad_norm=1.0,
        applied=True,
        rescaled=False,
        num_tokens=100,
        num_squares=1300,
        micro_losses=(),
    )
    clock: Any = SimpleNamespace(seconds=lambda: 2.0)
    return speed(engine_of((1000, True), (500, False)), clock, result, num_targets=40, **named)


def test_a_trained_weight_costs_six_operations_a_token_and_a_frozen_one_four() -> None:
    found = measure()
    assert found["speed/tokens_per_second"] == 50
    assert found["speed/target_tokens_per_second"] == 20
    operations = (6 * 1000 + 4 * 500) * 100 + 6 * LAYERS * HIDDEN * 1300
    assert found["speed/teraflops_per_second"] == pytest.approx(operations / 2 / 1e12)


def test_every_pass_of_adversarial_training_is_work_and_its_tokens_count_once() -> None:
    once, three_times = measure(), measure(num_passes=3)
    assert three_times["speed/teraflops_per_second"] == pytest.approx(3 * once["speed/teraflops_per_second"])
    assert three_times["speed/tokens_per_second"] == once["speed/tokens_per_second"]
