"""`shardtune submit DATA.yaml`: tokenizing as an array of jobs and packing as one after it, or both in one job.

What the jobs read and write beside the shards lies in OUTPUT/jobs/: the resolved data.yaml, the scripts, their output,
and a mark of each element that is done, by which a second submit sends the others alone.
"""

import hashlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_tools.errors import RunError, SettingsError
from data_tools.inputs import input_files
from data_tools.recognise import load_sources
from data_tools.settings import DataSettings, dump_settings
from data_tools.tokenize import check_output, load_tokenizer
from training.cluster.script import find_script, render
from training.cluster.submit import send
from training.status.queue import ask_queue

TOKENIZE, PACK = "tokenize.sbatch", "pack.sbatch"
DEFAULT_MAX_ARRAY_SIZE = 1001


@dataclass(frozen=True, slots=True)
class DataJobs:
    """The jobs of one data.yaml. done: the folder of the marks; missing: the elements without one; num_tasks: 0 where
    one job does it all."""

    folder: Path
    done: Path
    num_tasks: int
    missing: tuple[int, ...]
    scripts: dict[str, str]


def is_data_file(path: Path) -> bool:
    """Return whether a settings file is a data.yaml, by its keys. A file that cannot be read is not."""
    try:
        keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(keys, dict) and "sources" in keys and "shards" not in keys


def refuse_options(where: Path | str, expected: str, given: Mapping[str, Any]) -> None:
    """Raise SettingsError for options of `submit` that mean nothing for this kind of job."""
    wrong = [name for name, value in given.items() if value]
    if wrong:
        raise SettingsError(f"{', '.join(wrong)}: {where}: expected {expected}; leave it out")


def prepare_data_jobs(
    settings: DataSettings, *, array: int | None, site: Path | None = None, options: Sequence[str] = ()
) -> DataJobs:
    """Check what can be checked here and write the jobs' files. `options` go to sbatch as they are.

    Raises ShardtuneError for what the jobs would stumble over: inputs, tokenizer, output, the size of the array.
    """
    if array is not None:
        check_array_size(array)
    if site is not None and not site.is_file():
        raise RunError(f"--site: {site}: no such file; expected one like those in slurm/sites")
    load_tokenizer(settings)
    check_output(settings)
    folder = settings.output / "jobs"
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    text = dump_settings(settings.model_dump(mode="json"))
    data = folder / "data.yaml"
    data.write_text(text, encoding="utf-8")
    num_tasks = array or 0
    done = folder / f"done-{_key(settings, text)}-{num_tasks}"
    missing = tuple(task for task in range(num_tasks) if not (done / str(task)).exists())
    variables = {
        "DATA": str(data),
        "NUM_TASKS": str(num_tasks),
        "DONE": str(done),
        "PYTHON": sys.executable,
        "SITE": "" if site is None else str(site),
    }
    scripts = {}
    if missing:
        log = folder / "logs" / "tokenize-%A_%a.out"
        own = [f"--array={_ranges(missing)}"]
        scripts[TOKENIZE] = _write_script(folder / TOKENIZE, own, log, options, variables)
    scripts[PACK] = _write_script(folder / PACK, [], folder / "logs" / "pack-%j.out", options, variables)
    return DataJobs(folder, done, num_tasks, missing, scripts)


def check_array_size(array: int) -> None:
    """Raise SettingsError unless Slurm takes an array of this many elements."""
    limit = DEFAULT_MAX_ARRAY_SIZE
    try:
        shown = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, timeout=30
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        shown = ""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown, re.MULTILINE)
    if found is not None:
        limit = int(found[1])
    if not 1 <= array <= limit:
        raise SettingsError(
            f"--array: got {array}; expected 1 … {limit}, as many as this cluster takes in one array (MaxArraySize); "
            "each element does its share of the input"
        )


def _key(settings: DataSettings, text: str) -> str:
    """Return a name for what is to be tokenized: settings, and name, size and time of each file of input."""
    files = [*input_files(settings), *sorted(settings.tokenizer.glob("*"))]
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((text, states)).encode()).hexdigest()[:16]


def _ranges(numbers: Sequence[int]) -> str:
    """Return numbers as sbatch wants them: 0-3,7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _write_script(
    path: Path, own: Sequence[str], log: Path, options: Sequence[str], variables: dict[str, str]
) -> str:
    """Write a job script and return its text; options of the user's come last, and so win."""
    template = find_script(path.name).read_text(encoding="utf-8")
    # What the template asks for stands in its head, which is replaced.
    head = re.findall(r"^#SBATCH (.*)$", template, re.MULTILINE)
    text = render(template, [*head, f"--output={shlex.quote(str(log))}", *own, *options], variables)
    path.write_text(text, encoding="utf-8")
    return text


def submit_data(
    data: Path,
    overrides: Sequence[str] = (),
    *,
    array: int | None,
    site: Path | None = None,
    options: Sequence[str] = (),
    print_only: bool = False,
) -> None:
    """Check a data.yaml and send its jobs, or print their scripts. Raises ShardtuneError."""
    settings = load_sources(data, overrides)
    _check_nothing_runs(settings.output / "jobs")
    jobs = prepare_data_jobs(settings, array=array, site=site, options=options)
    if print_only:
        sys.stdout.write("\n".join(jobs.scripts.values()))
        return
    for line in send_data_jobs(jobs):
        sys.stdout.write(f"{line}\n")


def send_data_jobs(jobs: DataJobs) -> Iterator[str]:
    """Send the jobs; yield a line for each. Their ids are kept, so that a second submit finds them."""
    ids = jobs.folder / "submitted"
    after = []
    if TOKENIZE in jobs.scripts:
        array = send(jobs.folder / TOKENIZE, said_in="--option and --site")
        ids.write_text(f"{array}\n", encoding="ascii")
        # Whether all elements have done well, the job itself looks: `afterok` would hold it for ever if one has not.
        after = [f"--dependency=afterany:{array}"]
        yield f"job {array}: tokenize, {len(jobs.missing)} of {jobs.num_tasks} elements ({_ranges(jobs.missing)})"
    pack = send(jobs.folder / PACK, after, said_in="--option and --site")
    ids.write_text(ids.read_text(encoding="ascii") + f"{pack}\n" if after else f"{pack}\n", encoding="ascii")
    what = "tokenize and pack" if jobs.num_tasks == 0 else "pack"
    yield f"job {pack}: {what}{f', after job {array}' if after else ''}; output in {jobs.folder / 'logs'}"


def _check_nothing_runs(folder: Path) -> None:
    """Raise RunError while jobs of an earlier submit wait or run: the elements would be done twice."""
    try:
        ids = (folder / "submitted").read_text(encoding="ascii").split()
    except FileNotFoundError:
        return
    there = [job for job in ids if ask_queue(job)]
    if there:
        raise RunError(
            f"{folder.parent}: its jobs {', '.join(there)} are still in the queue; wait for them, or: "
            f"scancel {' '.join(there)}"
        )
