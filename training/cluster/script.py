"""The text of a job script: what sbatch is asked for and the job's settings, above the part that all runs share."""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.cluster.settings import SlurmConfig
from training.config import RunConfig
from training.starting_files import shipped_folder

# Everything above this line of a job script in slurm/ is an example for use by hand, and is replaced.
MARK = "# ==== The same for every run"
# The keys of `slurm` that hold for every job of a run.
WHERE_AND_HOW_LONG = ("time", "account", "partition", "qos", "constraint")


@dataclass(frozen=True, slots=True)
class Request:
    """What a job asks for beside what run.yaml says outright.

    ranks_per_node: GPUs, or CPU ranks. signal_seconds: before the time limit. exclude: nodes that have gone bad.
    """

    ranks_per_node: int
    signal_seconds: int
    exclude: tuple[str, ...] = ()


def find_script(name: str) -> Path:
    """Return a file of `slurm/`: that of the source tree, or where the installed package has put it."""
    return shipped_folder("slurm") / name


def _quoted(option: str) -> str:
    """Return an option of the user's for a line after `#SBATCH`, where a value with spaces stands in quotes."""
    name, equals, value = option.partition("=")
    if not option.startswith("--") or not equals or not re.search(r"\s", value) or re.search("[\"']", value):
        return option
    return f"{name}={shlex.quote(value)}"


def sbatch_options(config: RunConfig, request: Request) -> Iterator[str]:
    """Yield the options of the job, each as it stands after `#SBATCH`; the user's own come last, and so win."""
    slurm = config.slurm
    assert slurm.gpus != "auto"
    yield f"--job-name={config.name}"
    yield f"--output={shlex.quote(str(config.run_folder / 'logs' / 'job-%j.out'))}"
    yield "--open-mode=append"
    yield f"--nodes={slurm.nodes + slurm.spare_nodes}"
    yield f"--ntasks-per-node={request.ranks_per_node}"
    # Not --gpus-per-task: it hides the GPUs of a node from each other, and LOCAL_RANK would not fit them.
    yield from gpu_request(slurm, request.ranks_per_node)
    yield from asked_for(slurm, "cpus_per_task", "mem", *WHERE_AND_HOW_LONG)
    yield f"--signal=B:USR1@{request.signal_seconds}"
    yield "--requeue"
    yield "--dependency=singleton"  # two jobs of one run do not fight for its folder: the second one waits
    if slurm.spare_nodes:
        yield "--no-kill"  # a node that is lost does not take the others with it
    if request.exclude:
        yield f"--exclude={','.join(request.exclude)}"
    if slurm.mail is not None:
        yield f"--mail-user={slurm.mail}"
        yield "--mail-type=END,FAIL,REQUEUE"
    yield from map(_quoted, slurm.options)


def gpu_request(slurm: SlurmConfig, number: int) -> Iterator[str]:
    """Yield the option that asks for so many GPUs of a node, if the settings ask for any."""
    if slurm.gpus is not None:
        kind = [slurm.gpu_type] if slurm.gpu_type else []
        name = ["gpu"] if slurm.gpus == "gres" else []
        yield f"--{slurm.gpus}={':'.join([*name, *kind, str(number)])}"


def asked_for(slurm: SlurmConfig, *keys: str) -> Iterator[str]:
    """Yield the options that these keys of the settings stand for, where they are set."""
    for key in keys:
        if (value := getattr(slurm, key)) is not None:
            yield f"--{key.replace('_', '-')}={shlex.quote(str(value))}"


def render(template: str, options: Sequence[str], variables: dict[str, str]) -> str:
    """Return a job script: `template` from its mark on, below the options of sbatch and what the script reads."""
    head, mark, body = template.partition(MARK)
    assert mark, "the job script has lost its mark"
    lines = [
        head.splitlines()[0],
        *(f"#SBATCH {option}" for option in options),
        "",
        *(f"{name}={shlex.quote(value)}" for name, value in variables.items()),
        "LAUNCH=${LAUNCH:-srun}",
        "",
    ]
    return "\n".join(lines) + "\n" + mark + body


def train_script(config: RunConfig, request: Request, *, python: str) -> str:
    """Return the job script of a run whose folder is prepared; `python` runs in the job."""
    slurm = config.slurm
    variables = {
        "RUN": str(config.run_folder),
        "PYTHON": python,
        "SITE": "" if slurm.site is None else str(slurm.site),
        "SPARE_NODES": str(slurm.spare_nodes),
        "CHECK_NODES": "1" if slurm.check_nodes else "",
        "MAX_RESTARTS": str(slurm.max_restarts),
    }
    template = find_script("train.sbatch").read_text(encoding="utf-8")
    return render(template, list(sbatch_options(config, request)), variables)
