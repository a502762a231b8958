"""The folder of a run: what lies where, who may use it, what may change, and how it is stopped.

config.yaml  ds_config.json  environment.json   written at each start, read by the workers
state                                           done | stopped | failed | stuck, written at each end
STOP                                            asks all ranks to save and end
lease.json                                      the process that holds the folder
metrics.jsonl  logs/  tensorboard/  checkpoints/step-000100/
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import psutil

from data_tools.errors import RunError, ShardtuneError
from training.config import RunConfig, read_run_config, trained_base
from training.last_words import ORPHANED
from training.lease import STALE_SECONDS, Lease, process_lives, process_started

State = Literal["done", "stopped", "failed", "stuck"]

# Keys of run.yaml that may differ when a run goes on. All else decides about its numbers. Paths may differ
# where what lies there is the same, which is compared by fingerprint.
MAY_CHANGE = (
    "steps",
    "epochs",
    "launch",
    "slurm",
    "save",
    "log",
    "evaluate",
    "batch.micro_packs",
    "batch.sequence_parallel",
    "deepspeed",
    "max_bad_steps",
    "watchdog",
)
IDENTITY = ("shards_fingerprint", "model_config_sha256", "base_fingerprint")
COMPARED_BY_CONTENT = ("shards", "model", "runs")

# `host:pid:start` of the process that a rank must not outlive, set by whoever starts the ranks.
PARENT_VARIABLE = "SHARDTUNE_PARENT"
# Set by a job script that clears the folder before it starts the ranks, so that a STOP in between is heard.
CLEARED_VARIABLE = "SHARDTUNE_CLEARED"
WATCH_SECONDS = 0.5
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

PACKAGES = (
    "shardtune",
    "torch",
    "deepspeed",
    "transformers",
    "peft",
    "bitsandbytes",
    "numpy",
    "pyarrow",
    "safetensors",
    "tokenizers",
)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run folder, by its path; nothing is touched until a method is called."""

    path: Path

    @property
    def config_path(self) -> Path:
        """Return the resolved run, which the workers read."""
        return self.path / "config.yaml"

    @property
    def ds_config_path(self) -> Path:
        """Return the merged DeepSpeed configuration."""
        return self.path / "ds_config.json"

    @property
    def environment_path(self) -> Path:
        """Return the record of versions, machine and fingerprints of the last start."""
        return self.path / "environment.json"

    @property
    def checkpoints(self) -> Path:
        """Return the folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """Return the folder of the ranks' output."""
        return self.path / "logs"

    @property
    def stop_path(self) -> Path:
        """Return the file whose presence asks the run to save and end."""
        return self.path / "STOP"

    def stop_requested(self) -> bool:
        """Return whether a stop was asked for. Ranks may see it at different steps: let them agree."""
        return self.stop_path.exists()

    def request_stop(self) -> None:
        """Ask the run to save and end after the step it is at."""
        self.stop_path.touch()

    def clear_stop(self) -> None:
        """Forget a request to stop that was made of an earlier start."""
        self.stop_path.unlink(missing_ok=True)

    @property
    def state(self) -> State | None:
        """Return how the last start ended; None while it runs, or if it died without a word."""
        try:
            text = (self.path / "state").read_text(encoding="ascii", errors="replace").strip()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return text if text in ("done", "stopped", "failed", "stuck") else None  # type: ignore[return-value]

    def write_state(self, state: State) -> None:
        """Write how this start ended; atomic."""
        partial = self.path / "state.partial"
        partial.write_text(f"{state}\n", encoding="ascii")
        partial.replace(self.path / "state")

    def clear_state(self) -> None:
        """Remove what tells how the last start ended, as a new one begins."""
        (self.path / "state").unlink(missing_ok=True)
        self._mistake_path.unlink(missing_ok=True)

    @property
    def mistake(self) -> str | None:
        """Return what a rank of this start found to be the user's mistake, if one did."""
        try:
            return self._mistake_path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def write_mistake(self, error: ShardtuneError) -> None:
        """Leave a mistake of the user's, found by a rank, for the process that started the ranks.

        A rank's exit code does not get there: the launcher may pass on that of a rank that was cut off.
        """
        partial = self._mistake_path.with_name(f"mistake.{os.getpid()}")
        partial.write_text(str(error), encoding="utf-8")
        partial.replace(self._mistake_path)

    @property
    def _mistake_path(self) -> Path:
        return self.logs / "mistake"

    @property
    def newest_checkpoint(self) -> Path | None:
        """Return the folder of the newest finished checkpoint."""
        done = [path.parent for path in self.checkpoints.glob("step-*/DONE")]
        return max(done, key=lambda folder: int(folder.name[5:]), default=None)

    def has_checkpoint(self) -> bool:
        """Return whether there is a finished checkpoint to go on from."""
        return self.newest_checkpoint is not None

    def lease(self, *, stale_seconds: float = STALE_SECONDS) -> Lease:
        """Return the folder's lease, to be used in a `with`; raises RunError there if it is in use."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"runs: {self.path}: cannot be made: {error.strerror}; choose another place"
            ) from None
        return Lease(self.path / "lease.json", survivors=self._survivors, stale_seconds=stale_seconds)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the lease, with what is left of the last start's ending cleared away: STOP and state."""
        with self.lease():
            self.clear_stop()
            self.clear_state()
            yield

    def _survivors(self) -> list[str]:
        """Return the processes on this machine that were started with this run's config, other than ours."""
        ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
        argument = str(self.config_path)
        return [
            f"process {process.pid}"
            for process in psutil.process_iter(["cmdline"])
            if process.pid not in ours and _runs_module_with(argument, process.info["cmdline"] or [])
        ]

    def prepare(self, config: RunConfig, ds_config: Mapping[str, Any], *, shards_fingerprint: str) -> None:
        """Write what the workers read, after checking that the run may go on with it.

        Call it with the lease held. Raises RunError, naming every key that has changed and may not.
        """
        self.check_unchanged(config, shards_fingerprint=shards_fingerprint)
        self.logs.mkdir(exist_ok=True)
        config.write(self.config_path)
        _write_json(self.ds_config_path, ds_config)
        identity = {
            "shards_fingerprint": shards_fingerprint,
            "model_config_sha256": _model_hash(config),
            "base_fingerprint": trained_base(config),
        }
        _write_json(self.environment_path, identity | describe_environment())

    def _identity(self) -> dict[str, str]:
        """Return what environment.json says of the shards and the model that the run was made with. Raises RunError."""
        try:
            kept = json.loads(self.environment_path.read_text(encoding="utf-8"))
            return {name: str(kept[name]) for name in IDENTITY}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{self.environment_path}: is damaged: {type(error).__name__}: {error}; the run cannot go on without "
                "it; put it back, or give the new run another name"
            ) from None

    def check_unchanged(self, config: RunConfig, *, shards_fingerprint: str) -> None:
        """Raise RunError if the run has checkpoints made with settings, shards or a model that differ."""
        if not self.has_checkpoint():
            return
        before = self._identity()
        mistakes = [
            f"{key}: got {new}; the run was made with {old}"
            for key, old, new in changed_keys(read_run_config(self.config_path), config)
        ]
        if before["shards_fingerprint"] != shards_fingerprint:
            mistakes.append(
                f"shards: {config.shards} holds other packs than the run was made with: got fingerprint "
                f"{shards_fingerprint[:12]}; expected {before['shards_fingerprint'][:12]}"
            )
        if before["model_config_sha256"] != _model_hash(config):
            mistakes.append(f"model: the config.json in {config.model} is not the one the run was made with")
        elif before["base_fingerprint"] != trained_base(config):
            mistakes.append(
                f"model: {config.model} holds other weights than those beside which the run was trained"
            )
        if mistakes:
            listed = "\n".join(f"  {mistake}" for mistake in mistakes)
            raise RunError(
                f"{self.path}: cannot go on with other settings:\n{listed}\n"
                f"  only {', '.join(MAY_CHANGE)} may change; undo it, or give the new run another name"
            )


