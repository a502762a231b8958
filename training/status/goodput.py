"""Goodput: of the tokens that a run could have trained on in the time it held its nodes, the share that counts.

    goodput = tokens of the steps that count / sum over the starts of (tokens per second of a step x seconds with nodes)

A start's pace is the median over its steps that count: a run may go on with other nodes, or another number of them.
Time in the queue is left out. What is lost goes to: the start of each job (imports, model, checkpoint, first
rendezvous), steps that were done again after a kill, and the rest (evaluation, waiting for checkpoints, endings, steps
slower than the median). Each second of these is weighed by its start's pace, so that the shares add up.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.status.starts import Start


@dataclass(frozen=True, slots=True)
class Goodput:
    """The share, and where the rest of `wall_seconds` went, in seconds.

    slow_steps_seconds: that part of `other_seconds` that went to steps slower than the median of their start.
    """

    goodput: float
    wall_seconds: float
    startup_seconds: float
    repeated_seconds: float
    other_seconds: float
    slow_steps_seconds: float
    useful_tokens: int
    repeated_steps: int
    num_starts: int


def measure_goodput(
    starts: Sequence[Start], metrics: Sequence[dict[str, Any]], *, kept_step: int, last_sign: float
) -> Goodput | None:
    """Return a run's goodput; None before its first step, or without its events.

    kept_step: the last step that counts: of a run that has died that of its newest checkpoint. last_sign: when the
    last start ended, or now if it goes on (seconds since the epoch). Of steps that were not logged the mean of the
    others is taken.
    """
    if not starts:  # events.jsonl was removed
        return None
    rows = [row for row in metrics if row["step"] <= kept_step and row.get("speed/tokens_per_second")]
    spans = _spans(starts, last_sign)
    wall = sum(end - begin for begin, end in spans)
    if not rows or wall <= 0:
        return None
    tokens_per_step = statistics.mean(
        row["speed/tokens_per_second"] * row["time/step_seconds"] for row in rows
    )
    firsts = _first_steps(starts, kept_step)
    of_starts = _rows_of_starts(rows, firsts)
    paces = _paces(rows, of_starts)
    startup = possible = 0.0  # in tokens
    for start, (begin, end), pace in zip(starts, spans, paces, strict=True):
        startup += pace * (min(end, _first_training(start, end)) - begin)
        possible += pace * (end - begin)
    slow = sum(
        pace * math.fsum(row["time/step_seconds"] for row in found) - tokens_per_step * len(found)
        for pace, found in zip(paces, of_starts, strict=True)
    )
    slow *= kept_step / len(rows)  # of steps that were not logged too
    repeated_steps = sum(map(_repeated_steps, starts))
    useful, repeated = tokens_per_step * kept_step, tokens_per_step * repeated_steps
    seconds = wall / possible
    return Goodput(
        goodput=useful / possible,
        wall_seconds=wall,
        startup_seconds=startup * seconds,
        repeated_seconds=repeated * seconds,
        other_seconds=(possible - startup - repeated - useful) * seconds,
        slow_steps_seconds=slow * seconds,
        useful_tokens=round(useful),
        repeated_steps=repeated_steps,
        num_starts=len(starts),
    )


def _first_steps(starts: Sequence[Start], kept_step: int) -> list[int]:
    """Return the step that each start went on from; one that came to no step, from where the one after it does."""
    firsts = [kept_step]
    for start in reversed(starts):
        training = start.all("training")
        firsts.append(int(training[0]["step"]) if training else firsts[-1])
    return firsts[:0:-1]


def _rows_of_starts(rows: Sequence[dict[str, Any]], firsts: Sequence[int]) -> list[list[dict[str, Any]]]:
    """Return the steps that count of each start."""
    ends = [*firsts[1:], math.inf]
    return [
        [row for row in rows if first < row["step"] <= end] for first, end in zip(firsts, ends, strict=True)
    ]


def _paces(rows: Sequence[dict[str, Any]], of_starts: Sequence[Sequence[dict[str, Any]]]) -> list[float]:
    """Return the tokens per second of a step in each start; where none of its steps counts, that of all."""
    speeds = [[row["speed/tokens_per_second"] for row in found] for found in of_starts]
    of_all = statistics.median(row["speed/tokens_per_second"] for row in rows)
    return [statistics.median(found) if found else of_all for found in speeds]


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


def _repeated_steps(start: Start) -> int:
    """Return how many steps a start did again: those between its checkpoint and where the start before had come to."""
    return sum(max(0, event.get("reached", 0) - event["step"]) for event in start.all("training"))
