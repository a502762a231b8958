"""Where the evaluations of a run lie, and which of its checkpoints is to be evaluated next. Imports nothing heavy.

evaluation/step-000100/model/              the checkpoint as a model folder, for as long as it is evaluated
evaluation/step-000100/test/results.json   what `shardtune eval` writes of a split; what is there is not done again
export/step-000100/                        the model folder, where it was to be kept
"""

from dataclasses import dataclass
from pathlib import Path

FILE_NAME = "results.json"
FOLDER = "evaluation"
MODEL = "model"
EXPORTS = "export"


@dataclass(frozen=True, slots=True)
class SideJob:
    """What a job beside the training evaluates.

    checkpoint: a folder's name; None: the newest, and those that are newer by then. limit: so many documents of each
    split; None: all. keep_export: the model folder is kept.
    """

    splits: tuple[str, ...]
    checkpoint: str | None = None
    limit: int | None = None
    keep_export: bool = False


def step_of(name: str) -> int:
    """Return the step of a checkpoint by the name of its folder."""
    return int(name.removeprefix("step-"))


def missing_splits(run_folder: Path, name: str, splits: tuple[str, ...]) -> list[str]:
    """Return the splits for which a checkpoint has no results."""
    return [split for split in splits if not (run_folder / FOLDER / name / split / FILE_NAME).exists()]


def next_checkpoint(run_folder: Path, job: SideJob) -> str | None:
    """Return the name of the checkpoint to evaluate next: one that was begun, else the newest; None if all is done."""
    begun = sorted(path.parent.name for path in (run_folder / FOLDER).glob(f"step-*/{MODEL}"))
    if job.checkpoint is not None:
        candidates = [job.checkpoint]
    else:
        finished = [path.parent.name for path in (run_folder / "checkpoints").glob("step-*/DONE")]
        candidates = [*begun, *sorted(finished, key=step_of)[-1:]]
    for name in candidates:
        if name in begun or missing_splits(run_folder, name, job.splits):
            return name
    return None
