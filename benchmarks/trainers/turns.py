"""Taking turns: all trainers of a comparison are up at once, and one of them at a time takes one optimizer step.

Whatever else a shared machine does then hits all of them alike, and one stopwatch outside times them all. A rank waits
in `Turn.wait` at the start of each step; its step lasts from the word to go until all ranks of its trainer wait again,
so that everything a trainer does between two steps counts.
"""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

VARIABLE = "BENCHMARK_TURNS"  # the path that the names of a trainer's pipes begin with
POLL_SECONDS = 0.5


class Turn:
    """A rank's end: says that it waits for its next step, and what it has taken of the device so far."""

    def __init__(self) -> None:
        base = f"{os.environ[VARIABLE]}.{os.environ['RANK']}"
        self._waits = Path(f"{base}.waits").open("w", buffering=1)  # noqa: SIM115 - as long as the process
        self._go = Path(f"{base}.go").open("rb", buffering=0)  # noqa: SIM115

    def wait(self) -> None:
        """Return when this trainer's next step is to be taken; first let the device finish the last one."""
        from deepspeed.accelerator import get_accelerator

        device = get_accelerator()
        peak = 0.0
        if device.device_name() != "cpu":
            device.synchronize()
            peak = device.max_memory_allocated() / 2**30
        self._waits.write(json.dumps({"device_peak_gib": peak}) + "\n")
        if not self._go.read(1):
            raise SystemExit("the benchmark has ended")


@dataclass(frozen=True, slots=True)
class Step:
    """What a step took: seconds on the clock, and of processor time of all ranks together.

    The second hardly changes when other programs want the same processors, and says nothing of waiting.
    """

    seconds: float
    cpu_seconds: float


class TrainerError(Exception):
    """A trainer that has ended, or has not come to its next step in time."""


class Racer:
    """A trainer's processes, as the benchmark holds them. A context manager: at its end they are killed.

    host_peak_gib: after each step, the sum of the ranks' peaks of resident memory; libraries that they share count once
    for each. device_peak_gib: the largest rank's peak in the device's allocator.
    """

    def __init__(
        self, name: str, command: Sequence[str], env: Mapping[str, str], folder: Path, *, num_ranks: int
    ) -> None:
        """Start the trainer; `folder` is for its pipes and its launcher's log."""
        self.name = name
        self.device_peak_gib = self.host_peak_gib = 0.0
        base = folder / name.replace(" ", "_")
        # Opened for both directions: opening then waits for nobody, and no reader sees an end.
        self._waits, self._go = (
            [self._pipe(Path(f"{base}.{rank}.{kind}")) for rank in range(num_ranks)]
            for kind in ("waits", "go")
        )
        self._unread = [b""] * num_ranks
        self.log = base.with_suffix(".log")
        with self.log.open("w") as output:
            self._process = subprocess.Popen(
                command,
                env={**env, VARIABLE: str(base)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @staticmethod
    def _pipe(path: Path) -> int:
        os.mkfifo(path)
        return os.open(path, os.O_RDWR)

    def __enter__(self) -> "Racer":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (*self._waits, *self._go):
            os.close(pipe)

    def step(self, deadline: float) -> "Step":
        """Let the trainer take one step. Raises TrainerError."""
        cpu, start = self._cpu_seconds(), time.perf_counter()
        for pipe in self._go:
            os.write(pipe, b".")
        self.wait(deadline)
        taken = Step(time.perf_counter() - start, self._cpu_seconds() - cpu)
        self._note_host_peak()
        return taken

    def _ranks(self) -> list[psutil.Process]:
        return psutil.Process(self._process.pid).children()

    def _cpu_seconds(self) -> float:
        times = [rank.cpu_times() for rank in self._ranks()]
        return sum(each.user + each.system for each in times)

    def wait(self, deadline: float) -> None:
        """Wait until every rank is at the start of its next step. Raises TrainerError."""
        missing = set(range(len(self._waits)))
        while missing:
            ready, _, _ = select.select([self._waits[rank] for rank in missing], [], [], POLL_SECONDS)
            for rank in sorted(missing):
                if self._waits[rank] in ready:
                    self._unread[rank] += os.read(self._waits[rank], 4096)
                line, found, rest = self._unread[rank].partition(b"\n")
                if found:
                    self._unread[rank] = rest
                    said: dict[str, Any] = json.loads(line)
                    self.device_peak_gib = max(self.device_peak_gib, said["device_peak_gib"])
                    missing.discard(rank)
            if missing and self._process.poll() is not None:
                raise TrainerError(f"{self.name}: has ended with exit code {self._process.returncode}")
            if missing and time.monotonic() > deadline:
                raise TrainerError(f"{self.name}: did not come to its next step in time")

    def _note_host_peak(self) -> None:
        peaks = 0
        for rank in self._ranks():
            for line in Path(f"/proc/{rank.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    peaks += int(line.split()[1]) * 1024
        self.host_peak_gib = max(self.host_peak_gib, peaks / 2**30)


def race(racers: Sequence[Racer], steps: dict[str, list[Step]], *, rounds: int, deadline: float) -> None:
    """Let all racers take `rounds` steps by turns, and put each into `steps`. Raises TrainerError.

    Who begins changes from round to round, so that nobody always follows the same one.
    """
    for racer in racers:
        racer.wait(deadline)
    for number in range(rounds):
        first = number % len(racers)
        for racer in (*racers[first:], *racers[:first]):
            steps.setdefault(racer.name, []).append(racer.step(deadline))
