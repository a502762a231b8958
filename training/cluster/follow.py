"""`shardtune submit --follow`: a job watched from the login node, by Slurm's queue and the files of its run."""

import time
from collections.abc import Callable
from pathlib import Path

from training.metrics import progress_line
from training.status.queue import QueueEntry, ask_queue
from training.status.report import Status, read_status, to_text
from training.supervise import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, EXIT_USER

POLL_SECONDS = 3.0
# Of steps that follow each other faster, not every one is shown.
SHOW_SECONDS = 10.0
# How long a file that was written on a node may take to be seen here.
VISIBLE_SECONDS = 10.0
EXIT_INTERRUPTED = 130


def follow(
    run_folder: Path,
    job: str,
    *,
    show: Callable[[str], None] = print,
    poll_seconds: float = POLL_SECONDS,
) -> int:
    """Show a job's place in the queue, then the run's steps, until the run ends; a requeued job is followed on.

    Returns 0 for a run that is done, 2 for the user's mistake, 75 for one that has stopped and is not sent again, else
    1; 130 after Ctrl-C, which leaves the job alone.
    """
    try:
        status = _watch(run_folder, job, show, poll_seconds)
    except KeyboardInterrupt:
        show(f"job {job} goes on; see it with: shardtune status {run_folder}; end it with: scancel {job}")
        return EXIT_INTERRUPTED
    show(to_text(status))
    return _exit_code(status)


def _watch(run_folder: Path, job: str, show: Callable[[str], None], poll_seconds: float) -> Status:
    """Show what is new until the run is over; return where it stands then."""
    news = _News(show)
    gone_since: float | None = None
    while True:
        # The queue first: what a job that has gone wrote is there by now, or nearly.
        entries = ask_queue(job)
        status = read_status(run_folder)
        if entries:
            news.queue(entries)
        news.training(status)
        if status.state in ("done", "failed"):
            return status
        if entries == []:
            gone_since = gone_since or time.monotonic()
            if status.state == "stopped" or time.monotonic() - gone_since > VISIBLE_SECONDS:
                return status
        time.sleep(poll_seconds)


class _News:
    """What was shown last, so that nothing is shown twice."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._queue = ""
        self._step = 0
        self._shown = -SHOW_SECONDS

    def queue(self, entries: list[QueueEntry]) -> None:
        """Show the job's state in the queue if it is another than before."""
        text = "; ".join(str(entry) for entry in entries if entry.state == "PENDING")
        text = text or "; ".join(f"job {entry.job} is {entry.state}" for entry in entries)
        if text != self._queue:
            self._show(text)
            self._queue = text

    def training(self, status: Status) -> None:
        """Show the newest step, if it is another one and the last was shown a while ago."""
        now = time.monotonic()
        if status.state != "running":
            self._step = status.step  # of an earlier start
            return
        if status.step == self._step or now - self._shown < SHOW_SECONDS:
            return
        metrics = {f"{name}/loss": value for name, value in status.losses.items()}
        metrics |= {"health/skipped_steps": float(status.skipped_steps)}
        if status.tokens_per_second is not None:
            metrics["speed/tokens_per_second"] = status.tokens_per_second
        self._show(progress_line(status.step, status.num_steps, metrics, status.seconds_left))
        self._step, self._shown = status.step, now


def _exit_code(status: Status) -> int:
    if status.state == "done":
        return EXIT_DONE
    if status.state == "stopped":
        return EXIT_STOPPED
    mistake = status.why is not None and status.why.kind in ("mistake", "bad_steps", "disk_full")
    return EXIT_USER if status.state == "failed" and mistake else EXIT_FAILED
