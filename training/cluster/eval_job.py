"""`shardtune submit RUN.yaml --eval`: the job that evaluates a run's checkpoints beside its training.

Without a name for the checkpoint it goes on with the newest one for as long as the training's own job is in the queue.
"""

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_tools.errors import RunError
from data_tools.shards import open_shards
from training.cluster.gpus import ask_nodes, gpu_option
from training.cluster.script import WHERE_AND_HOW_LONG, asked_for, find_script, gpu_request, render
from training.cluster.submit import send
from training.config import RunConfig, load_run_config
from training.evaluation.places import FOLDER, SideJob, missing_splits
from training.events import record_event
from training.nodes import read_bad_nodes
from training.status.queue import jobs_named

SCRIPT = "eval.sbatch"
# For Slurm to requeue a job whose time is nearly over; answers are written down as they come.
SIGNAL_SECONDS = 60


@dataclass(frozen=True, slots=True)
class EvalJob:
    """A side job that is ready to be sent. after: the training's job, if that waits in the queue still."""

    run_folder: Path
    path: Path
    text: str
    after: str | None


def submit_eval(
    settings: Path,
    overrides: Sequence[str] = (),
    *,
    checkpoint: str | None = None,
    splits: Sequence[str] = (),
    limit: int | None = None,
    keep_export: bool = False,
    options: Sequence[str] = (),
    print_only: bool = False,
) -> None:
    """Check a side job for a run and send it, or print its script. Raises ShardtuneError."""
    run_folder, config = find_run(settings, overrides)
    asked = SideJob(tuple(splits), checkpoint, limit, keep_export)
    job = prepare_eval_job(run_folder, config, asked, options=options)
    if print_only:
        sys.stdout.write(job.text)
        return
    number = send_eval_job(job)
    then = f", to start after job {job.after}" if job.after else ""
    sys.stdout.write(
        f"submitted batch job {number}{then}; its log will be in {run_folder / 'logs'}, results in "
        f"{run_folder / 'evaluation'}\n"
    )


def find_run(settings: Path, overrides: Sequence[str]) -> tuple[Path, RunConfig]:
    """Return the folder and the settings of a run, given by its folder or its run.yaml. Raises ShardtuneError."""
    if settings.is_dir():
        if not (settings / "config.yaml").is_file():
            raise RunError(f"{settings}: not a run folder: it has no config.yaml")
        return settings.absolute(), load_run_config(settings / "config.yaml", overrides)
    config = load_run_config(settings, overrides)
    if not (config.run_folder / "config.yaml").is_file():
        raise RunError(f"{config.run_folder}: no such run yet; do: shardtune submit {settings}, then this")
    return config.run_folder, config


def prepare_eval_job(
    run_folder: Path, config: RunConfig, job: SideJob, *, options: Sequence[str] = ()
) -> EvalJob:
    """Check what can be checked here and write the side job's script into the run folder.

    Empty `job.splits` take test, else the first split that is evaluated during training. `options` go to sbatch as they
    are. Raises ShardtuneError; before the last check nothing is written.
    """
    slurm = config.slurm
    if slurm.site is not None and not slurm.site.is_file():
        raise RunError(f"slurm.site: {slurm.site}: no such file; expected one like those in slurm/sites")
    job = replace(job, splits=_check_splits(config, job.splits))
    if job.limit is not None and job.limit < 1:
        raise RunError(f"--limit: got {job.limit}; expected 1 or more")
    training = _job_name(config)
    queued = jobs_named(training) or []
    job = _check_checkpoint(run_folder, job, in_queue=bool(queued))
    slurm = slurm.model_copy(update={"gpus": gpu_option(slurm, ask_nodes(slurm.partition))})
    config = config.model_copy(update={"slurm": slurm})
    log = run_folder / "logs" / "eval-%j.out"
    variables = {
        "RUN": str(run_folder),
        "TRAINING": "" if job.checkpoint else training,
        "ARGUMENTS": shlex.join(_arguments(job)),
        "PYTHON": sys.executable,
        "SITE": "" if slurm.site is None else str(slurm.site),
    }
    asked = [*_sbatch_options(config, job, log, read_bad_nodes(run_folder)), *options]
    text = render(find_script(SCRIPT).read_text(encoding="utf-8"), asked, variables)
    path = run_folder / SCRIPT
    log.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    waits = [number for number, state in queued if state == "PENDING"]
    return EvalJob(run_folder, path, text, waits[0] if len(waits) == len(queued) > 0 else None)


