"""Where a run stands, as one value: made of its files, and shown as text or JSON."""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from training.metrics import duration, short
from training.status.facts import STALE_SECONDS, Checkpoint, RunFacts, read_facts
from training.status.goodput import Goodput, measure_goodput
from training.status.queue import QueueEntry, ask_queue
from training.status.starts import BETWEEN, Start
from training.status.why import Why, explain

# Steps whose median tells how long the rest will take.
PACE_STEPS = 50
LABEL_WIDTH = 13


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The last sign of life of a rank: what it was doing, and how long ago."""

    rank: int
    host: str
    step: int | None
    phase: str
    age_seconds: float


@dataclass(frozen=True, slots=True)
class Status:
    """Where a run stands.

    state: not started | waiting | starting | running | done | stopped | failed | stuck | died.
    step: the last one logged. losses: `train` and the splits that were evaluated, each as last measured.
    seconds_left: of training, whether or not it is going on now. restarts: starts beside the first. queue: what Slurm
    says of the last job, nothing once it has gone; None where Slurm is not there or was not asked.
    """

    run_folder: str
    state: str
    why: Why | None
    step: int
    num_steps: int | None
    epoch: float | None
    num_epochs: float | None
    losses: dict[str, float]
    skipped_steps: int
    tokens_per_second: float | None
    seconds_per_step: float | None
    seconds_left: float | None
    last_sign_seconds: float | None
    checkpoint: Checkpoint | None
    restarts: int
    jobs: list[str]
    nodes: str | None
    num_ranks: int | None
    held_by: str | None
    heartbeats: list[Heartbeat]
    goodput: Goodput | None
    queue: list[QueueEntry] | None
    problems: tuple[str, ...]


def read_status(folder: Path) -> Status:
    """Read where a run stands. Raises RunError if the folder is not that of a run."""
    facts = read_facts(folder)
    jobs = list(dict.fromkeys(str(event["job"]) for event in facts.events if event.get("job") is not None))
    over = facts.state in ("done", "failed")
    queue = ask_queue(jobs[-1]) if jobs and not over else None
    if queue == [] and facts.holder is not None and facts.holder.job == jobs[-1]:
        facts = replace(facts, held=False)  # Slurm knows sooner than the heartbeat that the holder has gone
    state = find_state(facts, queue)
    last = facts.metrics[-1] if facts.metrics else {}
    pace = _median_of(facts, "time/step_seconds")
    num_steps = _num_steps(facts)
    step = int(last.get("step", 0))
    start = facts.start
    return Status(
        run_folder=str(folder),
        state=state,
        why=explain(facts, state),
        step=step,
        num_steps=num_steps,
        epoch=last.get("train/epoch"),
        num_epochs=facts.config.epochs if facts.config is not None else None,
        losses=_losses(facts),
        skipped_steps=int(last.get("health/skipped_steps") or 0),
        tokens_per_second=_median_of(facts, "speed/tokens_per_second"),
        seconds_per_step=pace,
        seconds_left=None if pace is None or num_steps is None else pace * max(0, num_steps - step),
        last_sign_seconds=None if facts.last_sign is None else max(0.0, facts.now - facts.last_sign),
        checkpoint=facts.checkpoint,
        restarts=max(0, len(facts.starts) - 1),
        jobs=jobs,
        nodes=start.nodes if start is not None else None,
        num_ranks=start.num_ranks if start is not None else None,
        held_by=str(facts.holder) if facts.held else None,
        heartbeats=_heartbeats(facts),
        goodput=_goodput(facts, state),
        queue=queue,
        problems=facts.problems,
    )


def find_state(facts: RunFacts, queue: Sequence[QueueEntry] | None) -> str:
    """Return the state of a run, as Status has it. queue: what Slurm says of its last job."""
    written, start = facts.state, facts.start
    if facts.events and facts.events[-1]["event"] in BETWEEN and not facts.held and written != "done":
        return "waiting"
    if written is not None:
        return written
    if facts.held:
        return "running" if start is not None and start.last("training") is not None else "starting"
    if start is None and not facts.metrics:
        return "not started"
    if start is not None and _is_coming_up(start, facts.now, queue):
        return "starting"
    # A run that is made ready to go on (train --print, a job that Slurm has refused) has no such file, but its end was
    # recorded.
    for state in ("done", "stopped"):
        if start is not None and start.last(state) is not None:
            return state
    return "failed" if start is not None and start.last("failed") is not None else "died"


def _is_coming_up(start: Start, now: float, queue: Sequence[QueueEntry] | None) -> bool:
    """Return whether a job's ranks are on their way: until they have met, none of them holds the run."""
    if start.job is None or start.end is not None or start.last("training") is not None:
        return False
    if queue is None:
        return now - start.begin < STALE_SECONDS
    return any(entry.state == "RUNNING" for entry in queue)


def _num_steps(facts: RunFacts) -> int | None:
    planned = [event["num_steps"] for event in facts.events if event["event"] == "training"]
    if planned:
        return int(planned[-1])
    return facts.config.steps if facts.config is not None else None


def _median_of(facts: RunFacts, key: str) -> float | None:
    values = [row[key] for row in facts.metrics[-PACE_STEPS:] if row.get(key) is not None]
    return statistics.median(values) if values else None


