"""Saving while training goes on: a thread of each rank writes the checkpoint, the next update waits for its reading.

Weights and optimizer states change in `engine.step()` alone. So the state is read from where it lies (the optimizer's
buffers, or its swap files) during the forwards and backwards that follow, and no copy of it is made; writing it
through to the disk and publishing go on during the update too. What is saved is the state at the start of the save.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from deepspeed.accelerator import get_accelerator

from data_tools.errors import RunError
from training.checkpoint_files import DONE, Progress, checkpoint_folder, finished_checkpoints
from training.checkpoint_write import (
    AbandonedError,
    Signals,
    Slice,
    clear_unfinished,
    prune,
    publish,
    remove_unfinished,
    write_part,
)
from training.config import SaveConfig
from training.distributed import World, barrier, first_words
from training.events import record_event
from training.heartbeat import Place

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Job:
    """The save in hand on this rank. published: for rank 0, its work after its own part."""

    final: Path
    signals: Signals
    written: Future[None]
    published: Future[None] | None

    @property
    def problem(self) -> str:
        """Return what the system said if this rank's work has failed so far; raise what is no fault of the system."""
        for future in (self.written, self.published):
            if future is not None and future.done():
                error = future.exception()
                if isinstance(error, OSError):
                    said = error.strerror or str(error)
                    return f"{said}: {error.filename}" if error.filename else said
                if error is not None and not isinstance(error, AbandonedError):
                    raise error
        return ""


class Saver:
    """Saves the checkpoints of a run, one at a time. All ranks call the same methods at the same steps.

    As a context manager it removes what killed runs left behind (or raises RunError), and at its end stops what is
    still being written.
    """

    def __init__(
        self, checkpoints: Path, settings: SaveConfig, world: World, place: Place | None = None
    ) -> None:
        self._place = place or Place()
        self._checkpoints, self._settings, self._world = checkpoints, settings, world
        self._job: _Job | None = None
        self._stall = 0.0
        # Two at work on rank 0: its own part, and what waits for all parts.
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="save")

    def __enter__(self) -> "Saver":
        if self._world.is_main:
            try:
                clear_unfinished(self._checkpoints)
            except OSError as error:
                raise RunError(
                    f"{self._checkpoints}: what a killed run left there cannot be removed: {error}; remove it"
                ) from None
        barrier()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._job is not None:
            self._job.signals.abandoned.set()
        self._threads.shutdown(wait=True)

    def save(self, slices: Sequence[Slice], progress: Progress, *, wait_for_it: bool = False) -> None:
        """Begin to save; first wait for the save before this one, if it is still going on.

        `wait_for_it`: return when the checkpoint counts, as at the end of a run. A save that fails then, or with
        `save.on_error: stop`, raises RunError on every rank; else it is reported, and training goes on.
        """
        self.finish()
        with self._stalled():
            # What the device has yet to do may belong to the update that is to be saved.
            get_accelerator().synchronize()
            final, signals = checkpoint_folder(self._checkpoints, progress.step), Signals()
            stream = get_accelerator().Stream() if get_accelerator().Stream else None
            written = self._threads.submit(self._write, final, slices, signals, stream)
            published = (
                self._threads.submit(self._publish, final, progress, signals) if self._world.is_main else None
            )
            self._job = _Job(final, signals, written, published)
        if wait_for_it or self._settings.mode == "sync":
            self.finish(must_succeed=wait_for_it)

    def _write(self, final: Path, slices: Sequence[Slice], signals: Signals, stream: Any) -> None:
        with get_accelerator().stream(stream):
            write_part(final, slices, self._world.rank, self._world.size, signals)

    def _publish(self, final: Path, progress: Progress, signals: Signals) -> None:
        start = time.monotonic()
        publish(final, progress, signals)
        seconds = round(time.monotonic() - start, 3)
        record_event(self._checkpoints.parent, "saved", step=progress.step, seconds=seconds)
        logger.info("saved %s", final)
        prune(self._checkpoints, keep=self._settings.keep, keep_every=self._settings.keep_every)

    def wait_until_read(self) -> None:
        """Wait until nothing reads the state any more; to be called before each change of it."""
        if self._job is not None:
            with self._stalled():
                self._job.signals.read.wait()

    @property
    def failed(self) -> bool:
        """Return whether this rank cannot go on with the save in hand: let all ranks know, for `give_up`."""
        return self._job is not None and bool(self._job.problem)

    def finish(self, *, must_succeed: bool = False) -> None:
        """Wait until the save in hand is a checkpoint that counts. Raises RunError as `save` does."""
        if self._job is None:
            return
        with self._stalled():
            wait([self._job.written])
            if not first_words(self._job.problem, self._world):
                self._job.signals.all_written.set()
                if self._job.published is not None:
                    wait([self._job.published])
            problem = first_words(self._job.problem, self._world)
        if problem:
            self.give_up(must_succeed=must_succeed)
        self._job = None

    def give_up(self, *, must_succeed: bool = False) -> None:
        """End a save that has failed on any rank, and remove what there is of it. Raises RunError as `save` does."""
        job, self._job = self._job, None
        assert job is not None
        with self._stalled():
            job.signals.abandoned.set()
            wait([future for future in (job.written, job.published) if future is not None])
            problem = first_words(
                f"rank {self._world.rank}: {job.problem}" if job.problem else "", self._world
            )
            barrier()  # no rank writes any more
            if self._world.is_main:
                remove_unfinished(job.final)
            barrier()
        saved = (job.final / DONE).exists()
        what = "older ones could not be removed" if saved else "the checkpoint could not be saved"
        message = f"{job.final}: {what}: {problem}; {self._what_is_left()}"
        if must_succeed or self._settings.on_error == "stop":
            raise RunError(f"{message}; make room or make the folder writable, then start the run again")
        logger.log(
            logging.WARNING if self._world.is_main else logging.DEBUG,
            "%s; training goes on, with save.on_error: continue",
            message,
        )

    def _what_is_left(self) -> str:
        finished = finished_checkpoints(self._checkpoints)
        return f"{finished[-1].name} is untouched" if finished else "there is no earlier one"

    @contextmanager
    def _stalled(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            with self._place.inside("save"):
                yield
        finally:
            self._stall += time.perf_counter() - start

    def take_stall_seconds(self) -> float:
        """Return for how long training has stood still for saving since the last call."""
        stall, self._stall = self._stall, 0.0
        return stall
