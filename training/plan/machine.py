"""What memory there is on this machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from training.config import RunConfig
from training.plan.choose import nvme_space
from training.plan.plan import GIB, Ranks, Tiers

# Of the job that this process runs in: memory that it may use, in version 2 and 1 of control groups.
LIMITS = ("/sys/fs/cgroup{}/memory.max", "/sys/fs/cgroup/memory{}/memory.limit_in_bytes")


def tiers_here(config: RunConfig, ds_config: Mapping[str, Any], ranks: Ranks) -> Tiers:
    """Return the tiers of this machine, whose ranks are those of one node.

    A GPU's memory is `launch.gpu_memory_gib`, or that of the GPU that is here.
    """
    return Tiers(
        gpu=gpu_memory(config) if ranks.on_gpu else None, host=host_memory(), nvme=nvme_space(ds_config)
    )


def host_memory() -> int:
    """Return the bytes that a new process may take: what is available, and no more than the job is allowed."""
    available = int(psutil.virtual_memory().available)
    limits = [limit - used for limit, used in _limits()]
    return max(0, min([available, *limits]))


def _limits() -> list[tuple[int, int]]:
    """Return limit and use of the control groups that this process is in, from its own to the outermost."""
    found = []
    try:
        groups = Path("/proc/self/cgroup").read_text(encoding="ascii").split()
    except OSError:
        return []
    for line in groups:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        folder = Path(LIMITS[controllers == "memory"].format(group.rstrip("/")))
        used_name = "memory.usage_in_bytes" if controllers else "memory.current"
        for place in (folder, *(parent / folder.name for parent in folder.parent.parents)):
            limit, used = _number(place), _number(place.with_name(used_name))
            if limit is not None and used is not None:
                found.append((limit, used))
    return found


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there, or `max`
        return None


def gpu_memory(config: RunConfig) -> int | None:
    """Return the bytes of one GPU: as stated, else of the first that is here; None if that cannot be told."""
    if config.launch.gpu_memory_gib is not None:
        return int(config.launch.gpu_memory_gib * GIB)
    import torch  # takes two seconds, and only a node with GPUs has to spend them

    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None