def _losses(facts: RunFacts) -> dict[str, float]:
    losses: dict[str, float] = {}
    for row in facts.metrics:
        for key, value in row.items():
            if key.count("/") == 1 and key.endswith("/loss") and value is not None:
                losses[key.removesuffix("/loss")] = value
    return losses


def _heartbeats(facts: RunFacts) -> list[Heartbeat]:
    return [
        Heartbeat(
            beat["rank"],
            str(beat.get("host", "")),
            beat.get("step"),
            str(beat.get("phase", "")),
            facts.now - float(beat["time"]),
        )
        for beat in facts.heartbeats
    ]


def _goodput(facts: RunFacts, state: str) -> Goodput | None:
    if not facts.metrics:
        return None
    on = state in ("starting", "running")
    # What was done since the newest checkpoint of a run that has died will be done again.
    saved = facts.checkpoint.step if facts.checkpoint is not None else 0
    kept = facts.metrics[-1]["step"] if on or state == "done" else saved
    last_sign = facts.now if on else facts.last_sign or 0.0
    return measure_goodput(facts.starts, facts.metrics, kept_step=kept, last_sign=last_sign)


def to_json(status: Status) -> str:
    """Return the status as JSON: the fields of Status."""
    return json.dumps(asdict(status), indent=2)


def to_text(status: Status) -> str:
    """Return the status for people: first the state, then a line for each thing that is known."""
    lines = [_headline(status)]
    lines += [f"{label:<{LABEL_WIDTH}}{text}" for label, text in _lines(status)]
    return "\n".join(lines)


def _headline(status: Status) -> str:
    text = f"{status.run_folder}: {status.state}"
    if status.step or status.num_steps:
        text += f", step {status.step}" + (f" of {status.num_steps}" if status.num_steps else "")
    if status.epoch is not None:
        text += f", epoch {status.epoch:.3g}" + (f" of {status.num_epochs:g}" if status.num_epochs else "")
    return text


def _lines(status: Status) -> Iterator[tuple[str, str]]:
    if status.why is not None:
        yield "why", status.why.text
        yield from (("", f"| {line}") for line in status.why.lines)
        yield "what to do", status.why.advice
    elif status.state == "not started":
        yield "what to do", "start it with shardtune submit or shardtune train"
    yield from _waiting(status)
    yield from _training(status)
    if status.checkpoint is not None:
        saved = status.checkpoint
        yield (
            "checkpoint",
            f"{Path(saved.path).name}, {duration(saved.age_seconds)} old, {_size(saved.num_bytes)}",
        )
    elif status.step:
        yield "checkpoint", "none yet"
    yield from _places(status)
    yield from (("damaged", problem) for problem in status.problems)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 1 << 28 else f"{num_bytes / 2**20:.1f} MiB"


def _waiting(status: Status) -> Iterator[tuple[str, str]]:
    for entry in status.queue or ():
        yield "Slurm", str(entry)
    if status.state == "waiting" and not status.queue:
        gone = (
            "is not in Slurm's queue any more; submit it again"
            if status.queue is not None
            else "has been sent"
        )
        yield "Slurm", f"job {status.jobs[-1] if status.jobs else ''} {gone}"


def _training(status: Status) -> Iterator[tuple[str, str]]:
    if status.losses:
        yield "loss", ", ".join(f"{name} {value:.4g}" for name, value in status.losses.items())
    if status.skipped_steps:
        yield "skipped", f"{status.skipped_steps} steps whose loss or gradient was not finite"
    if status.tokens_per_second is not None and status.seconds_per_step is not None:
        yield "speed", f"{short(status.tokens_per_second)} tokens/s, {status.seconds_per_step:.3g} s a step"
    if status.seconds_left:
        yield "left", f"{duration(status.seconds_left)} of training"
    if status.goodput is not None:
        yield "goodput", _goodput_text(status.goodput)


def _goodput_text(goodput: Goodput) -> str:
    wall = max(goodput.wall_seconds, 1e-9)
    lost = (
        f"start-up {goodput.startup_seconds / wall:.1%}",
        f"repeated steps {goodput.repeated_seconds / wall:.1%} ({goodput.repeated_steps})",
        f"the rest {goodput.other_seconds / wall:.1%} ({goodput.slow_steps_seconds / wall:.1%} to slower steps)",
    )
    return f"{goodput.goodput:.1%} of {duration(wall)} with nodes; lost to {', '.join(lost)}"


def _places(status: Status) -> Iterator[tuple[str, str]]:
    if status.nodes is not None:
        text = f"{status.restarts + 1} ({status.restarts} restarts)" if status.restarts else "1"
        text += f"; the last on {status.nodes}"
        text += f" with {status.num_ranks} ranks" if status.num_ranks else ""
        text += f"; jobs {', '.join(status.jobs)}" if status.jobs else ""
        yield "starts", text
    if status.held_by is not None:
        yield "held by", status.held_by
    if status.last_sign_seconds is not None:
        yield "last sign", f"{duration(status.last_sign_seconds)} ago"
    if status.heartbeats and status.held_by is not None:
        oldest = max(status.heartbeats, key=lambda beat: beat.age_seconds)
        at = f"in {oldest.phase}" + (f" of step {oldest.step}" if oldest.step is not None else "")
        yield (
            "heartbeats",
            f"{len(status.heartbeats)} ranks; the oldest {duration(oldest.age_seconds)}: rank {oldest.rank} on "
            f"{oldest.host}, {at}",
        )
