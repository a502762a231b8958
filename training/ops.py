"""DeepSpeed's C++ ops: where their builds are kept, and building them once before the ranks start.

DeepSpeed compiles an op when a rank first needs it, all ranks racing for one lock file that a killed process
leaves behind for ever. `python -m training.ops BUILDER …` is the process that does the compiling.
"""

import fcntl
import hashlib
import importlib.metadata
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data_tools.errors import RunError
from training.ds_config import offload_device

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "TORCH_EXTENSIONS_DIR"
# Loading an op that is built holds torch's lock file for a second or two. One that is older than this, and
# that no process here has open, was left behind (torch keeps it open as long as it holds it).
STALE_LOCK_SECONDS = 20.0
TELL_SECONDS = 30.0  # how often it is said that the compiler is still at work


def cache_folder() -> Path:
    """Return the folder of built ops: TORCH_EXTENSIONS_DIR, else one for these packages and this CPU.

    It is below SHARDTUNE_CACHE, by which a job keeps it on each node's own disk, else below the user's cache.

    Versions and the place of the packages are in its path because torch rebuilds in place what another
    environment has built, even from the same sources; the CPU, because the ops are compiled for that very one.
    """
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    cache = Path(os.environ.get("SHARDTUNE_CACHE") or user_cache())
    versions = (
        f"py{sys.version_info.major}{sys.version_info.minor}-torch{importlib.metadata.version('torch')}"
        f"-deepspeed{importlib.metadata.version('deepspeed')}"
        f"-{hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]}-{platform.machine()}-{_cpu_hash()}"
    )
    return cache / "ops" / versions


def user_cache() -> Path:
    """Return the folder that holds this program's files that can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shardtune"


def path_to_ninja() -> str:
    """Return PATH with this interpreter's folder first, where `ninja` was installed along with the package.

    Without it an environment that is not activated has no ninja, or the system's: then starts build all ops
    again in turns, because versions of ninja do not accept each other's logs.
    """
    here = str(Path(sys.executable).parent)
    rest = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder != here]
    return os.pathsep.join([here, *rest])


def _cpu_hash() -> str:
    """Return a short hash of what the compiler makes of `-march=native` here: the CPU's feature flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:8]


def needed_ops(ds_config: Mapping[str, Any], *, on_gpu: bool) -> list[str]:
    """Return the names of DeepSpeed's builders that a run with this configuration loads."""
    devices = (offload_device(ds_config, "optimizer"), offload_device(ds_config, "param"))
    builders = [] if on_gpu else ["ShareMemCommBuilder"]
    if devices[0] != "none":
        builders.append("CPUAdamBuilder")
    if "nvme" in devices:
        builders.append("AsyncIOBuilder")
    return builders


def ensure_ops(builders: Sequence[str], env: Mapping[str, str]) -> None:
    """Build the ops that are not in the cache yet; `env` is that of the ranks, with TORCH_EXTENSIONS_DIR.

    Raises RunError with the compiler's last lines.
    """
    folder = Path(env[CACHE_VARIABLE])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{folder}: DeepSpeed's ops cannot be kept here: {error.strerror}; set SHARDTUNE_CACHE to a folder that "
            "can be written to"
        ) from None
    if not _missing(folder, builders):  # nobody waits while another run builds what this one does not need
        clear_stale_locks(folder, wait_for_held=False)
        return
    with _locked(folder / "build.lock"):
        clear_stale_locks(folder)
        missing = _missing(folder, builders)
        if not missing:
            return
        for number, name in enumerate(missing, 1):
            logger.info(
                "building DeepSpeed's %s (%d of %d), once for this kind of node; takes a minute or two",
                _short(name),
                number,
                len(missing),
            )
            _build(name, folder, env)
            _mark(folder, name).touch()


def _build(builder: str, folder: Path, env: Mapping[str, str]) -> None:
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "training.ops", builder],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            while True:
                try:
                    output, _ = process.communicate(timeout=TELL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    logger.info("still building it, %.0f s so far", time.monotonic() - began)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise RunError(
            f"{folder}: DeepSpeed's {_short(builder)} cannot be built here; needs a C++ compiler, the headers of "
            f"Python{' and libaio' if builder == 'AsyncIOBuilder' else ''}; the last lines:\n"
            + "\n".join(output.splitlines()[-20:])
        )


def _missing(folder: Path, builders: Sequence[str]) -> list[str]:
    return [name for name in builders if not _mark(folder, name).exists()]


def _mark(folder: Path, builder: str) -> Path:
    return folder / f"{builder}.built"


def _short(builder: str) -> str:
    return builder.removesuffix("Builder")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        with suppress(OSError):  # some network file systems have no locks: two builds are slow, not wrong
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def clear_stale_locks(folder: Path, *, wait_for_held: bool = True) -> None:
    """Remove lock files that torch left behind when a process was killed; wait for those that are held, or pass by."""
    for lock in folder.glob("*/lock"):
        while (age := _age(lock)) is not None and (wait_for_held or not _is_open(lock)):
            if age > STALE_LOCK_SECONDS and not _is_open(lock):
                logger.warning("%s: left behind by a killed process; removed", lock)
                lock.unlink(missing_ok=True)
                break
            time.sleep(0.2)


def _age(path: Path) -> float | None:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None


def _is_open(path: Path) -> bool:
    """Return whether a process of this user on this machine has the file open."""
    target = str(path.resolve())
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if str(descriptor.readlink()) == target:
                return True
    return False


def build(builders: Sequence[str]) -> None:
    """Compile and load ops, by the names of DeepSpeed's builders for this accelerator."""
    from deepspeed.accelerator import get_accelerator

    for name in builders:
        builder = get_accelerator().create_op_builder(name)
        # Where this op is unknown or does not fit the node, DeepSpeed does without shared memory.
        if name == "ShareMemCommBuilder" and (builder is None or not builder.is_compatible()):
            continue
        builder.load()


if __name__ == "__main__":
    build(sys.argv[1:])
