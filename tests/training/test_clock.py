"""The clock of a step."""

import time

import pytest

from training.clock import Clock


def test_parts_add_up_and_are_less_than_the_whole() -> None:
    clock = Clock()
    for name in ("forward", "backward", "forward"):
        with clock.part(name):
            time.sleep(0.01)
    time.sleep(0.01)
    found = clock.metrics()
    assert found.keys() == {"time/step_seconds", "time/forward_seconds", "time/backward_seconds"}
    assert found["time/forward_seconds"] >= 0.02
    assert found["time/backward_seconds"] >= 0.01
    parts = found["time/forward_seconds"] + found["time/backward_seconds"]
    assert found["time/step_seconds"] >= parts + 0.01
    assert clock.metrics()["time/forward_seconds"] == pytest.approx(found["time/forward_seconds"])
