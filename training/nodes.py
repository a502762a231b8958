"""The names of nodes as the batch system knows them, and the list of those that a run should do without."""

import os
import socket
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

BAD_NODES = "bad_nodes"


def node_name() -> str:
    """Return this node's name: Slurm's own for it inside a job, else the host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def step_hosts(env: Mapping[str, str]) -> list[str]:
    """Return the nodes of this Slurm step in order; none where Slurm does not say them, or cannot be asked."""
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST")
    if nodes is None:
        return []
    try:
        listed = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=20
        )
    except (
        OSError,
        subprocess.TimeoutExpired,
    ):  # a container without Slurm's commands; a controller that is away
        return []
    return listed.stdout.split() if listed.returncode == 0 else []


def host_of_rank(rank: int, world_size: int, env: Mapping[str, str]) -> str | None:
    """Return the node that a rank of this step was to start on; None if it cannot be told.

    Ranks lie in blocks of equal size on the nodes of the step, as train.sbatch has srun put them.
    """
    hosts = step_hosts(env)
    return hosts[rank * len(hosts) // world_size] if hosts and rank < world_size else None


def read_bad_nodes(run_folder: Path) -> list[str]:
    """Return the nodes that the run should do without."""
    try:
        return (run_folder / BAD_NODES).read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return []


def add_bad_nodes(run_folder: Path, hosts: Iterable[str]) -> None:
    """Append nodes to those that the run should do without, one a line; the batch script leaves them out."""
    new = [host for host in dict.fromkeys(hosts) if host not in read_bad_nodes(run_folder)]
    if new:
        with (run_folder / BAD_NODES).open("a", encoding="utf-8") as file:
            file.write("".join(f"{host}\n" for host in new))
