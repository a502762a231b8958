"""The watchdog: a run that makes no progress tells where its ranks hang and which node is to blame, and ends.

A thread in each rank looks whether the training's `Place` has changed. Where it has not for too long, the rank calls
all others (RUN/heartbeat/stuck.json); each prints its stacks, writes a last heartbeat, and ends. The rank that called
compares the heartbeats: a rank in a collective waits for others, the one to blame is elsewhere or says nothing.
Nothing is saved: a checkpoint that is being written stays without DONE.
"""

import faulthandler
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType

from training.distributed import TIMEOUT, World
from training.events import record_event
from training.heartbeat import (
    BEAT_SECONDS,
    Beat,
    Heart,
    Place,
    read_beats,
    read_verdict,
    verdict_path,
    write_json,
)
from training.nodes import add_bad_nodes, host_of_rank
from training.run_folder import RunFolder

EXIT_STUCK = 76
# Phases that may take longer without a sign of progress, and their share of it: loading a model, building ops and
# compiling kernels in the first step, writing a checkpoint.
LONG_PHASES = ("rendezvous", "start", "save")
LONG_FACTOR, LONG_SECONDS = 3, 300.0
# A rank that cannot end in order, because a disk hangs, is ended by SIGALRM so long after it was found to be stuck.
LAST_SECONDS = 90
# A rank whose innermost Python function is in one of these waits for other ranks or for its device.
WAITING = (
    "/torch/distributed/",
    "/torch/autograd/",
    "/torch/cuda/",
    "/deepspeed/",
    "/training/distributed.py",
    "/training/step.py",
)
NOT_WAITING = ("/swap_tensor/",)  # DeepSpeed's reading from NVMe


def allowance(place: Place, seconds: float, limits: Mapping[str, float] | None = None) -> float:
    """Return for how long a phase may show no progress: `seconds`; three times that, and 5 minutes, for long ones.

    limits: of the phases, in place of that rule, where they are not the training's.
    """
    if limits is not None:
        return limits[place.phase]
    first = place.first_step is None or place.step == place.first_step
    long = place.phase in LONG_PHASES or (first and place.phase != "evaluation")
    return max(LONG_FACTOR * seconds, LONG_SECONDS) if long else seconds


def collective_timeout(seconds: float | None) -> timedelta:
    """Return for how long a collective waits before it raises an error of its own: longer than the watchdog."""
    return max(TIMEOUT, timedelta(seconds=2 * LONG_FACTOR * (seconds or 0)))


@contextmanager
def watched(
    run: RunFolder,
    world: World,
    seconds: float | None,
    *,
    limits: Mapping[str, float] | None = None,
    blame: Path | None = None,
) -> Iterator[Place]:
    """Within, beat the rank's heart and watch its progress; yield the place that the training keeps up to date.

    seconds: the longest time without progress; None watches nothing. A stuck rank does not come back from here.
    limits: see `allowance`. blame: the folder whose bad_nodes gets the nodes to blame, if not the run's own.
    """
    place = Place()
    start = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    beat_seconds = BEAT_SECONDS if seconds is None else min(BEAT_SECONDS, seconds / 5)
    with Heart(run.path, place, rank=world.rank, start=start, beat_seconds=beat_seconds) as heart:
        if seconds is None:
            yield place
            place.at("end")
            return
        watchdog = Watchdog(
            run, heart, place, world, start=start, seconds=seconds, limits=limits, blame=blame or run.path
        )
        try:
            yield place
        finally:
            watchdog.leave()
        place.at("end")