def _runs_module_with(argument: str, command: list[str]) -> bool:
    """Return whether a command line is a launcher's or a rank's, not an editor's that has the file open, nor srun's."""
    runs_module = "-m" in command or "--module" in command
    return argument in command and runs_module and Path(command[0]).name != "srun"


def changed_keys(old: RunConfig, new: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, old value, new value) for each setting that differs and may not."""
    before, after = flatten(old.model_dump(mode="json")), flatten(new.model_dump(mode="json"))
    for key in {**before, **after}:
        free = any(key == allowed or key.startswith(f"{allowed}.") for allowed in MAY_CHANGE)
        if not free and key not in COMPARED_BY_CONTENT and before.get(key) != after.get(key):
            yield key, before.get(key), after.get(key)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one mapping, `optim.lr` to value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _model_hash(config: RunConfig) -> str:
    return hashlib.sha256((config.model / "config.json").read_bytes()).hexdigest()


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def describe_environment() -> dict[str, Any]:
    """Return what a reader of an old run wants to know of the place it ran in; no environment variables."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "host": socket.gethostname(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "packages": versions,
    }


# --- ranks that were not started by `shardtune train` ------------------------------------------------------


@contextmanager
def worker_lease(run: RunFolder, *, rank: int) -> Iterator[None]:
    """Hold the lease in rank 0 where srun or torchrun started the ranks; nothing below `shardtune train`.

    Clears an old STOP and the old state, unless the job script has. Raises RunError if the folder is in use.
    """
    if rank != 0 or PARENT_VARIABLE in os.environ:
        yield
        return
    with Lease(run.path / "lease.json"):
        if CLEARED_VARIABLE not in os.environ:
            run.clear_stop()
            run.clear_state()
        yield


# --- endings -----------------------------------------------------------------------------------------------


def on_stop_signals(action: Callable[[int], None]) -> Callable[[], None]:
    """Call `action` for each SIGINT, SIGTERM and SIGUSR1 from now on; return what undoes it."""

    def handle(number: int, _: FrameType | None) -> None:
        action(number)

    before = {number: signal.signal(number, handle) for number in STOP_SIGNALS}

    def undo() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return undo


def parent_variable() -> str:
    """Return the value of PARENT_VARIABLE that ties processes to this one."""
    return f"{socket.gethostname()}:{os.getpid()}:{process_started(os.getpid())}"


def watch_parent(poll_seconds: float = WATCH_SECONDS) -> threading.Thread:
    """End this process at once when its parent, or the process named in PARENT_VARIABLE, has ended.

    A rank whose launcher was killed would otherwise wait in a collective for ever, holding its GPU.
    """
    parent = os.getppid()
    host, _, rest = os.environ.get(PARENT_VARIABLE, "").partition(":")
    pid, _, started = rest.partition(":")

    def orphaned() -> bool:
        if os.getppid() != parent:
            return True
        return bool(pid) and host == socket.gethostname() and not process_lives(int(pid), float(started))

    def watch() -> None:
        while not orphaned():
            time.sleep(poll_seconds)
        sys.stderr.write(f"{ORPHANED}; ending too\n")
        sys.stderr.flush()
        os._exit(1)

    thread = threading.Thread(target=watch, name="watch-parent", daemon=True)
    thread.start()
    return thread
