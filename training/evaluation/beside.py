"""A run's checkpoints evaluated by a job beside its training: `python -m training.evaluation.beside RUN_FOLDER`.

places.py says what lies where. Killed and started again it goes on where it was. It holds no lease of the run, and that
it comes back for newer checkpoints is up to slurm/eval.sbatch.
"""

import argparse
import logging
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.errors import RunError, ShardtuneError
from data_tools.output_lock import lock_output
from training.config import read_run_config
from training.evaluation.places import (
    EXPORTS,
    FILE_NAME,
    FOLDER,
    MODEL,
    SideJob,
    missing_splits,
    next_checkpoint,
    step_of,
)
from training.events import record_event

if TYPE_CHECKING:
    from training.evaluation.results import Results

logger = logging.getLogger(__name__)

# The end of the name of the event file that holds a run's evaluations, beside those of its training.
BOARD_SUFFIX = ".evaluation"
MAX_NEW_TOKENS = 256  # as `shardtune eval` has it by default


def evaluate_checkpoints(run_folder: Path, job: SideJob) -> list[str]:
    """Evaluate what the job asks for and has no results yet; return the names of the checkpoints.

    What was begun before is finished first. Raises ShardtuneError; for a checkpoint that `save.keep` deletes while it
    is read only if it was named.
    """
    evaluated = []
    with lock_output(run_folder / FOLDER, wait=True):
        while (name := next_checkpoint(run_folder, job)) is not None:
            if _export(run_folder, name, must_be_there=job.checkpoint is not None):
                _evaluate(run_folder, name, job)
                evaluated.append(name)
    return evaluated


def _export(run_folder: Path, name: str, *, must_be_there: bool) -> bool:
    """Write a checkpoint as a model folder; return whether it is there. Its files may be deleted meanwhile."""
    model = run_folder / FOLDER / name / MODEL
    if model.is_dir():
        return True
    from training.checkpoint_files import DONE
    from training.export import export_run

    try:
        export_run(run_folder, name, model)
    except (RunError, OSError):
        if must_be_there or (run_folder / "checkpoints" / name / DONE).exists():
            raise
        logger.info("%s: was deleted by save.keep while it was read; the newest is taken instead", name)
        return False
    return True


def _evaluate(run_folder: Path, name: str, job: SideJob) -> None:
    """Evaluate a model folder on the splits that have no results, and put it away."""
    from data_tools.report import make_console
    from training.evaluation.command import Choices, evaluate, print_results
    from training.generation import Sampling

    config = read_run_config(run_folder / "config.yaml")
    place, console = run_folder / FOLDER / name, make_console()
    for split in missing_splits(run_folder, name, job.splits):
        choices = Choices((split,), place / split, Sampling(MAX_NEW_TOKENS), limit=job.limit)
        results = evaluate(place / MODEL, config.shards, choices, console)
        print_results(results, choices.output, console)
        record_event(run_folder, "evaluated", step=step_of(name), split=split, **_main_scores(results))
    if config.log.tensorboard:
        write_board(run_folder)
    kept = run_folder / EXPORTS / name
    if job.keep_export and not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        (place / MODEL).rename(kept)
    else:
        shutil.rmtree(place / MODEL)


def _main_scores(results: "Results") -> dict[str, float]:
    whole = results.group("all", "all")
    assert whole is not None
    scores: dict[str, float] = {"documents": whole.documents}
    for key in ("loss", "exact_match"):
        if key in whole.scores:
            scores[key] = whole.scores[key].value
    return scores


def write_board(run_folder: Path) -> None:
    """Write all of a run's evaluations into its TensorBoard folder, in the order of their steps.

    They are a file of their own beside those of the training, written anew each time: TensorBoard drops the later
    points of a curve that goes back in its steps, and a kill would leave points twice.
    """
    from torch.utils.tensorboard import SummaryWriter

    from training.evaluation.board import add_evaluation

    folder = run_folder / "tensorboard"
    before = list(folder.glob(f"events.*{BOARD_SUFFIX}"))
    found = sorted(
        (run_folder / FOLDER).glob(f"step-*/*/{FILE_NAME}"),
        key=lambda path: (step_of(path.parents[1].name), path),
    )
    with SummaryWriter(str(folder), filename_suffix=BOARD_SUFFIX) as board:
        for path in found:
            add_evaluation(board, path.parent, step=step_of(path.parents[1].name))
    for path in before:
        path.unlink()


def main(arguments: list[str]) -> int:
    """Evaluate for the job script; return the exit code: 2 for what the user has to see to."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser("python -m training.evaluation.beside")
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--split", action="append", required=True)
    parser.add_argument("--checkpoint")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--keep-export", action="store_true")
    given = parser.parse_args(arguments)
    job = SideJob(tuple(given.split), given.checkpoint, given.limit, given.keep_export)
    try:
        names = evaluate_checkpoints(given.run_folder.absolute(), job)
    except ShardtuneError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    logger.info("evaluated: %s", ", ".join(names) or "nothing new")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
