"""The keys below `slurm:` in run.yaml: what a batch job asks for."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from data_tools.settings import AnyPath, Settings, Strings

# Slurm's own forms: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S.
TIME = re.compile(r"(?:(?P<days>\d+)-(?P<of_day>\d+(?::\d+){0,2})|(?P<clock>\d+(?::\d+){0,2}))")


def parse_time(text: str) -> int:
    """Return the seconds of a time limit as Slurm reads it. Raise ValueError for what it does not read.

    Examples: "30" and "30:00" are half an hour, "1:30:00" an hour and a half, "1-0" and "24:00:00" a day.
    """
    match = TIME.fullmatch(text)
    if match is None:
        raise ValueError("a time limit such as 24:00:00, 2-12:00:00 or 30 (minutes)")
    if match["days"] is not None:
        hours, minutes, seconds = [*map(int, match["of_day"].split(":")), 0, 0][:3]
        return ((int(match["days"]) * 24 + hours) * 60 + minutes) * 60 + seconds
    numbers = [int(number) for number in match["clock"].split(":")]
    if len(numbers) == 3:
        return (numbers[0] * 60 + numbers[1]) * 60 + numbers[2]
    return numbers[0] * 60 + (numbers[1] if len(numbers) == 2 else 0)


def _check_time(value: Any) -> Any:
    if isinstance(value, int):  # YAML reads 24:00:00 as 86400, which Slurm would take for minutes
        raise ValueError(
            """a time limit in quotes: "24:00:00", or "30" for minutes; in a shell 'slurm.time="24:00:00"'"""
        )
    if isinstance(value, str):
        parse_time(value)
    return value


def _as_word(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


# Options of sbatch that would undo what was checked, and where they are said instead.
KEYS_OF_OPTIONS = {
    **dict.fromkeys(("--nodes", "-N"), "slurm.nodes"),
    **dict.fromkeys(("--time", "-t"), "slurm.time"),
    **dict.fromkeys(("--ntasks", "-n", "--ntasks-per-node", "--tasks-per-node"), "launch.gpus_per_node"),
    **dict.fromkeys(("--job-name", "-J"), "name"),
    **dict.fromkeys(("--output", "-o", "--error", "-e", "--open-mode"), "runs"),
    "--signal": "slurm.signal_seconds",
    "--no-requeue": "slurm.max_restarts",
}


def _check_options(options: tuple[str, ...]) -> tuple[str, ...]:
    for option in options:
        if not re.fullmatch(r"-[^\n]*", option):
            raise ValueError("a list of options of sbatch, such as --exclusive, each with its dashes")
        name = re.match(r"--[^=\s]+|-\w", option)
        if name is not None and name[0] in KEYS_OF_OPTIONS:
            raise ValueError(
                f"{KEYS_OF_OPTIONS[name[0]]} in place of {name[0]}, which would undo what is checked"
            )
    return options


Word = Annotated[str, Field(pattern=r"^\S+$"), BeforeValidator(_as_word)]  # mem: 0 is all there is


class SlurmConfig(Settings):
    """What a batch job asks for; null leaves it to the cluster's default.

    `nodes` train; `spare_nodes` more stand by in the same job for those that go bad. `gpus`: the option that asks for
    them; auto looks at what the partition has, null asks for none, for CPU ranks and for clusters that give out whole
    nodes. `check_nodes`: the job tries its nodes before the ranks start. `signal_seconds`: how long before the time
    limit the run is told to save and end; auto reckons it.
    `options` go to sbatch as they are, but for those that have a key and would undo what submit has checked.
    """

    nodes: int = Field(default=1, gt=0)
    time: Annotated[str, BeforeValidator(_check_time)] | None = None
    account: Word | None = None
    partition: Word | None = None
    qos: Word | None = None
    constraint: str | None = None
    gpus: Literal["auto", "gpus-per-node", "gres"] | None = "auto"
    gpu_type: Word | None = None
    cpus_per_task: int | None = Field(default=None, gt=0)
    mem: Word | None = None
    site: AnyPath | None = None
    signal_seconds: Annotated[int, Field(gt=0, le=65535)] | Literal["auto"] = "auto"
    check_nodes: bool = False
    max_restarts: int = Field(default=20, ge=0)
    spare_nodes: int = Field(default=0, ge=0)
    mail: Word | None = None
    options: Annotated[Strings, AfterValidator(_check_options)] = ()
