"""How the dynamic loss scale moves, and that a checkpoint keeps it."""

from types import SimpleNamespace

from training.loss_scale import FIRST, GROWS_AFTER, LEAST, LossScale


def test_it_is_halved_by_an_overflow_and_doubled_after_many_steps_without() -> None:
    scale, optimizer = LossScale.of("dynamic"), SimpleNamespace(loss_scale=FIRST)
    assert scale.settle(optimizer, overflowed=True)
    assert optimizer.loss_scale == scale.scale == FIRST / 2
    for _ in range(GROWS_AFTER - 1):
        assert not scale.settle(optimizer, overflowed=False)
    assert optimizer.loss_scale == FIRST / 2
    assert not scale.settle(optimizer, overflowed=False)
    assert optimizer.loss_scale == FIRST


def test_an_overflow_at_the_least_scale_is_not_laid_to_the_scale() -> None:
    scale, optimizer = LossScale(LEAST, dynamic=True), SimpleNamespace(loss_scale=LEAST)
    assert not scale.settle(optimizer, overflowed=True)
    assert optimizer.loss_scale == LEAST


def test_a_constant_stays_whatever_happens() -> None:
    scale, optimizer = LossScale.of(1024.0), SimpleNamespace(loss_scale=1024.0)
    assert not scale.settle(optimizer, overflowed=True)
    assert optimizer.loss_scale == scale.scale == 1024.0
    assert scale.state() == {}


def test_a_checkpoint_keeps_it() -> None:
    scale, optimizer = LossScale.of("dynamic"), SimpleNamespace(loss_scale=FIRST)
    scale.settle(optimizer, overflowed=True)
    scale.settle(optimizer, overflowed=False)
    resumed, other = LossScale.of("dynamic"), SimpleNamespace(loss_scale=FIRST)
    resumed.restore(scale.state(), other)
    assert (resumed, other.loss_scale) == (scale, FIRST / 2)
