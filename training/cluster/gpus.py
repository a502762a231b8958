"""How a job asks for its GPUs, and how many ranks a node gets: on a login node, which has no GPUs to count."""

import os
import re
import subprocess

from data_tools.errors import RunError
from training.cluster.settings import SlurmConfig
from training.config import RunConfig

# Where Slurm is installed and no cluster configured, sinfo looks for one for a minute.
ANSWER_SECONDS = 10
# sinfo's form of a node's resources: gpu:h100:4(S:0-1),nvme:1 or (null)
GPU = re.compile(r"\bgpu:(?:[^:,()]+:)?(\d+)")


def partition_gpus(partition: str | None) -> set[int] | None:
    """Return the numbers of GPUs that nodes of a partition have; None where Slurm cannot be asked."""
    command = ["sinfo", "--noheader", "--format=%G", *([f"--partition={partition}"] if partition else [])]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=ANSWER_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = found.stdout.splitlines()
    return {sum(map(int, GPU.findall(line))) for line in lines} or None


def gpu_option(slurm: SlurmConfig, listed: set[int] | None) -> str | None:
    """Return the option of sbatch that asks for GPUs; None: none is asked for. `listed`: see partition_gpus."""
    if slurm.gpus != "auto":
        return slurm.gpus
    there = max(listed) > 0 if listed is not None else os.environ.get("DS_ACCELERATOR") != "cpu"
    return "gpus-per-node" if there else None


def choose_gpus(config: RunConfig, listed: set[int] | None) -> tuple[str | None, int]:
    """Return the option of sbatch that asks for GPUs (None: none is asked for) and the ranks of a node.

    `listed`: see partition_gpus. Raises RunError where the nodes have fewer, or nobody says how many.
    """
    option, wanted = gpu_option(config.slurm, listed), config.launch.gpus_per_node
    most = max(listed) if listed is not None else None
    if wanted is None:
        counts = (listed or set()) - {0}
        if option is None or len(counts) != 1:
            raise RunError(
                "launch.gpus_per_node: got null, which a login node cannot count; expected the number of GPUs of a "
                "node, or of CPU ranks"
            )
        wanted = counts.pop()
    if option is not None and most is not None and wanted > most:
        where = f"partition {config.slurm.partition}" if config.slurm.partition else "this cluster"
        hint = "; set slurm.gpus: null if it gives out whole nodes, or for CPU ranks" if most == 0 else ""
        raise RunError(
            f"launch.gpus_per_node: got {wanted}; expected at most the {most} that Slurm knows of on a node of "
            f"{where}{hint}"
        )
    return option, wanted
