"""Starting a run on this machine: the checks, the run folder, and the launcher's command line.

This process holds the lease on the run folder for as long as the run lasts; supervise.py keeps the ranks.
"""

import base64
import json
import logging
import os
import shlex
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.errors import RunError, ShardtuneError
from training.config import RunConfig, check_run
from training.done import nothing_left
from training.ds_config import build_ds_config, nvme_folder, read_ds_file
from training.events import record_event
from training.nvme_checks import nvme_mistakes
from training.ops import CACHE_VARIABLE, cache_folder, ensure_ops, needed_ops, path_to_ninja
from training.plan.choose import resolve_micro_packs
from training.plan.machine import tiers_here
from training.plan.plan import Ranks
from training.run_folder import PARENT_VARIABLE, RunFolder, parent_variable
from training.supervise import EXIT_DONE, EXIT_STOPPED, Supervisor, exit_code, stopped_by_signals

if TYPE_CHECKING:
    from data_tools.shards import Shards

logger = logging.getLogger(__name__)

WORKER = "training.train"
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


@dataclass(frozen=True, slots=True)
class Devices:
    """What the ranks of this node run on; without a GPU the ids are the numbers of the CPU ranks."""

    ids: tuple[str, ...]
    on_gpu: bool

    @property
    def num_ranks(self) -> int:
        """Return the number of ranks: one for each device."""
        return len(self.ids)


def find_devices(config: RunConfig) -> Devices:
    """Return the GPUs to use, or CPU ranks where there are none. Raise RunError if there are too few GPUs."""
    wanted = config.launch.gpus_per_node
    gpus = visible_gpus()
    if not gpus:
        return Devices(tuple(str(index) for index in range(wanted or 1)), on_gpu=False)
    if wanted is not None and wanted > len(gpus):
        raise RunError(
            f"launch.gpus_per_node: got {wanted}; expected at most the {len(gpus)} GPUs of this node"
        )
    return Devices(gpus[:wanted], on_gpu=True)


def visible_gpus() -> tuple[str, ...]:
    """Return the ids of the GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not any(Path(path).exists() for path in GPU_DEVICES):
        return ()
    import torch  # takes two seconds, and only a node with GPUs has to spend them

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple(named or map(str, range(count)))[:count]


def launcher_command(run: RunFolder, devices: Devices, *, module: str = WORKER) -> list[str]:
    """Return the command line of DeepSpeed's launcher on this node, which starts one process a device.

    It is the line that the command `deepspeed` itself runs on a node. That command on top of it would use a
    host file that happens to lie about, count GPUs from 0 although CUDA_VISIBLE_DEVICES gives out others, and
    not understand the names of GPU slices there.
    """
    world = base64.urlsafe_b64encode(json.dumps({"localhost": devices.ids}).encode()).decode()
    return [
        *(sys.executable, "-u", "-m", "deepspeed.launcher.launch"),
        *(f"--world_info={world}", "--master_addr=127.0.0.1", f"--master_port={free_port()}"),
        *(f"--enable_each_rank_log={run.logs}", "--no_local_rank", "--module", module, str(run.config_path)),
    ]


def launcher_environment(devices: Devices) -> dict[str, str]:
    """Return the environment variables that the ranks get beside those of this process."""
    added = {CACHE_VARIABLE: str(cache_folder()), "PATH": path_to_ninja()}
    if not devices.on_gpu:
        added["DS_ACCELERATOR"] = "cpu"
    if "PYTHONWARNINGS" not in os.environ:
        # DeepSpeed 0.19.8 calls collectives by names that torch 2.13 finds old, once in each process.
        added["PYTHONWARNINGS"] = "ignore::FutureWarning:torch.distributed.c10d_logger"
    if "OMP_NUM_THREADS" not in os.environ:
        # Each rank would start as many threads as there are cores; the CPU optimizer would crawl.
        added["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // devices.num_ranks))
    return added


def free_port() -> int:
    """Return a TCP port that is free on this machine now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def settle(config: RunConfig, devices: Devices) -> RunConfig:
    """Return the run with a number in place of `batch.micro_packs: auto`, chosen by this node's memory.

    Raises SettingsError, ShardError or RunError; says what it chose and why.
    """
    if config.batch.micro_packs != "auto":
        return config
    base = read_ds_file(config.deepspeed)
    ranks = Ranks(nodes=1, per_node=devices.num_ranks, on_gpu=devices.on_gpu)
    tiers = tiers_here(config, base, ranks)
    config, why = resolve_micro_packs(config, base, check_run(config), ranks, tiers)
    logger.info("%s", why)
    return config