def _check_splits(config: RunConfig, splits: tuple[str, ...]) -> tuple[str, ...]:
    """Return the splits that are evaluated. Raises RunError for one that is absent or empty."""
    shards = open_shards(config.shards)
    present = [name for name, split in shards.splits.items() if split.num_packs]
    held_out = [name for name in present if name != "train"]
    chosen = splits or tuple(name for name in ("test", "validation", *held_out) if name in held_out)[:1]
    wrong = [name for name in chosen if name not in present]
    if wrong or not chosen:
        raise RunError(
            f"--split: nothing to evaluate on in {config.shards}: got {', '.join(wrong) or 'no split held out'}; "
            f"expected one of {', '.join(present)}"
        )
    return tuple(dict.fromkeys(chosen))


def _job_name(config: RunConfig) -> str:
    """Return the name of the training's job: the run's, unless the user's own options give another."""
    given = [text.partition("=")[2] for text in config.slurm.options if text.startswith("--job-name=")]
    return given[-1] if given else config.name


def _check_checkpoint(run_folder: Path, job: SideJob, *, in_queue: bool) -> SideJob:
    """Return the job with the name of its checkpoint in place of `best`. Raises RunError if there is nothing to do."""
    from training.checkpoint_files import finished_checkpoints
    from training.export import pick_checkpoint

    checkpoints = run_folder / "checkpoints"
    if job.checkpoint is None and in_queue:
        return job  # there is one, or there will be
    if job.checkpoint is None and not finished_checkpoints(checkpoints):
        raise RunError(
            f"{checkpoints}: no finished checkpoint, and no job of the run in the queue; do: shardtune submit RUN.yaml"
        )
    name = pick_checkpoint(checkpoints, job.checkpoint).name
    if not missing_splits(run_folder, name, job.splits):
        done = run_folder / FOLDER / name
        raise RunError(f"{done}: {name} is evaluated on {', '.join(job.splits)}; remove this to do it again")
    return job if job.checkpoint is None else replace(job, checkpoint=name)


def _arguments(job: SideJob) -> Iterator[str]:
    for split in job.splits:
        yield from ("--split", split)
    if job.checkpoint is not None:
        yield from ("--checkpoint", job.checkpoint)
    if job.limit is not None:
        yield from ("--limit", str(job.limit))
    if job.keep_export:
        yield "--keep-export"


def _sbatch_options(config: RunConfig, job: SideJob, log: Path, bad_nodes: Sequence[str]) -> Iterator[str]:
    """Yield the options of the job: one task on one node, whatever the training has."""
    slurm = config.slurm
    yield f"--job-name={config.name}-eval{f'-{job.checkpoint}' if job.checkpoint else ''}"
    yield f"--output={shlex.quote(str(log))}"
    yield "--open-mode=append"
    yield "--nodes=1"
    yield "--ntasks=1"
    yield from gpu_request(slurm, 1)
    yield from asked_for(slurm, "cpus_per_task", *WHERE_AND_HOW_LONG)
    yield f"--signal=B:USR1@{SIGNAL_SECONDS}"
    yield "--requeue"
    yield "--dependency=singleton"
    if bad_nodes:
        yield f"--exclude={','.join(bad_nodes)}"
    if slurm.mail is not None:
        yield f"--mail-user={slurm.mail}"
        yield "--mail-type=END,FAIL"


def send_eval_job(job: EvalJob) -> str:
    """Send a side job, to start after the training's job if that waits still; return its id. Raises RunError."""
    dependency = [f"--dependency=singleton,after:{job.after}"] if job.after else []
    number = send(job.path, dependency)
    record_event(job.run_folder, "side_job", job=number)
    return number
