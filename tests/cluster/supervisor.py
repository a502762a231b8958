"""Owns the daemons of a SlurmBox: `python supervisor.py LOG_FOLDER NODE…`; on stdin, `kill NODE` or `start NODE`.

It is a child subreaper, so that every process of the cluster stays below it, re-parented job steps too. When its stdin
ends, because the test is over or its process was killed, it ends them all.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

PR_SET_CHILD_SUBREAPER = 36


def parent_of(pid: int) -> int | None:
    """Return the parent of a process; None if it has ended."""
    try:
        # pid (name, which may hold anything) state parent …
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None


def descendants() -> list[int]:
    """Return every process below this one."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := parent_of(int(entry.name))) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    to_visit = [os.getpid()]
    while to_visit:
        below = children.get(to_visit.pop(), [])
        found += below
        to_visit += below
    return found


def read(pid: int, name: str) -> bytes:
    """Return a file of a process in /proc; nothing if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""


def kill(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to processes, of which some may have ended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


class Daemons:
    """The controller and the nodes' daemons, by name."""

    def __init__(self, log_folder: Path) -> None:
        self._log_folder = log_folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str) -> None:
        """Start a daemon, its words in a log file of that name."""
        with (self._log_folder / f"{name}.out").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def start_node(self, name: str) -> None:
        """Start the daemon of a node."""
        self.start(name, "slurmd", "-D", "-N", name)

    def kill_node(self, name: str) -> None:
        """Kill a node's daemon, its job steps and their processes, all at once."""
        mark = f"SLURMD_NODENAME={name}".encode()
        tasks = [pid for pid in descendants() if mark in read(pid, "environ").split(b"\0")]
        parents = {parent for pid in tasks if (parent := parent_of(pid)) is not None}
        steps = [pid for pid in parents if b"slurmstepd" in read(pid, "cmdline")]
        kill([self._processes[name].pid, *steps, *tasks], signal.SIGKILL)
        self._processes[name].wait()


def end_all() -> None:
    """End everything below this process: jobs may take SIGTERM as a request only."""
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        kill(descendants(), number)
        deadline = time.monotonic() + 1
        while descendants() and time.monotonic() < deadline:
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(0.02)


def leave(*_: object) -> NoReturn:
    """Turn a signal into the ordinary way out."""
    sys.exit()


def main(log_folder: Path, nodes: list[str]) -> None:
    """Run the cluster until stdin ends."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, leave)
    daemons = Daemons(log_folder)
    try:
        daemons.start("slurmctld", "slurmctld", "-D", "-i")
        for node in nodes:
            daemons.start_node(node)
        for line in sys.stdin:
            order, node = line.split()
            {"start": daemons.start_node, "kill": daemons.kill_node}[order](node)
    finally:
        end_all()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
