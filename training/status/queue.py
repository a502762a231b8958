"""What Slurm says of a job, where it is there and knows the job; everything works without it."""

import os
import subprocess
from dataclasses import dataclass

ASK_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """A job in Slurm's queue. ahead: jobs of its partition that wait with a higher priority; starts: when Slurm
    expects to start it, local time."""

    job: str
    state: str
    reason: str
    time_left: str
    starts: str | None
    ahead: int | None

    def __str__(self) -> str:
        text = f"job {self.job} is {self.state}"
        if self.state != "PENDING":
            return f"{text}, {self.time_left} left to its time limit"
        text += f" ({self.reason})"
        text += f", {self.ahead} jobs before it" if self.ahead is not None else ""
        return text + (f", expected to start {self.starts}" if self.starts else "")


def ask_queue(job: str) -> list[QueueEntry] | None:
    """Return a job's entries in the queue (an array may have several), none once it has gone.

    None where there is no Slurm, or it does not answer.
    """
    rows = _ask("squeue", "--noheader", f"--jobs={job}", "--format=%i|%T|%r|%L|%S|%P|%Q")
    if rows is None:
        return None
    entries = []
    for row in rows:
        name, state, reason, time_left, starts, partition, priority = row.split("|")
        waits = state == "PENDING"
        expected = starts if waits and starts != "N/A" else None
        ahead = _jobs_ahead(partition, int(priority)) if waits and priority.isdecimal() else None
        entries.append(QueueEntry(name, state, reason, time_left, expected, ahead))
    return entries


def jobs_named(name: str) -> list[tuple[str, str]] | None:
    """Return (id, state) of this user's jobs of a name that wait or run, oldest first; None as in `ask_queue`."""
    rows = _ask("squeue", "--noheader", "--me", f"--name={name}", "--sort=i", "--format=%A %T")
    return None if rows is None else [(job, state) for job, state in map(str.split, rows)]


def _jobs_ahead(partition: str, priority: int) -> int | None:
    rows = _ask("squeue", "--noheader", "--states=PENDING", f"--partition={partition}", "--format=%Q")
    return None if rows is None else sum(row.isdecimal() and int(row) > priority for row in rows)


def _ask(*command: str) -> list[str] | None:
    """Return the lines that squeue prints, none for a job it does not know; None where it does not answer."""
    # Variables such as SQUEUE_FORMAT would change what is printed.
    env = {key: value for key, value in os.environ.items() if not key.startswith("SQUEUE_")}
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=ASK_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    return [row for row in map(str.strip, done.stdout.splitlines()) if row]