def check(config: RunConfig, devices: Devices) -> tuple["Shards", dict[str, Any]]:
    """Check everything about a run that can be known here; return its shards and DeepSpeed configuration.

    Raises SettingsError, ShardError or RunError, and leaves no trace of the run.
    """
    base = read_ds_file(config.deepspeed)
    shards = check_run(config)
    ds_config = build_ds_config(
        config,
        world_size=devices.num_ranks,
        run_folder=config.run_folder,
        base=base,
        pin_memory=devices.on_gpu,
    )
    ranks = Ranks(nodes=1, per_node=devices.num_ranks, on_gpu=devices.on_gpu)
    if mistakes := list(nvme_mistakes(config, base, shards, ranks)):
        raise RunError("\n".join(mistakes))
    return shards, ds_config


def train(config: RunConfig) -> int:
    """Check a run, start it on this machine and see it to its end.

    Returns the exit code: 0 done, 75 stopped by a signal or a file STOP after saving, 2 for a mistake of the
    user's that only the ranks could find, else 1. Raises SettingsError, ShardError or RunError for the rest.
    """
    devices = find_devices(config)
    config = settle(config, devices)
    shards, ds_config = check(config, devices)
    run = RunFolder(config.run_folder)
    run.check_unchanged(config, shards_fingerprint=shards.fingerprint)
    if said := nothing_left(config, shards):
        logger.info("%s", said)
        return EXIT_DONE
    with run.hold():
        run.prepare(config, ds_config, shards_fingerprint=shards.fingerprint)
        return launch(run, devices, ds_config, ops=needed_ops(ds_config, on_gpu=devices.on_gpu))


def print_command(config: RunConfig) -> str:
    """Check a run, prepare its folder, and return the line that starts it, for a shell."""
    devices = find_devices(config)
    config = settle(config, devices)
    shards, ds_config = check(config, devices)
    run = RunFolder(config.run_folder)
    with run.hold():
        run.prepare(config, ds_config, shards_fingerprint=shards.fingerprint)
    added = [f"{key}={shlex.quote(value)}" for key, value in launcher_environment(devices).items()]
    return " ".join([*added, shlex.join(launcher_command(run, devices))])


@contextmanager
def _failures_told(run: RunFolder) -> Iterator[None]:
    """Let the run folder say why a start has failed before its ranks were there."""
    try:
        yield
    except (ShardtuneError, OSError) as error:
        mistake = (
            error if isinstance(error, ShardtuneError) else RunError(f"{error.filename}: {error.strerror}")
        )
        with suppress(OSError):  # where the disk is full, what it is about is told all the same
            run.write_mistake(mistake)
            run.write_state("failed")
        record_event(
            run.path, "failed", host=socket.gethostname(), error=f"{type(error).__name__}: {mistake}"
        )
        raise


def launch(
    run: RunFolder,
    devices: Devices,
    ds_config: Mapping[str, Any],
    *,
    ops: Sequence[str],
    module: str = WORKER,
) -> int:
    """Start the ranks of a prepared run and see them to their end; return the exit code. Hold the lease."""
    added = launcher_environment(devices)
    env = {**os.environ, **added, PARENT_VARIABLE: parent_variable()}
    supervisor = Supervisor(run)
    job = os.environ.get("SLURM_JOB_ID")
    record_event(run.path, "started", host=socket.gethostname(), job=job, nodes=1, ranks=devices.num_ranks)
    with stopped_by_signals(supervisor), _failures_told(run), nvme_folder(ds_config):
        try:
            ensure_ops(ops, env)
        except RunError:
            if not run.stop_requested():  # else the signal has reached the compiler too
                raise
        if run.stop_requested():
            run.write_state("stopped")
            record_event(run.path, "stopped", signalled=True)
            return EXIT_STOPPED
        command = launcher_command(run, devices, module=module)
        logger.info("run %s: %d ranks; output in %s", run.path.name, devices.num_ranks, run.logs)
        code = supervisor.run_to_end(command, env, num_ranks=devices.num_ranks)
    ended = exit_code(run, code, supervisor.logs)
    record_event(run.path, "ended", code=ended, launcher_code=code, state=run.state)
    return ended