class Watchdog:
    """The thread that watches one rank's place, and ends the process when the run is stuck."""

    def __init__(
        self,
        run: RunFolder,
        heart: Heart,
        place: Place,
        world: World,
        *,
        start: str,
        seconds: float,
        limits: Mapping[str, float] | None,
        blame: Path,
    ) -> None:
        self._limits, self._blame = limits, blame
        self._run, self._heart, self._place = run, heart, place
        self._rank, self._world_size, self._start, self._seconds = world.rank, world.size, start, seconds
        self._main = threading.get_ident()
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Stop watching. Where the run is stuck, wait for the end: an error now only says that others have ended."""
        self._leaving.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)

    def _watch(self) -> None:
        poll = min(1.0, self._seconds / 10)
        seen, still, before = -1, 0.0, time.monotonic()
        while not self._leaving.wait(poll):
            longest = allowance(self._place, self._seconds, self._limits)
            # This thread needs the interpreter. Where C code keeps it, faulthandler's own thread, which does not,
            # prints the stacks; and the alarm, which no Python has to handle, ends the process.
            faulthandler.dump_traceback_later(longest)
            signal.alarm(math.ceil(2 * longest + LAST_SECONDS))
            now = time.monotonic()
            # Of a pause of the whole process (SIGSTOP, and SIGCONT later) only a little counts.
            still, before = still + min(now - before, 2 * poll), now
            if self._place.progress != seen:
                seen, still = self._place.progress, 0.0
            if self._heart.called.is_set() or still >= longest:
                self._end(still)

    def _end(self, still: float) -> None:
        """Tell what there is to tell, and end the process."""
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(LAST_SECONDS)
        self._heart.called.set()
        frame = sys._current_frames().get(self._main)
        doing = describe_frame(frame) if frame is not None else ""
        print_stacks(self._rank, self._place, still)
        try:
            calling = self._call()
            self._heart.beat(waits=frame is not None and waits_for_others(frame), doing=doing)
            if calling:
                self._report(still)
            else:
                wait_until(lambda: self._told, 3 * self._heart.beat_seconds + 10)
        except OSError as error:
            sys.stderr.write(f"{self._run.path}: what is stuck could not be told: {error}\n")
        sys.stderr.flush()
        os._exit(EXIT_STUCK)

    @property
    def _told(self) -> bool:
        return "said" in (read_verdict(self._run.path, self._start) or {})

    def _call(self) -> bool:
        """Call the other ranks; return False if one of them has called already. Raises OSError."""
        path = verdict_path(self._run.path)
        if read_verdict(self._run.path, self._start) is None:
            path.unlink(missing_ok=True)  # of an earlier start
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(json.dumps({"start": self._start, "rank": self._rank}))
        except FileExistsError:
            return False
        return True

    def _report(self, still: float) -> None:
        """Wait for the last words of the ranks that live, and tell which are to blame, for people and for scripts."""

        def judged() -> Verdict:
            beats = read_beats(self._run.path, self._world_size, self._start)
            return judge(beats, now=time.time(), silent_seconds=self._seconds / 2)

        wait_until(lambda: judged().everyone_told, 3 * self._heart.beat_seconds + 5)
        verdict = judged()
        ours = next(beat for beat in verdict.beats if beat is not None and beat.rank == self._rank)
        hosts = {rank: verdict.host(rank, self._world_size) for rank in verdict.missing}
        said = f"{self._run.path}: stuck for {still:.0f} s in {_where(ours)}: {describe(verdict, hosts)}"
        blamed = list(dict.fromkeys(host for host in hosts.values() if host is not None))
        if blamed:
            add_bad_nodes(self._blame, blamed)
        record_event(
            self._run.path,
            "stuck",
            step=ours.step,
            phase=ours.phase,
            seconds=round(still),
            ranks=list(verdict.missing),
            host=",".join(blamed) or None,
            said=said,
        )
        sys.stderr.write(f"{said}\n")
        found = {
            "start": self._start,
            "rank": self._rank,
            "said": said,
            "ranks": verdict.missing,
            "hosts": blamed,
        }
        write_json(verdict_path(self._run.path), found)
        self._run.write_state("stuck")  # last: whoever started the ranks ends them now


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which ranks a stuck run waits for; none if it cannot be told. `silent` ones give no sign of life."""

    beats: tuple[Beat | None, ...]
    silent: tuple[int, ...]
    missing: tuple[int, ...]

    @property
    def everyone_told(self) -> bool:
        """Return whether every rank that lives has said where it is."""
        return all(
            beat is not None and beat.waits is not None
            for rank, beat in enumerate(self.beats)
            if rank not in self.silent
        )

    def host(self, rank: int, world_size: int) -> str | None:
        """Return the node of a rank, if it is known."""
        beat = self.beats[rank]
        return beat.host if beat is not None else host_of_rank(rank, world_size, os.environ)


