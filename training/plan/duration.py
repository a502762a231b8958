"""How long a run and its saves take: from figures that are stated, or that an earlier run has measured."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import RunError
from training.events import read_events
from training.metrics import FILE_NAME, read_metrics
from training.plan.plan import GIB, Plan

FIRST_STEPS = 2  # of a log: they compile and allocate


@dataclass(frozen=True, slots=True)
class Measured:
    """What an earlier run has measured. flops_per_rank: per second; disk: bytes per second of a save, None if none."""

    run_folder: Path
    steps: int
    ranks: int
    flops_per_rank: float
    disk: float | None


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds of a step, of the whole run and of a save, each None if unknown. source: what they come from."""

    step_seconds: float | None
    run_seconds: float | None
    save_seconds: float | None
    source: str


def read_measured(run_folder: Path) -> Measured:
    """Read speed and saves of an earlier run from its files. Raises RunError if they do not say it."""
    if not (run_folder / FILE_NAME).is_file():
        raise RunError(
            f"{run_folder}: holds no {FILE_NAME}; expected the folder of a run that has trained, such as runs/demo"
        )
    rows = read_metrics(run_folder)
    speeds = [row["speed/teraflops_per_second"] for row in rows if row.get("speed/teraflops_per_second")]
    events = read_events(run_folder)
    worlds = [event["world"] for event in events if event["event"] == "training"]
    if len(speeds) <= FIRST_STEPS or not worlds:
        raise RunError(
            f"{run_folder}: too short to measure by: got {len(speeds)} steps with a speed; expected more than "
            f"{FIRST_STEPS}; name another run"
        )
    return Measured(
        run_folder=run_folder,
        steps=len(speeds) - FIRST_STEPS,
        ranks=worlds[-1],
        flops_per_rank=statistics.median(speeds[FIRST_STEPS:]) * 1e12 / worlds[-1],
        disk=_disk_speed(run_folder, [event for event in events if event["event"] == "saved"]),
    )


def _disk_speed(run_folder: Path, saved: list[dict[str, float]]) -> float | None:
    """Return the median bytes per second of the saves whose checkpoints are still there."""
    speeds = []
    for event in saved:
        folder = run_folder / "checkpoints" / f"step-{int(event['step']):06d}"
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        if size and event["seconds"] > 0:
            speeds.append(size / event["seconds"])
    return statistics.median(speeds) if speeds else None


def duration(
    plan: Plan, *, tokens_per_second: float | None, disk: float | None, measured: Measured | None
) -> Duration:
    """Return how long a run takes; tokens_per_second (of all ranks) and disk (bytes per second) come before `measured`.

    An earlier run is scaled by floating-point operations: what one of its ranks did in a second, each rank here does,
    whatever the model, the length of packs and the number of ranks. The network is thus taken to be no narrower.
    """
    step = None
    sources = []
    if tokens_per_second is not None:
        step = plan.tokens_per_step / tokens_per_second
        sources.append(f"{tokens_per_second:,.0f} tokens a second, as stated")
    elif measured is not None:
        step = plan.flops_per_step / (measured.flops_per_rank * plan.ranks.size)
        sources.append(
            f"{measured.run_folder}: {measured.flops_per_rank / 1e12:,.3g} TFLOP/s on each of {measured.ranks} ranks, "
            f"the median of {measured.steps} steps; taken for {plan.ranks.size} ranks and {plan.flops_per_step:.3g} "
            "operations a step"
        )
    if disk is not None:
        sources.append(f"a disk of {disk / GIB:,.2f} GiB/s, as stated")
    elif measured is not None and measured.disk is not None:
        disk = measured.disk
        sources.append(f"saves at {disk / GIB:,.2f} GiB/s there")
    return Duration(
        step_seconds=step,
        run_seconds=None if step is None or plan.num_steps is None else step * plan.num_steps,
        save_seconds=None if disk is None else plan.save_seconds(disk),
        source="; ".join(sources),
    )
