"""Goodput: of the tokens that a run could have trained on in the time it held its nodes, the share that counts.

    goodput = tokens of the steps that count / (tokens per second of a step x seconds with nodes)

The pace is the median over the steps that count; time in the queue is left out. What is lost goes to: the start of
each job (imports, model, checkpoint, first rendezvous), steps that were done again after a kill, and the rest
(evaluation, waiting for checkpoints, endings, steps slower than the median).
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.status.starts import Start


@dataclass(frozen=True, slots=True)
class Goodput:
    """The share, and where the rest of `wall_seconds` went, in seconds."""

    goodput: float
    wall_seconds: float
    startup_seconds: float
    repeated_seconds: float
    other_seconds: float
    useful_tokens: int
    repeated_steps: int
    num_starts: int


def measure_goodput(
    starts: Sequence[Start], metrics: Sequence[dict[str, Any]], *, kept_step: int, last_sign: float
) -> Goodput | None:
    """Return a run's goodput; None before its first step.

    kept_step: the last step that counts: of a run that has died that of its newest checkpoint. last_sign: when the
    last start ended, or now if it goes on (seconds since the epoch). Of steps that were not logged the mean of the
    others is taken.
    """
    rows = [row for row in metrics if row["step"] <= kept_step and row.get("speed/tokens_per_second")]
    spans = _spans(starts, last_sign)
    wall = sum(end - begin for begin, end in spans)
    if not rows or wall <= 0:
        return None
    pace = statistics.median(row["speed/tokens_per_second"] for row in rows)
    tokens_per_step = statistics.mean(
        row["speed/tokens_per_second"] * row["time/step_seconds"] for row in rows
    )
    useful = tokens_per_step * kept_step
    repeated = _repeated_steps(starts)
    startup = sum(
        min(end, _first_training(start, end)) - begin
        for start, (begin, end) in zip(starts, spans, strict=True)
    )
    repeated_seconds = repeated * tokens_per_step / pace
    return Goodput(
        goodput=useful / (pace * wall),
        wall_seconds=wall,
        startup_seconds=startup,
        repeated_seconds=repeated_seconds,
        other_seconds=wall - startup - repeated_seconds - useful / pace,
        useful_tokens=round(useful),
        repeated_steps=repeated,
        num_starts=len(starts),
    )


def _spans(starts: Sequence[Start], last_sign: float) -> list[tuple[float, float]]:
    """Return (begin, end) of each start; one that was cut off ended at its last sign of life."""
    signs = [start.events[0].get("last_sign") for start in starts[1:]] + [last_sign]
    spans = []
    for start, sign in zip(starts, signs, strict=True):
        # A sign older than the start's own events is of the start before: this one was cut off early.
        end = start.end or max(sign or 0.0, start.last_event)
        spans.append((start.begin, end))
    return spans


def _first_training(start: Start, end: float) -> float:
    training = start.all("training")
    return float(training[0]["time"]) if training else end


def _repeated_steps(starts: Sequence[Start]) -> int:
    """Return how many steps were done again: those between a checkpoint and where the start before had come to."""
    events = [event for start in starts for event in start.all("training")]
    return sum(max(0, event.get("reached", 0) - event["step"]) for event in events)
