"""Keeping the ranks of a run: from the launcher's start to the end of its last process.

Ranks watch the process that started them and end when it is gone; it in turn leaves no rank behind. What came
of a run is read from its `state`, which rank 0 writes after the last barrier, and not from exit codes: a rank
may crash after all is done, and a launcher that was killed says nothing about the ranks.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import psutil

from training.events import record_event
from training.heartbeat import read_verdict
from training.last_words import describe_code, find_last_words
from training.run_folder import RunFolder, on_stop_signals

EXIT_DONE, EXIT_FAILED, EXIT_USER, EXIT_STOPPED = 0, 1, 2, 75
POLL_SECONDS = 0.2
# How long ranks may take to end by themselves after their launcher has; then they are killed.
GRACE_SECONDS = 3.0
# A process that hangs in the kernel (a dead file system) cannot be killed; it is not waited for.
KILL_SECONDS = 10.0


@dataclass(slots=True)
class Supervisor:
    """Keeps the launcher's process group: passes stops on, shows rank 0's output, leaves nobody behind."""

    run: RunFolder
    logs: dict[int, Path] = field(default_factory=dict)
    _interrupts: int = 0
    _process: subprocess.Popen[bytes] | None = None

    def on_signal(self, number: int) -> None:
        """Ask the ranks to stop; a second Ctrl-C does not wait for them."""
        self.run.request_stop()
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1 and self._process is not None:
            _kill_group(self._process.pid)
            return
        name = signal.Signals(number).name
        record_event(self.run.path, "signalled", signal=name)
        again = "; Ctrl-C again ends it without saving" if number == signal.SIGINT else ""
        sys.stderr.write(f"{name}: stopping after this step and a checkpoint{again}\n")

    def run_to_end(self, command: Sequence[str], env: Mapping[str, str], *, num_ranks: int) -> int:
        """Run the launcher and return its exit code when the last process of its group has ended."""
        before = set(self.run.logs.glob("*_rank*.log"))
        # A session of its own: Ctrl-C in the terminal reaches this process alone, which then asks for a stop.
        with (self.run.logs / "launcher.log").open("w") as output:
            self._process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        shown: TextIO | None = None
        try:
            # The launcher gives a rank half a minute to end, which one that is stopped does not do.
            while self._process.poll() is None and self.run.state != "stuck":
                shown = self._show(shown, before, num_ranks)
                time.sleep(POLL_SECONDS)
            self._show(shown, before, num_ranks)
        finally:
            _end_group(self._process)
            if shown is not None:
                shown.close()
        return self._process.returncode

    def _show(self, shown: TextIO | None, before: set[Path], num_ranks: int) -> TextIO | None:
        """Copy what rank 0 has written since the last call to stdout; return its open log."""
        if len(self.logs) < num_ranks:
            self._find_logs(before)
        if shown is None and 0 in self.logs:
            shown = self.logs[0].open(encoding="utf-8", errors="replace")
        if shown is not None:
            sys.stdout.write(shown.read())
            sys.stdout.flush()
        return shown

    def _find_logs(self, before: set[Path]) -> None:
        """Find the ranks' new log files, whose names begin with a time, and link rank-N.log to them."""
        for path in set(self.run.logs.glob("*_rank*.log")) - before:
            rank = int(path.stem.rpartition("_rank")[2])
            if rank not in self.logs:
                self.logs[rank] = path
                link = self.run.logs / f"rank-{rank}.log"
                link.unlink(missing_ok=True)
                link.symlink_to(path.name)


@contextmanager
def stopped_by_signals(supervisor: Supervisor) -> Iterator[None]:
    """Within, let SIGINT, SIGTERM and SIGUSR1 ask the run to stop, in place of ending this process."""
    undo = on_stop_signals(supervisor.on_signal)
    try:
        yield
    finally:
        undo()


def exit_code(run: RunFolder, code: int, logs: Mapping[int, Path]) -> int:
    """Return our exit code for how the run ended, and report a failure to stderr.

    `code` is the launcher's. It is that of any of the ranks that ended in the same second, and so does not tell
    which of them failed first, and why.
    """
    if run.state == "done":
        return EXIT_DONE
    if run.state == "stopped":
        return EXIT_STOPPED
    if run.state == "stuck":
        sys.stderr.write(f"{stuck_message(run)}\n")
        return EXIT_FAILED
    run.write_state("failed")
    mistake = run.mistake
    if mistake is not None:
        sys.stderr.write(f"{mistake}\n")
        return EXIT_USER
    for line in _failure(run, code, logs):
        sys.stderr.write(f"{line}\n")
    return EXIT_FAILED


def stuck_message(run: RunFolder) -> str:
    """Return what the watchdog has found, and what to do."""
    said = (read_verdict(run.path) or {}).get("said", f"{run.path}: the run was stuck")
    return f"{said}; stacks of the ranks: {run.logs}; start it again to go on"


def _failure(run: RunFolder, code: int, logs: Mapping[int, Path]) -> Iterator[str]:
    """Yield the lines of a report: what is known, and the end of the log that knows most."""
    words = find_last_words(logs, run.logs / "launcher.log")
    what = describe_code(code)
    if words.silent is not None:
        what += f"; rank {words.silent} has ended without a word, as when it is killed or memory runs out"
    yield f"{run.path}: the run has failed: {what}; start it again to go on"
    who = "the launcher" if words.rank is None else f"rank {words.rank}"
    yield f"the last lines of {who}, from {words.path}:"
    yield from (f"  {line}" for line in words.lines)


def _members(group: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        except ProcessLookupError:
            continue
    return found


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """See to it that no process of the launcher's group is left: ranks end by themselves, or are killed."""
    deadline = time.monotonic() + (GRACE_SECONDS if process.poll() is not None else 0.0)
    while _members(process.pid) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    _kill_group(process.pid)
    process.wait()


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
    deadline = time.monotonic() + KILL_SECONDS
    while _members(group) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS / 4)
