"""`shardtune submit RUN.yaml`: everything is checked here, before the queue; then the job script, printed or sent."""

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import RunError
from training.cluster.gpus import ask_nodes, check_nodes, choose_gpus
from training.cluster.script import Request, train_script
from training.cluster.timing import find_timing, signal_seconds
from training.config import RunConfig, check_run
from training.done import nothing_left
from training.ds_config import build_ds_config, read_ds_file
from training.nodes import read_bad_nodes
from training.plan.choose import resolve_micro_packs
from training.plan.machine import host_memory
from training.plan.plan import GIB, Ranks, Tiers, plan_run
from training.preflight.findings import format_table, mistakes_in
from training.preflight.here import check_here
from training.run_folder import RunFolder

logger = logging.getLogger(__name__)

SCRIPT = "train.sbatch"


@dataclass(frozen=True, slots=True)
class JobScript:
    """A run that is ready to be sent: its folder is prepared, its script written there."""

    run: RunFolder
    path: Path
    text: str


def prepare_job(config: RunConfig) -> JobScript:
    """Check a run and what its job asks for, prepare its folder and write the script into it.

    Raises SettingsError, ShardError or RunError; before the last check nothing is written.
    """
    slurm = config.slurm
    if slurm.site is not None and not slurm.site.is_file():
        raise RunError(f"slurm.site: {slurm.site}: no such file; expected one like those in slurm/sites")
    config, ranks = settle(config)
    findings = check_here(config)
    if mistakes := mistakes_in(findings):
        raise RunError("\n".join(finding.found for finding in mistakes))
    base, shards = read_ds_file(config.deepspeed), check_run(config)
    if said := nothing_left(config, shards):
        raise RunError(said)
    # Whether there is a GPU to pin memory for, the ranks see on their nodes.
    ds_config = build_ds_config(config, world_size=ranks.size, run_folder=config.run_folder, base=base)
    plan = plan_run(config, base, shards, ranks, Tiers())
    timing = find_timing(config.run_folder, checkpoint_bytes=plan.checkpoint_bytes)
    request = Request(
        ranks_per_node=ranks.per_node,
        signal_seconds=signal_seconds(slurm, timing),
        exclude=tuple(read_bad_nodes(config.run_folder)),
    )
    run = RunFolder(config.run_folder)
    with run.hold():
        run.prepare(config, ds_config, shards_fingerprint=shards.fingerprint)
    text = train_script(config, request, python=sys.executable)
    path = run.path / SCRIPT
    partial = path.with_name(f"{SCRIPT}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    logger.info("%s", format_table(findings))
    _tell(config, request, lead_source=timing.source)
    return JobScript(run, path, text)


def settle(config: RunConfig) -> tuple[RunConfig, Ranks]:
    """Return the run with what its job asks for in place of slurm.gpus: auto and batch.micro_packs: auto; its ranks.

    Raises SettingsError, ShardError or RunError.
    """
    nodes = ask_nodes(config.slurm.partition)
    option, per_node = choose_gpus(config, nodes)
    check_nodes(config.slurm, nodes, ranks_per_node=per_node)
    slurm = config.slurm.model_copy(update={"gpus": option})
    launch = config.launch.model_copy(update={"gpus_per_node": per_node})
    config = config.model_copy(update={"slurm": slurm, "launch": launch})
    ranks = Ranks(nodes=slurm.nodes, per_node=per_node, on_gpu=option is not None)
    if config.batch.micro_packs == "auto":
        # The memory of a GPU is said in the settings; ranks on CPUs are taken to run on nodes like this one.
        gpu = launch.gpu_memory_gib
        tiers = Tiers(gpu=int(gpu * GIB) if gpu else None, host=None if ranks.on_gpu else host_memory())
        base = read_ds_file(config.deepspeed)
        config, why = resolve_micro_packs(config, base, check_run(config), ranks, tiers)
        logger.info("%s", why)
    return config, ranks


def _tell(config: RunConfig, request: Request, *, lead_source: str) -> None:
    slurm = config.slurm
    logger.info(
        "%s: %d nodes x %d ranks%s, %s; told to save %d s before the end (a save: %s)",
        config.run_folder,
        slurm.nodes,
        request.ranks_per_node,
        f" and {slurm.spare_nodes} spare nodes" if slurm.spare_nodes else "",
        f"at most {slurm.time}" if slurm.time else "the time that the partition gives by default",
        request.signal_seconds,
        lead_source,
    )
    if request.exclude:
        logger.warning(
            "without the nodes of %s: %s; take out those that are mended",
            config.run_folder / "bad_nodes",
            ", ".join(request.exclude),
        )
    if slurm.cpus_per_task is None and "--exclusive" not in slurm.options:
        logger.warning(
            "slurm.cpus_per_task is not set: Slurm's default, often one core a rank, makes offloaded updates slow"
        )


def send(script: Path, options: Sequence[str] = (), *, said_in: str = "the keys below slurm") -> str:
    """Give a job script to sbatch and return the job's id. Raise RunError with what sbatch says against it.

    said_in: where the user has said what the job asks for.
    """
    if shutil.which("sbatch") is None:
        raise RunError("sbatch: not found; do this on a login node of the cluster, or use --print")
    env = dict(os.environ)
    if "SLURM_JOB_ID" in env:  # from within a job sbatch would take over that job's own settings
        env = {key: value for key, value in env.items() if not re.match("(SLURM|SBATCH|SRUN)_", key)}
        env |= {key: os.environ[key] for key in ("SLURM_CONF",) if key in os.environ}
    command = ["sbatch", "--parsable", *options, str(script)]
    sent = subprocess.run(command, env=env, cwd=script.parent, capture_output=True, text=True)
    if sent.returncode:
        said = sent.stderr.strip().splitlines() or [f"exit code {sent.returncode}"]
        raise RunError(f"{script}: Slurm has refused the job: {'; '.join(said)}; look at {said_in}")
    sys.stderr.write(sent.stderr)
    return sent.stdout.strip().split(";")[0]
