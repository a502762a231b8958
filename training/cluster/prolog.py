"""What a job does on each of its nodes before the ranks start: `python -m training.cluster.prolog RUN_FOLDER RANKS`.

In a second or two, without torch: the run's folder is cleared of what the last start left, what can be known to be
wrong with the node is said in a line that names it, and DeepSpeed's ops are built where they are missing.
"""

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_tools.errors import RunError, ShardtuneError
from training.config import RunConfig, read_run_config
from training.ds_config import nvme_folder, read_ds_config
from training.events import record_event
from training.nodes import node_name
from training.ops import CACHE_VARIABLE, cache_folder, ensure_ops, needed_ops, path_to_ninja
from training.run_folder import RunFolder

# DeepSpeed's CPU ranks reduce in a buffer of 66 MiB each in shared memory; NCCL's ranks on a node use less.
SHARED_MIB_PER_RANK = 68
SHARED_MEMORY = Path("/dev/shm")
GPU_FILES = ("nvidia[0-9]*", "dri/renderD*")


def node_mistakes(
    run: RunFolder, config: RunConfig, ds_config: dict[str, Any], *, ranks: int
) -> Iterator[str]:
    """Yield what is wrong with this node for so many ranks of the run."""
    probe = run.path / f".probe-{node_name()}"
    try:
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        yield f"{run.path}: cannot be written: {error.strerror}; put runs on a disk that all nodes share"
    for what, path in (("shards", config.shards / "index.json"), ("model", config.model / "config.json")):
        if not path.is_file():
            yield f"{what}: {path}: is not there; put it on a disk that all nodes share"
    free = shutil.disk_usage(SHARED_MEMORY).free >> 20
    if free < ranks * SHARED_MIB_PER_RANK:
        yield (
            f"{SHARED_MEMORY}: too full: got {free} MiB free; expected {ranks * SHARED_MIB_PER_RANK} for {ranks} "
            "ranks; remove what killed jobs have left there, or give the container more"
        )
    gpus = visible_gpus()
    if gpus is not None and gpus < ranks:
        yield (
            f"launch.gpus_per_node: got {ranks}; expected at most the {gpus} GPUs that Slurm gave this job here; "
            "look at slurm.gpus"
        )
    try:
        with nvme_folder(ds_config) as folders:
            for folder in folders:
                (folder / "probe").write_text("")
    except OSError as error:
        yield f"nvme_path: {error.filename}: cannot be written: {error.strerror}; name a folder on the node's own disk"
    except RunError as error:
        yield str(error)


def visible_gpus() -> int | None:
    """Return how many GPUs this job may use here; None on a node whose ranks run on its CPU."""
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return None
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return len([name for name in named.split(",") if name.strip()])
    return max(len(list(Path("/dev").glob(pattern))) for pattern in GPU_FILES)


def prepare_node(run: RunFolder, *, ranks: int) -> None:
    """Make this node ready for the ranks, and the run's folder too if this is the job's first node.

    Raises RunError with everything that is wrong, each line beginning with the node's name.
    """
    if os.environ.get("SLURM_PROCID", "0") == "0":
        with run.hold():  # waits for the lease of a start that is dying; refuses a run that is in use
            pass
    config = read_run_config(run.config_path)
    ds_config = read_ds_config(run.ds_config_path)
    mistakes = list(node_mistakes(run, config, ds_config, ranks=ranks))
    if mistakes:
        raise RunError("\n".join(f"{node_name()}: {mistake}" for mistake in mistakes))
    env = {**os.environ, CACHE_VARIABLE: str(cache_folder()), "PATH": path_to_ninja()}
    ensure_ops(needed_ops(ds_config, on_gpu=visible_gpus() is not None), env)


def main(arguments: list[str]) -> int:
    """Prepare a node; return the exit code: 2 for what the user has to see to."""
    logging.basicConfig(level=logging.INFO, format=f"{node_name()}: %(message)s")
    run = RunFolder(Path(arguments[0]))
    try:
        prepare_node(run, ranks=int(arguments[1]))
    except ShardtuneError as error:
        print(error, file=sys.stderr)
        record_event(run.path, "failed", host=node_name(), error=str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
