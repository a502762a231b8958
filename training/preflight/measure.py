"""What is measured on the nodes: disks, memory, computing, the links between ranks; plain numbers, judged elsewhere."""

import os
import platform
import shutil
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from training.distributed import World
from training.nodes import node_name

SHARED_MEMORY = Path("/dev/shm")
DISK_BYTES = 64 * 2**20
LINK_BYTES = 16 * 2**20
MATRIX = 1024
REPEATS = 5
DRIVER = Path("/proc/driver/nvidia/version")


def versions() -> dict[str, str]:
    """Return the versions that must be the same on all ranks, of what each of them really imports."""
    found = {name: _version(name) for name in ("torch", "deepspeed", "transformers", "shardtune")}
    driver = DRIVER.read_text(encoding="utf-8").splitlines()[0] if DRIVER.exists() else "none"
    return {"python": platform.python_version(), **found, "GPU driver": driver}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def memory() -> dict[str, float]:
    """Return bytes that are free on this node and on this rank's device, and the size of /dev/shm with what is free."""
    shared = shutil.disk_usage(SHARED_MEMORY)
    found = {
        "host": float(psutil.virtual_memory().available),
        "shm": float(shared.total),
        "shm free": float(shared.free),
    }
    if get_accelerator().device_name() != "cpu":
        found["device"] = float(get_accelerator().available_memory())
    return found


def disk_speed(folder: Path, rank: int) -> dict[str, float]:
    """Write a file of 64 MiB through to the disk, read it back, remove it; return bytes a second. Raises OSError."""
    path = folder / f"check-{node_name()}-{rank}"
    block = os.urandom(2**20)
    try:
        start = time.perf_counter()
        with path.open("wb") as file:
            for _ in range(DISK_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            # Else reading would only look at the page cache.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        written = time.perf_counter()
        with path.open("rb") as file:
            while file.read(len(block)):
                pass
        read = time.perf_counter()
    finally:
        path.unlink(missing_ok=True)
    return {"write": DISK_BYTES / (written - start), "read": DISK_BYTES / (read - written)}


def compute_speed() -> float:
    """Return the operations a second of this rank alone, in the best of some products of matrices."""
    device = get_accelerator().current_device_name()
    on_gpu = get_accelerator().device_name() != "cpu"
    size = 8 * MATRIX if on_gpu else MATRIX
    matrix = torch.ones(size, size, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        matrix @ matrix
        get_accelerator().synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def all_reduce_speed(world: World) -> float:
    """Return the bytes a second of an all-reduce of 64 MiB: size x 2 (N - 1) / N / time, as NCCL's tests reckon."""
    values = torch.zeros(DISK_BYTES // 4, device=get_accelerator().current_device_name())
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        dist.all_reduce(values)
        get_accelerator().synchronize()
        seconds.append(time.perf_counter() - start)
    return DISK_BYTES * 2 * (world.size - 1) / world.size / min(seconds)


def link_speeds(world: World) -> dict[int, float]:
    """Return this rank's bytes a second with the ranks before and after it, one pair at a time for each rank.

    Two rounds: pairs (0, 1), (2, 3), …, then (1, 2), (3, 4), …; a rank without a partner in a round sits it out.
    """
    found = {}
    for first in (0, 1):
        low = world.rank - (world.rank - first) % 2
        other = low + 1 if world.rank == low else low
        if low >= first and other < world.size:
            found[other] = _exchange(other, sends_first=world.rank == low)
        dist.barrier(device_ids=None if dist.get_backend() == "gloo" else [world.local_rank])
    return found


def _exchange(other: int, *, sends_first: bool) -> float:
    values = torch.zeros(LINK_BYTES // 4, device=get_accelerator().current_device_name())
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for sending in (sends_first, not sends_first):
            dist.send(values, other) if sending else dist.recv(values, other)
        get_accelerator().synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * LINK_BYTES / min(seconds)


def slowest(values: Mapping[int, float], factor: float) -> dict[int, float]:
    """Return the ranks whose speed is less than the median by more than `factor`, and by how much.

    Of two the faster one counts as usual: the nodes of a job are of one kind.
    """
    ordered = sorted(values.values())
    median = ordered[len(ordered) // 2]
    return {rank: median / value for rank, value in values.items() if value * factor < median}
