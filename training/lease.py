"""The lease on a run folder: one run at a time holds it, and a dead holder's can be taken over.

Whether a holder lives is read from its process where that can be seen (same boot, same process namespace),
else from its heartbeat: a counter in the file whose changes are watched, so that clocks need not agree. Needs
only exclusive creation and atomic replacement of files, which NFS and Lustre have; locks they may lack.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from data_tools.errors import RunError

logger = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
# A holder on another machine that has not beaten for this long is dead: its ranks ended long before.
STALE_SECONDS = 30.0
POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a run. `machine` names a boot and a process namespace: there `pid` means something."""

    token: str
    host: str
    machine: str
    pid: int
    started: float
    job: str | None
    beat: int

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"

    @property
    def is_here(self) -> bool:
        """Return whether its pid can be looked up in this process's namespace."""
        return self.machine == _machine()

    @property
    def lives(self) -> bool:
        """Return whether the process still runs; only meaningful where `is_here`."""
        return process_lives(self.pid, self.started)


def process_lives(pid: int, started: float) -> bool:
    """Return whether the process with this pid is the one that started then, and is not a zombie."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def process_started(pid: int) -> float:
    """Return when a process started, in seconds since the epoch."""
    return float(psutil.Process(pid).create_time())


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def this_holder() -> Holder:
    """Return a new holder: this process."""
    return Holder(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        started=process_started(os.getpid()),
        job=os.environ.get("SLURM_JOB_ID"),
        beat=0,
    )


class Lease:
    """A lease, taken on entering and given back on leaving; in between a thread keeps its heart beating.

    `survivors` names processes of a dead holder on this machine that have not ended yet; they are waited for.
    Entering raises RunError if another run holds the folder, after at most about `stale_seconds`.
    """

    def __init__(
        self,
        path: Path,
        *,
        survivors: Callable[[], list[str]] = list,
        stale_seconds: float = STALE_SECONDS,
        beat_seconds: float = BEAT_SECONDS,
    ) -> None:
        self.path = path
        self._survivors = survivors
        self._stale_seconds = stale_seconds
        self._beat_seconds = beat_seconds
        self._holder = this_holder()
        self._leaving = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Self:
        while not self._create():
            dead = self._wait_for_death()
            if dead is not None and self._take_over(dead):
                break
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving.set()
        self._heart.join()
        if self._is_ours():
            self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        try:
            # "x" is atomic; that the content follows a moment later only makes the others look again.
            with self.path.open("x", encoding="utf-8") as file:
                file.write(json.dumps(asdict(self._holder)))
        except FileExistsError:
            return False
        return True

    def _replace(self, holder: Holder) -> None:
        partial = self.path.with_name(f"{self.path.name}.{self._holder.token}")
        partial.write_text(json.dumps(asdict(holder)), encoding="utf-8")
        partial.replace(self.path)

    def _is_ours(self) -> bool:
        current = read_holder(self.path)
        return current is not None and current.token == self._holder.token

    def _wait_for_death(self) -> Holder | None:
        """Wait until the holder is surely dead and return it; None if it gave the lease back.

        Raises RunError as soon as the holder is known to live.
        """
        first, since = read_holder(self.path), time.monotonic()
        while self.path.exists():
            current = read_holder(self.path)
            survivors = self._survivors()
            if current is not None and current.is_here:
                if current.lives:
                    raise RunError(self._in_use(str(current)))
                if not survivors:
                    return current
            elif current != first and current is not None and first is not None:
                raise RunError(self._in_use(str(current)))
            if time.monotonic() - since > self._stale_seconds:
                if survivors:
                    raise RunError(self._in_use(", ".join(survivors)))
                return current or self._torn()
            first = first or current
            time.sleep(POLL_SECONDS)
        return None

    def _torn(self) -> Holder:
        """Return a stand-in for a holder that died before it had written its name."""
        return replace(self._holder, token="torn")

    def _take_over(self, dead: Holder) -> bool:
        """Put our name in the place of a dead holder's; return False if another process was faster."""
        claim = self.path.with_name(f"{self.path.name}.claim-{dead.token}")
        try:
            claim.touch(exist_ok=False)
        except FileExistsError:
            if time.time() - claim.stat().st_mtime > self._stale_seconds:
                claim.unlink(missing_ok=True)  # whoever claimed it has died over it
            time.sleep(POLL_SECONDS)
            return False
        try:
            # With the claim in hand nobody else can replace this very holder.
            current = read_holder(self.path)
            if current is not None and current.token != dead.token:
                return False
            self._replace(self._holder)
            logger.warning("took over the run from %s, which has died", dead)
            return True
        finally:
            claim.unlink(missing_ok=True)

    def _in_use(self, who: str) -> str:
        return f"{self.path.parent}: in use by {who}; stop it, or give this run another name"

    def _beat(self) -> None:
        while not self._leaving.wait(self._beat_seconds):
            if not self._is_ours():
                # This process slept for so long that it was taken for dead. Two runs must not write here.
                logger.critical("%s: lost to another run; ending", self.path)
                os._exit(1)
            self._holder = replace(self._holder, beat=self._holder.beat + 1)
            self._replace(self._holder)


def read_holder(path: Path) -> Holder | None:
    """Return who holds the lease, or None if nobody does, or the file is being written or damaged."""
    try:
        holder = Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    wrong = type(holder.pid) is not int or type(holder.beat) is not int or type(holder.started) is not float
    return None if wrong else holder
