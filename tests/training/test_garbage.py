"""The garbage collector is held, and started at the steps that are meant."""

import gc
import weakref

import pytest

from training.garbage import COLLECT_EVERY_STEPS, collect_at, held_collector


class Knot:
    """An object that refers to itself: only the collector frees it."""

    def __init__(self) -> None:
        self.self = self


def test_nothing_is_collected_before_its_step() -> None:
    with held_collector():
        assert not gc.isenabled()
        gone = weakref.ref(Knot())
        for step in range(1, COLLECT_EVERY_STEPS):
            collect_at(step)
        assert gone() is not None
        collect_at(COLLECT_EVERY_STEPS)
        assert gone() is None
    assert gc.isenabled()


def test_after_an_error_the_collector_works_again_on_all_there_is() -> None:
    with pytest.raises(ArithmeticError), held_collector():
        raise ArithmeticError
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
