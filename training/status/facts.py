"""Everything a run folder says about its run, read once: other modules only think about it."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.errors import RunError, ShardtuneError
from training.config import RunConfig, read_run_config
from training.events import BESIDE, last_sign_of_life, read_events
from training.events import FILE_NAME as EVENTS_NAME
from training.last_words import LastWords, find_last_words, newest_logs, read_tail
from training.lease import Holder, read_holder
from training.metrics import FILE_NAME as METRICS_NAME
from training.metrics import read_metrics
from training.run_folder import RunFolder, State
from training.status.starts import Event, Start, find_starts

# A holder beats every 5 seconds; a file server may show that a minute late.
STALE_SECONDS = 90.0
# The clocks of nodes and file servers differ, and files are stamped a moment early.
CLOCK_SECONDS = 5.0
JOB_LOGS = "job-*.out"
# In the line with which slurm/train.sbatch begins each start.
START_MARK = " meeting at "


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A finished checkpoint: where, of which step, how old and how large."""

    path: str
    step: int
    age_seconds: float
    num_bytes: int


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the files say. `now` is the time they were read, in seconds since the epoch.

    words: of the newest start's ranks; job_log: what the job script and Slurm wrote in this start.
    problems: files that are damaged, as `file: what is wrong`.
    """

    run: RunFolder
    now: float
    holder: Holder | None
    held: bool
    state: State | None
    config: RunConfig | None
    events: list[Event]
    starts: list[Start]
    metrics: list[dict[str, Any]]
    heartbeats: list[dict[str, Any]]
    checkpoint: Checkpoint | None
    words: LastWords | None
    job_log: str
    last_sign: float | None
    problems: tuple[str, ...]

    @property
    def start(self) -> Start | None:
        """Return the newest start."""
        return self.starts[-1] if self.starts else None


def read_facts(folder: Path) -> RunFacts:
    """Read a run folder. Raises RunError if it is none."""
    _check_is_run(folder)
    run, now, problems = RunFolder(folder), time.time(), list[str]()
    # Backwards from how a run ends, which may happen meanwhile: steps, events, the state, the lease's release.
    holder = read_holder(run.path / "lease.json")
    held = holder is not None and _is_held(run.path / "lease.json", holder, now)
    state = run.state
    lines = read_events(folder)
    events = [event for event in lines if event["event"] not in BESIDE]
    starts = find_starts(events)
    metrics = read_metrics(folder)
    problems += _damaged_lines(folder / METRICS_NAME, len(metrics))
    problems += _damaged_lines(folder / EVENTS_NAME, len(lines))
    begin = starts[-1].begin - CLOCK_SECONDS if starts else 0.0
    logs = {rank: path for rank, path in newest_logs(run.logs).items() if path.stat().st_mtime >= begin}
    return RunFacts(
        run=run,
        now=now,
        holder=holder,
        held=held,
        state=state,
        config=_read_config(run, problems),
        events=events,
        starts=starts,
        metrics=metrics,
        heartbeats=_read_heartbeats(folder / "heartbeat", begin, problems),
        checkpoint=newest_checkpoint(run, now, problems),
        words=find_last_words(logs, run.logs / "launcher.log") if run.logs.is_dir() else None,
        job_log=_job_log(run.logs, begin),
        last_sign=last_sign_of_life(folder),
        problems=tuple(problems),
    )


def _check_is_run(folder: Path) -> None:
    if folder.is_file():
        raise RunError(
            f"{folder}: is a file; expected the folder of a run, which is `runs`/`name` of its run.yaml"
        )
    if not folder.is_dir():
        there = sorted(str(path.parent) for path in folder.parent.glob("*/config.yaml"))
        hint = f"there are {', '.join(there[:10])}" if there else "it is `runs`/`name` of its run.yaml"
        raise RunError(f"{folder}: no such folder; expected the folder of a run: {hint}")
    if not any((folder / name).exists() for name in ("config.yaml", EVENTS_NAME, METRICS_NAME, "lease.json")):
        inside = sorted(path.parent.name for path in folder.glob("*/config.yaml"))
        hint = f"; it holds runs: {', '.join(inside[:10])}" if inside else ""
        raise RunError(
            f"{folder}: is not the folder of a run: it has no config.yaml{hint}; name one such as runs/demo"
        )


def _read_config(run: RunFolder, problems: list[str]) -> RunConfig | None:
    try:
        return read_run_config(run.config_path)
    except (ShardtuneError, OSError, UnicodeDecodeError) as error:
        problems.append(f"config.yaml: cannot be read: {str(error).splitlines()[0]}")
        return None


def _damaged_lines(path: Path, num_whole: int) -> list[str]:
    """Return a problem if lines other than a last one, which a kill may tear, are no whole ones."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    # What follows the last line end is empty, or torn; an appended line leaves a torn one before it in events.
    damaged = sum(bool(line.strip()) for line in lines[:-1]) - num_whole
    return [f"{path.name}: {damaged} damaged lines are left out"] if damaged > 0 else []


def _read_heartbeats(folder: Path, begin: float, problems: list[str]) -> list[dict[str, Any]]:
    """Return the heartbeats of the newest start's ranks, in the order of the ranks."""
    beats = []
    for path in folder.glob("rank-*.json"):
        try:
            beat = json.loads(path.read_text(encoding="utf-8"))
            rank = int(path.stem.removeprefix("rank-"))
            fresh = float(beat["time"]) >= begin
        except (ValueError, KeyError, TypeError):
            problems.append(f"heartbeat/{path.name}: damaged")
            continue
        except FileNotFoundError:  # removed at this moment
            continue
        if fresh:
            beats.append({**beat, "rank": rank})
    return sorted(beats, key=lambda beat: int(beat["rank"]))


def newest_checkpoint(run: RunFolder, now: float, problems: list[str]) -> Checkpoint | None:
    """Return a run's newest finished checkpoint; what can be seen to be wrong with it is added to `problems`."""
    folder = run.newest_checkpoint
    if folder is None:
        return None
    sizes = [path.stat().st_size for path in folder.iterdir()]
    problems += _checkpoint_problems(folder)
    return Checkpoint(str(folder), int(folder.name[5:]), now - (folder / "DONE").stat().st_mtime, sum(sizes))


def _checkpoint_problems(folder: Path) -> list[str]:
    name = f"checkpoints/{folder.name}"
    try:
        world_size = int(json.loads((folder / "progress.json").read_text(encoding="utf-8"))["world_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return [
            f"{name}: damaged: progress.json cannot be read; remove the folder to go on from the one before"
        ]
    missing = world_size - len(list(folder.glob(f"rank-*-of-{world_size:05d}.safetensors")))
    if missing:
        return [
            f"{name}: damaged: the files of {missing} of {world_size} ranks are missing; "
            "remove the folder to go on from the one before"
        ]
    return []


def _is_held(lease: Path, holder: Holder, now: float) -> bool:
    """Return whether the holder of the lease lives: by its process, or on another machine by its heartbeat."""
    if holder.is_here:
        return holder.lives
    try:
        return now - lease.stat().st_mtime < STALE_SECONDS
    except FileNotFoundError:  # given back at this moment
        return False


def _job_log(logs: Path, begin: float) -> str:
    """Return what the newest job's own output says of the newest start; a requeued job appends to one file."""
    files = sorted(logs.glob(JOB_LOGS), key=lambda path: path.stat().st_mtime)
    if not files or files[-1].stat().st_mtime < begin:
        return ""
    text = read_tail(files[-1])
    return text[max(0, text.rfind(START_MARK)) :]