def judge(beats: Sequence[Beat | None], *, now: float, silent_seconds: float) -> Verdict:
    """Return which ranks the others wait for.

    Those without a sign of life for so long; if there are none, those that wait for nobody; if all of them wait, those
    that have begun fewer phases than others. Clocks of nodes may differ by a good part of `silent_seconds`.
    """
    silent = tuple(
        rank for rank, beat in enumerate(beats) if beat is None or now - beat.time > silent_seconds
    )
    elsewhere = tuple(rank for rank, beat in enumerate(beats) if beat is not None and not beat.waits)
    furthest = max((beat.progress for beat in beats if beat is not None), default=0)
    behind = tuple(rank for rank, beat in enumerate(beats) if beat is not None and beat.progress < furthest)
    for missing in (silent, elsewhere, behind):
        if missing and (len(missing) < len(beats) or len(beats) == 1):
            return Verdict(tuple(beats), silent, missing)
    return Verdict(tuple(beats), silent, ())


def describe(verdict: Verdict, hosts: dict[int, str | None]) -> str:
    """Return what is known of the ranks to blame, for people."""
    if not verdict.missing:
        places = "; ".join(sorted({beat.doing for beat in verdict.beats if beat is not None}))
        return f"no rank and no node stands out; the ranks are at {places}; their stacks are in their logs"
    told = []
    for rank in verdict.missing[:8]:
        beat, where = verdict.beats[rank], f"rank {rank} on node {hosts[rank] or '(unknown)'}"
        if beat is None:
            told.append(f"{where}, which has never come up")
        elif rank in verdict.silent:
            age = time.time() - beat.time
            told.append(f"{where} (process {beat.pid}), last heard of {age:.0f} s ago in {_where(beat)}")
        else:
            told.append(f"{where} (process {beat.pid}), which hangs in {_where(beat)}, at {beat.doing}")
    more = len(verdict.missing) - len(told)
    return "waits for " + "; ".join(told) + (f"; and {more} more ranks" if more else "")


def _where(beat: Beat) -> str:
    return f"step {beat.step} ({beat.phase})" if beat.step else beat.phase


def waits_for_others(frame: FrameType) -> bool:
    """Return whether a thread at this frame waits for other ranks or its device, and not for something of its own."""
    file = frame.f_code.co_filename
    return any(part in file for part in WAITING) and not any(part in file for part in NOT_WAITING)


def describe_frame(frame: FrameType) -> str:
    """Return `function (file:line)` of the innermost function, and of the innermost one of ours."""
    inner = _name(frame)
    ours: FrameType | None = frame
    while ours is not None and Path(__file__).parent not in Path(ours.f_code.co_filename).parents:
        ours = ours.f_back
    return inner if ours is None or ours is frame else f"{inner}, called by {_name(ours)}"


def _name(frame: FrameType) -> str:
    return f"{frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"


def print_stacks(rank: int, place: Place, still: float) -> None:
    """Print what every thread of this rank is doing, in Python and in the kernel."""
    sys.stderr.write(
        f"watchdog: rank {rank} has made no progress for {still:.0f} s, in step {place.step} ({place.phase}); "
        f"in the kernel: {_in_kernel()}; its stacks:\n"
    )
    sys.stderr.flush()
    faulthandler.dump_traceback(all_threads=True)


def _in_kernel() -> str:
    """Return the state of the process's first thread, and the function of the kernel that it sleeps in."""
    try:
        status = Path(f"/proc/self/task/{os.getpid()}/stat").read_text(encoding="ascii")
        sleeps_in = Path(f"/proc/self/task/{os.getpid()}/wchan").read_text(encoding="ascii")
    except OSError:
        return "unknown"
    return f"state {status.rpartition(')')[2].split()[0]}, {sleeps_in}"


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until a condition holds, at most so long."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.25)
