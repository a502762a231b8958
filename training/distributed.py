"""Rank, world size and rendezvous, from whatever started this process; and the few collectives we use.

The deepspeed launcher and torchrun set RANK and its companions; srun sets SLURM_*; nobody sets anything for a
single process. DeepSpeed itself would look for MPI in the last two cases and die without mpi4py.
"""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from data_tools.errors import RunError
from training.ops import CACHE_VARIABLE, cache_folder, path_to_ninja

# A rank may wait this long for another one that writes a checkpoint or reads a model from a slow disk.
TIMEOUT = timedelta(minutes=30)
RENDEZVOUS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among the processes of the run.

    `sequence_size` neighbouring ranks share a row. Example, 4 ranks, 2 to a row: ranks 2 and 3 are data_rank 1 of 2,
    and have pieces 0 and 1 of its rows.
    """

    rank: int
    size: int
    local_rank: int
    sequence_size: int = 1

    @property
    def is_main(self) -> bool:
        """Return whether this is the rank that writes what is written once."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Return which share of the rows this rank works on, of `data_size`."""
        return self.rank // self.sequence_size

    @property
    def data_size(self) -> int:
        """Return how many shares the rows of a step are dealt into."""
        return self.size // self.sequence_size

    @property
    def sequence_rank(self) -> int:
        """Return which piece of each of its rows this rank has, of `sequence_size`."""
        return self.rank % self.sequence_size


def rendezvous_from(env: Mapping[str, str]) -> dict[str, str]:
    """Return RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT as this environment implies them.

    Raises RunError where they are set in part, or where Slurm does not say which hosts take part.
    """
    given = {key: env[key] for key in RENDEZVOUS if key in env}
    if "RANK" in given:
        missing = [key for key in RENDEZVOUS if key not in given]
        if missing:
            raise RunError(
                f"environment: RANK is set without {', '.join(missing)}; expected all of "
                f"{', '.join(RENDEZVOUS)}; do: start through shardtune train, torchrun or srun"
            )
        return given
    # SLURM_STEP_ID tells srun's tasks from the batch script's own shell, which has SLURM_PROCID too.
    if "SLURM_PROCID" in env and "SLURM_STEP_ID" in env:
        size = env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or "1"
        found = {"RANK": env["SLURM_PROCID"], "WORLD_SIZE": size, "LOCAL_RANK": env.get("SLURM_LOCALID", "0")}
        return found | {
            "MASTER_ADDR": given.get("MASTER_ADDR") or _first_host(env),
            "MASTER_PORT": given.get("MASTER_PORT") or str(_slurm_port(env)),
        }
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    # Port 0: the only process is the server and takes any free port.
    return alone | {"MASTER_PORT": "0"} | given


def _first_host(env: Mapping[str, str]) -> str:
    """Return the host of rank 0. SLURM_LAUNCH_NODE_IPADDR would not do: it may be the login node."""
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST")
    if nodes is None:
        raise RunError("environment: Slurm names no nodes: expected SLURM_JOB_NODELIST; or set MASTER_ADDR")
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RunError(f"{' '.join(command)}: failed: {error}; do: set MASTER_ADDR and MASTER_PORT") from None
    return result.stdout.split()[0]


def _slurm_port(env: Mapping[str, str]) -> int:
    """Return a port that all ranks derive alike, below the range that systems give out by themselves."""
    job, step = int(env.get("SLURM_JOB_ID", "0")), int(env.get("SLURM_STEP_ID", "0"))
    return 15000 + (job + 101 * step) % 15000


def find_world() -> World:
    """Return this process's place among those that were started with it.

    Sets the environment variables that DeepSpeed and its ops read. May be called again. Raises RunError.
    """
    found = rendezvous_from(os.environ)
    os.environ.update(found, PATH=path_to_ninja())
    os.environ.setdefault(CACHE_VARIABLE, str(cache_folder()))
    return World(int(found["RANK"]), int(found["WORLD_SIZE"]), int(found["LOCAL_RANK"]))


def init_world() -> World:
    """Find this process's place, and join the process group; return the place. Raises RunError."""
    world = find_world()
    join(world)
    return world


def join(world: World, timeout: timedelta = TIMEOUT) -> None:
    """Join the process group (nccl on GPUs, gloo on CPU); a collective may take as long as `timeout`."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    if accelerator.device_name() != "cpu":
        accelerator.set_device(world.local_rank)
    deepspeed.init_distributed(
        dist_backend=accelerator.communication_backend_name(), auto_mpi_discovery=False, timeout=timeout
    )
    assert (dist.get_rank(), dist.get_world_size()) == (world.rank, world.size)
    if accelerator.device_name() == "cpu":
        barrier()
        _forget_shared_memory(world, os.environ)


def _forget_shared_memory(world: World, rendezvous: Mapping[str, str]) -> None:
    """Take away the name of the buffer in which DeepSpeed's CPU ranks reduce, once all of them have opened it.

    It lives on while they use it. DeepSpeed 0.19.8 never removes it: each run would leave 66 MiB a rank in memory.
    """
    where = f"{os.getuid()}_{rendezvous['MASTER_ADDR']}_{rendezvous['MASTER_PORT']}_{world.rank}"
    Path(f"/dev/shm/deepspeed_allreduce_buffer_{where}").unlink(missing_ok=True)


def all_sum(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of `values` over all ranks, as a new tensor on the same device."""
    return _all_reduce(values, dist.ReduceOp.SUM)


def all_max(value: float) -> float:
    """Return the largest of the ranks' values; for a flag, whether any rank has it set."""
    return float(_all_reduce(torch.tensor(float(value), dtype=torch.float64), dist.ReduceOp.MAX))


def compare_ranks(*flags: bool, seconds: float, world: World) -> tuple[tuple[bool, ...], list[float]]:
    """Return for each flag whether any rank has it set, and the `seconds` of each rank, in one reduction."""
    # In its own place each rank is the largest: the others have 0 there.
    own = [seconds if rank == world.rank else 0.0 for rank in range(world.size)]
    values = torch.tensor([*map(float, flags), *own], dtype=torch.float64)
    found = _all_reduce(values, dist.ReduceOp.MAX).tolist()
    return tuple(map(bool, found[: len(flags)])), found[len(flags) :]


def first_words(words: str, world: World) -> str:
    """Return what the first rank that has something to say says; "" if none has. At most 500 bytes of it."""
    rank = world.size - int(all_max(world.size - world.rank if words else 0))
    if rank == world.size:
        return ""
    letters = words.encode()[:500] if world.rank == rank else b""
    said = all_sum(torch.tensor(list(letters.ljust(500, b"\0")), dtype=torch.uint8))
    return bytes(said.tolist()).rstrip(b"\0").decode(errors="replace")


def barrier() -> None:
    """Wait until every rank is here."""
    # By a reduction and not dist.barrier(), which on nccl guesses its device and may guess wrong.
    all_max(0.0)


def _all_reduce(values: torch.Tensor, operation: dist.ReduceOp.RedOpType) -> torch.Tensor:
    from deepspeed.accelerator import get_accelerator

    on_device = values.detach().clone()
    if dist.get_backend() == "nccl":
        on_device = on_device.to(get_accelerator().current_device_name())
    dist.all_reduce(on_device, op=operation)
    return on_device.to(values.device)
