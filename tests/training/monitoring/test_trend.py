"""Clipped steps and loss spikes as running figures."""

import json
import statistics
from dataclasses import asdict

import pytest

from training.monitoring.trend import HORIZON, STEPS_BEFORE_SPIKES, Trend


def after(losses: list[float], norms: list[float] | None = None, *, clip: float | None = 1.0) -> Trend:
    trend = Trend()
    for loss, norm in zip(losses, norms or [0.5] * len(losses), strict=True):
        trend = trend.after(loss=loss, grad_norm=norm, clip=clip)
    return trend


def test_in_a_short_run_the_figures_are_plain_means() -> None:
    losses = [3.0, 1.0, 2.0, 5.0]
    trend = after(losses, [0.5, 2.0, 1.0, 3.0])
    assert trend.clip_share == 0.5  # a norm of exactly `clip` is left as it is
    assert trend.loss_mean == pytest.approx(statistics.mean(losses))
    assert trend.loss_variance == pytest.approx(statistics.pvariance(losses))


def test_in_a_long_run_what_was_long_ago_fades() -> None:
    trend = after([1.0] * 600, [2.0] * 100 + [0.5] * 500)
    assert 0 < trend.clip_share < 0.01
    assert after([1.0] * HORIZON, [2.0] * HORIZON).clip_share == pytest.approx(1.0)


def test_a_jump_of_the_loss_is_a_spike_and_its_usual_noise_is_none() -> None:
    noise = [2.0 + 0.1 * (-1) ** step for step in range(60)]
    assert after(noise).loss_spikes == 0
    assert after([*noise, 2.7]).loss_spikes == 1
    assert after([*noise, 1.0]).loss_spikes == 0  # a fall is good news
    assert after([*noise[: STEPS_BEFORE_SPIKES - 1], 9.0]).loss_spikes == 0  # too little is known yet


def test_without_clipping_there_is_no_share_of_clipped_steps() -> None:
    trend = after([1.0], [5.0], clip=None)
    assert trend.metrics(None) == {"health/loss_spikes": 0}
    assert after([1.0], [5.0]).metrics(1.0) == {"health/clip_share": 1.0, "health/loss_spikes": 0}


def test_a_checkpoint_in_between_changes_no_figure() -> None:
    losses, norms = [1 / step for step in range(1, 150)], [step / 70 for step in range(1, 150)]
    kept = Trend(**json.loads(json.dumps(asdict(after(losses[:80], norms[:80])))))
    for loss, norm in zip(losses[80:], norms[80:], strict=True):
        kept = kept.after(loss=loss, grad_norm=norm, clip=1.0)
    assert kept == after(losses, norms)
