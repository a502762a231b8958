"""How often the gradient is clipped, and how often the loss jumps: running figures over the steps of a run.

They are kept in the checkpoint, so that a run that was killed shows the same numbers as one that was not.
"""

import math
from dataclasses import dataclass

# Steps that the running figures look back on; a step's weight falls by 1/e over as many.
HORIZON = 100
# A spike is this many standard deviations above the mean of the steps before it, once there are enough of them.
SPIKE_DEVIATIONS = 5.0
STEPS_BEFORE_SPIKES = 20


@dataclass(frozen=True, slots=True)
class Trend:
    """Running figures of a run's applied steps.

    steps: how many there were. clip_share: of the steps whose gradient was longer than `optim.clip`. loss_mean,
    loss_variance: of the loss. loss_spikes: how many steps had a loss far above those before them, in all.
    """

    steps: int = 0
    clip_share: float = 0.0
    loss_mean: float = 0.0
    loss_variance: float = 0.0
    loss_spikes: int = 0

    def after(self, *, loss: float, grad_norm: float, clip: float | None) -> "Trend":
        """Return the figures after one more applied step.

        Each is the plain mean over the first HORIZON steps, an exponential one from there on.
        """
        steps = self.steps + 1
        weight = 1 / min(steps, HORIZON)
        distance = loss - self.loss_mean
        spiked = self.steps >= STEPS_BEFORE_SPIKES and distance > SPIKE_DEVIATIONS * math.sqrt(
            self.loss_variance
        )
        clipped = clip is not None and grad_norm > clip
        return Trend(
            steps=steps,
            clip_share=self.clip_share + weight * (clipped - self.clip_share),
            loss_mean=self.loss_mean + weight * distance,
            loss_variance=(1 - weight) * (self.loss_variance + weight * distance**2),
            loss_spikes=self.loss_spikes + spiked,
        )

    def metrics(self, clip: float | None) -> dict[str, float]:
        """Return what is logged of it; a run without clipping has no share of clipped steps."""
        spikes: dict[str, float] = {"health/loss_spikes": self.loss_spikes}
        return spikes if clip is None else {"health/clip_share": self.clip_share} | spikes
