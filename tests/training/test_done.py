"""Runs that are done: when there is more to do, and when that is said at once."""

import json
from pathlib import Path

import pytest

from data_tools.shards import open_shards
from tests.training.small_run import make_small_run
from training.config import load_run_config
from training.done import nothing_left
from training.run_folder import RunFolder


@pytest.fixture(scope="module")
def run_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of 4 steps that has done all of them, going by its files."""
    run_yaml = make_small_run(tmp_path_factory.mktemp("done") / "made")
    config = load_run_config(run_yaml)
    run = RunFolder(config.run_folder)
    folder = run.checkpoints / "step-000004"
    folder.mkdir(parents=True)
    progress = {"step": 4, "packs_consumed": 4 * config.batch.packs_per_step, "owes_evaluation": False}
    (folder / "progress.json").write_text(json.dumps(progress))
    (folder / "DONE").touch()
    run.write_state("done")
    return run_yaml


@pytest.mark.parametrize(
    ("changes", "left"),
    [(["steps=4"], 0), (["steps=3"], 0), (["steps=5"], 1), (["steps=null", "epochs=99"], 1)],
)
def test_steps_are_left_if_more_are_asked_for(run_yaml: Path, changes: list[str], left: int) -> None:
    config = load_run_config(run_yaml, changes)
    said = nothing_left(config, open_shards(config.shards))
    assert (said is None) == bool(left)
    assert said is None or "nothing left to do: 4 steps are done of" in said


def test_a_run_that_was_stopped_or_owes_an_evaluation_goes_on(run_yaml: Path) -> None:
    config = load_run_config(run_yaml, ["steps=4"])
    run, shards = RunFolder(config.run_folder), open_shards(config.shards)
    run.write_state("stopped")
    assert nothing_left(config, shards) is None
    run.write_state("done")
    progress = run.checkpoints / "step-000004" / "progress.json"
    kept = progress.read_text()
    progress.write_text(json.dumps(json.loads(kept) | {"owes_evaluation": True}))
    assert nothing_left(config, shards) is None
    progress.write_text(kept)
