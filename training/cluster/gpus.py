"""What the nodes of a partition have, and how a job asks for its GPUs: on a login node, which has no GPUs to count."""

import os
import re
import subprocess
from dataclasses import dataclass

from data_tools.errors import RunError
from training.cluster.settings import SlurmConfig
from training.config import RunConfig

# Where Slurm is installed and no cluster configured, sinfo looks for one for a minute.
ANSWER_SECONDS = 10
# sinfo's form of a node's resources: gpu:h100:4(S:0-1),nvme:1 or (null)
GPU = re.compile(r"\bgpu:(?:[^:,()]+:)?(\d+)")


@dataclass(frozen=True, slots=True)
class Nodes:
    """The nodes that a job may get. gpus: the numbers of GPUs that a node has. cpus: the most that one has."""

    where: str
    number: int
    cpus: int
    gpus: frozenset[int]


def ask_nodes(partition: str | None) -> Nodes | None:
    """Return the nodes of a partition, or of the cluster; None where Slurm cannot be asked.

    Raises RunError if there is no such partition.
    """
    lines = _sinfo("--Node", "--format=%N|%c|%G", f"--partition={partition}" if partition else "--all")
    if lines is None:
        return None
    found = {name: (int(cpus), gres) for name, cpus, gres in (line.split("|") for line in lines)}
    if not found:
        if partition is None:
            return None
        there = sorted(set(_sinfo("--format=%R", "--all") or ()))
        raise RunError(f"slurm.partition: got {partition}; expected one of {', '.join(there)}")
    return Nodes(
        where=f"partition {partition}" if partition else "this cluster",
        number=len(found),
        cpus=max(cpus for cpus, _ in found.values()),
        gpus=frozenset(sum(map(int, GPU.findall(gres))) for _, gres in found.values()),
    )


def _sinfo(*options: str) -> list[str] | None:
    command = ["sinfo", "--noheader", *options]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=ANSWER_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return [line.strip() for line in found.stdout.splitlines()]


def gpu_option(slurm: SlurmConfig, nodes: Nodes | None) -> str | None:
    """Return the option of sbatch that asks for GPUs; None: none is asked for."""
    if slurm.gpus != "auto":
        return slurm.gpus
    there = max(nodes.gpus) > 0 if nodes is not None else os.environ.get("DS_ACCELERATOR") != "cpu"
    return "gpus-per-node" if there else None


def choose_gpus(config: RunConfig, nodes: Nodes | None) -> tuple[str | None, int]:
    """Return the option of sbatch that asks for GPUs (None: none is asked for) and the ranks of a node.

    Raises RunError where the nodes have fewer, or nobody says how many.
    """
    slurm = config.slurm
    option, wanted = gpu_option(slurm, nodes), config.launch.gpus_per_node
    if wanted is None:
        counts = nodes.gpus - {0} if nodes is not None else frozenset[int]()
        if option is None or len(counts) != 1:
            raise RunError(
                "launch.gpus_per_node: got null, which a login node cannot count; expected the number of GPUs of a "
                "node, or of CPU ranks"
            )
        (wanted,) = counts
    if option is None and slurm.gpu_type is not None:
        where = f": Slurm knows of none on the nodes of {nodes.where}" if nodes is not None else ""
        raise RunError(f"slurm.gpu_type: got {slurm.gpu_type} for a job without GPUs{where}; take it out")
    if option is not None and nodes is not None and wanted > (most := max(nodes.gpus)):
        hint = "; set slurm.gpus: null if it gives out whole nodes, or for CPU ranks" if most == 0 else ""
        raise RunError(
            f"launch.gpus_per_node: got {wanted}; expected at most the {most} that Slurm knows of on a node of "
            f"{nodes.where}{hint}"
        )
    return option, wanted


def check_nodes(slurm: SlurmConfig, nodes: Nodes | None, *, ranks_per_node: int) -> None:
    """Raise RunError for a job that would wait for ever: Slurm itself takes it."""
    if nodes is None:
        return
    if slurm.nodes + slurm.spare_nodes > nodes.number:
        spare = f" and slurm.spare_nodes {slurm.spare_nodes}" if slurm.spare_nodes else ""
        raise RunError(
            f"slurm.nodes: got {slurm.nodes}{spare}; expected at most the {nodes.number} nodes of {nodes.where}"
        )
    if slurm.cpus_per_task is not None and slurm.cpus_per_task * ranks_per_node > nodes.cpus:
        raise RunError(
            f"slurm.cpus_per_task: got {slurm.cpus_per_task} for each of {ranks_per_node} ranks of a node; expected at "
            f"most {nodes.cpus // ranks_per_node}: a node of {nodes.where} has {nodes.cpus} CPUs"
        )
