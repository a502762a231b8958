"""Where each rank of a run stands: RUN/heartbeat/rank-N.json, rewritten every few seconds by a thread of the rank.

The training only notes its place in memory: a slow disk costs it nothing. A file that has grown old means that the
process is stopped or gone; one whose `progress` stands still, that its training does not get on.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.nodes import node_name

logger = logging.getLogger(__name__)

FOLDER = "heartbeat"
BEAT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Beat:
    """What a rank said of itself.

    step: the one that it is in, from 1; 0 before the first. time: seconds since the epoch, by the node's clock.
    progress: how many phases it has begun; all ranks of a run go through the same ones. start: the rendezvous of this
    start of the run. waits, doing: filled in when the run is stuck: whether the rank waits for others, and where it is.
    """

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    time: float
    progress: int
    start: str
    waits: bool | None = None
    doing: str = ""


class Place:
    """Where this rank is in its run; noted by the training, read by the threads that watch it."""

    def __init__(self) -> None:
        self.step = 0
        self.phase = "rendezvous"
        self.progress = 0
        self.first_step: int | None = None

    def at(self, phase: str, *, step: int | None = None) -> None:
        """Note that a phase begins, of this `step` if another one begins with it."""
        if step is not None:
            self.step = step
            self.first_step = step if self.first_step is None else self.first_step
        self.phase = phase
        self.progress += 1

    @contextmanager
    def inside(self, phase: str) -> Iterator[None]:
        """Note that a phase begins, and at its end that the one before it goes on."""
        before = self.phase
        self.at(phase)
        yield
        self.at(before)


class Heart:
    """Writes a rank's heartbeat; `beat_seconds` apart. Use it in a `with`."""

    def __init__(
        self, run_folder: Path, place: Place, *, rank: int, start: str, beat_seconds: float = BEAT_SECONDS
    ) -> None:
        self.folder = run_folder / FOLDER
        self.beat_seconds = beat_seconds
        self.called = threading.Event()  # another rank has found the run to be stuck
        self._place, self._rank, self._start = place, rank, start
        self._leaving = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heart":
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._rank == 0:
            verdict_path(self.folder.parent).unlink(missing_ok=True)  # of an earlier start
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._thread.join(self.beat_seconds)  # it may hang with the disk, which is no reason to stay

    def beat(self, **facts: Any) -> None:
        """Write the heartbeat now. Raises OSError."""
        place = self._place
        now = Beat(
            rank=self._rank,
            host=node_name(),
            pid=os.getpid(),
            step=place.step,
            phase=place.phase,
            time=time.time(),
            progress=place.progress,
            start=self._start,
            **facts,
        )
        with self._writing:
            write_json(self.folder / f"rank-{self._rank}.json", asdict(now))

    def _run(self) -> None:
        left = False
        while not self.called.is_set():
            try:
                self.beat()
                if (
                    self._place.phase != "rendezvous"
                    and read_verdict(self.folder.parent, self._start) is not None
                ):
                    self.called.set()
            except OSError as error:  # a full disk must not end a run that trains
                logger.warning("%s: the heartbeat could not be written: %s", self.folder, error.strerror)
            if left:
                return
            left = self._leaving.wait(self.beat_seconds)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a small file so that readers see it whole or not at all. Raises OSError."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(value) + "\n", encoding="utf-8")
    partial.replace(path)


def read_beats(run_folder: Path, world_size: int, start: str) -> list[Beat | None]:
    """Return the last heartbeat of each rank in this start of the run; None for a rank that has not come up."""
    beats: list[Beat | None] = []
    for rank in range(world_size):
        try:
            beat = Beat(**json.loads((run_folder / FOLDER / f"rank-{rank}.json").read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            beats.append(None)
            continue
        beats.append(beat if beat.start == start else None)
    return beats


def verdict_path(run_folder: Path) -> Path:
    """Return the file that calls the ranks of a stuck run, and then tells what was found."""
    return run_folder / FOLDER / "stuck.json"


def read_verdict(run_folder: Path, start: str | None = None) -> dict[str, Any] | None:
    """Return what was found of a stuck run, of this start if it is given; None if it is not stuck."""
    try:
        found: dict[str, Any] = json.loads(verdict_path(run_folder).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if start is None or found["start"] == start else None
