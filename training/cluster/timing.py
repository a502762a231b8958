"""How long before its time limit a job must be told to stop: a step, a save, and what Slurm and the nodes need."""

import json
import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import RunError
from training.cluster.settings import SlurmConfig, parse_time
from training.events import read_events

# Without an earlier start of the run to go by: a shared disk of middling speed.
ASSUMED_BYTES_PER_SECOND = 0.5e9
ASSUMED_STEP_SECONDS = 30.0
# For the signal to come through, the ranks to agree, and the job to be requeued.
SPARE_SECONDS = 60
# Steps at the end of the log whose slowest is taken; the first of a run compiles and would say too much.
NUM_STEPS = 50


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of the slowest step and the slowest save, and where they are known from."""

    step_seconds: float
    save_seconds: float
    source: str

    @property
    def lead_seconds(self) -> int:
        """Return how long before the limit the run must be told to stop."""
        return math.ceil(self.step_seconds + self.save_seconds) + SPARE_SECONDS


def find_timing(run_folder: Path, *, checkpoint_bytes: int) -> Timing:
    """Return the timing of the run's own earlier steps and saves, or an estimate."""
    steps = _step_seconds(run_folder / "metrics.jsonl")
    saves = [event["seconds"] for event in read_events(run_folder) if event["event"] == "saved"]
    save = max(saves) if saves else checkpoint_bytes / ASSUMED_BYTES_PER_SECOND
    told = (
        "measured in this run"
        if saves
        else f"{checkpoint_bytes / 1e9:.1f} GB at {ASSUMED_BYTES_PER_SECOND / 1e9:g} GB a second"
    )
    return Timing(max(steps) if steps else ASSUMED_STEP_SECONDS, save, told)


def _step_seconds(metrics: Path) -> list[float]:
    try:
        with metrics.open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in deque(file, NUM_STEPS)]
    except FileNotFoundError:
        return []
    return [row["time/step_seconds"] for row in rows if "time/step_seconds" in row]


def signal_seconds(slurm: SlurmConfig, timing: Timing) -> int:
    """Return how long before its limit the job asks to be signalled.

    Raises RunError for a lead, or a time limit, in which a step and a save do not end.
    """
    needed = timing.lead_seconds
    parts = (
        f"a step of {timing.step_seconds:.0f} s, a save of {timing.save_seconds:.0f} s ({timing.source}), and "
        f"{SPARE_SECONDS} s to spare"
    )
    lead = needed if slurm.signal_seconds == "auto" else slurm.signal_seconds
    mistakes = []
    if lead < needed:
        mistakes.append(
            f"slurm.signal_seconds: too short to stop in time: got {lead}; expected at least {needed}: {parts}"
        )
    if slurm.time is not None and (limit := parse_time(slurm.time)) > 0 and limit <= max(lead, needed):
        mistakes.append(
            f"slurm.time: too short for a save: got {slurm.time} ({limit} s); expected more than "
            f"{max(lead, needed)} s: {parts}; raise slurm.time"
        )
    if mistakes:
        raise RunError("\n".join(mistakes))
    return lead
