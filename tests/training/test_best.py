"""The best checkpoint, and runs that end early."""

import json
import math
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_tools.errors import RunError
from data_tools.shard_index import TaskInfo
from tests.training.harness import Project, environment, shardtune, wait_for_step
from tests.training.small_run import make_small_run
from training.best import Best, task_groups
from training.checkpoint_files import CheckpointReader, best_checkpoint, read_progress
from training.checkpoint_write import prune
from training.config import check_run, load_run_config
from training.events import read_events
from training.export import pick_checkpoint
from training.metrics import read_metrics

PATIENCE = 3
SETTINGS: dict[str, Any] = {
    "steps": 100,
    # So high a rate that the loss goes up again before long.
    "optim": {"lr": 0.03, "warmup": 4, "schedule": "constant"},
    "evaluate": {"every_steps": 1, "max_packs": 4, "patience": PATIENCE},
    "save": {"best": "validation/loss", "every_steps": 100, "keep": 1},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_run(tmp_path_factory.mktemp("small") / "made")


def evaluations(project: Project, name: str) -> list[dict[str, Any]]:
    """Return what each step was found to be; timings left out."""
    rows = read_metrics(project.run_folder(name))
    kept = ("step", "train/loss", "train/grad_norm", "validation/loss", "validation/token_accuracy")
    return [{key: row[key] for key in kept if key in row} for row in rows]


@pytest.fixture(scope="module")
def ended_early(tiny: Project) -> list[dict[str, Any]]:
    tiny.train("early", **SETTINGS)
    return evaluations(tiny, "early")


def test_a_run_that_does_not_improve_ends_early_and_has_the_best_checkpoint(
    tiny: Project, ended_early: list[dict[str, Any]]
) -> None:
    losses = [row["validation/loss"] for row in ended_early]
    best = losses.index(min(losses)) + 1
    assert len(losses) == best + PATIENCE < SETTINGS["steps"]
    run = tiny.run_folder("early")
    assert (run / "state").read_text().strip() == "done"
    last = f"step-{len(losses):06d}"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [f"step-{best:06d}", last]
    assert read_progress(run / "checkpoints" / last).best == Best(
        "validation/loss", best, min(losses), PATIENCE
    )
    (said,) = [event for event in read_events(run) if event["event"] == "stopped_early"]
    assert said["step"] == len(losses)
    assert f"since step {best}" in said["why"]

    exported = tiny.folder / "best"
    command = shardtune("export", run, "--checkpoint", "best", "--output", exported)
    subprocess.run(command, env=environment(), check=True, capture_output=True)
    reader = CheckpointReader(run / "checkpoints" / f"step-{best:06d}")
    for name, weight in load_file(exported / "model.safetensors").items():
        assert torch.equal(weight.float(), reader.weight(name).float()), name


@pytest.mark.slow
def test_started_again_it_says_so_and_goes_on_only_with_other_settings(
    tiny: Project, ended_early: list[dict[str, Any]]
) -> None:
    process = tiny.start(tiny.write_run("early", SETTINGS))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert f"stopped early: validation/loss has not improved in {PATIENCE} evaluations" in output
    assert evaluations(tiny, "early") == ended_early

    more = SETTINGS["evaluate"] | {"patience": None}
    tiny.train("early", **SETTINGS | {"steps": len(ended_early) + 2, "evaluate": more})
    assert evaluations(tiny, "early")[: len(ended_early)] == ended_early
    assert len(evaluations(tiny, "early")) == len(ended_early) + 2


@pytest.mark.slow
def test_killed_and_stopped_at_an_evaluation_it_ends_early_at_the_same_step(
    tiny: Project, ended_early: list[dict[str, Any]]
) -> None:
    run_yaml = tiny.write_run("early-broken", SETTINGS)
    process = tiny.start(run_yaml)
    wait_for_step(tiny, "early-broken", 5)
    process.kill()
    process.wait()

    process = tiny.start(run_yaml)
    wait_for_step(tiny, "early-broken", 9)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    run = tiny.run_folder("early-broken")
    newest = max((run / "checkpoints").iterdir())
    assert read_progress(newest).owes_evaluation
    assert "validation/loss" not in evaluations(tiny, "early-broken")[-1]

    tiny.train("early-broken", **SETTINGS)
    assert evaluations(tiny, "early-broken") == ended_early
    losses = [row["validation/loss"] for row in ended_early]
    best = best_checkpoint(run / "checkpoints")
    assert best is not None
    assert best.name == f"step-{losses.index(min(losses)) + 1:06d}"


def test_lower_losses_and_higher_accuracies_are_better_and_nothing_is_better_than_a_number() -> None:
    loss = Best("validation/loss")
    for step, value in enumerate((3.0, 2.0, math.nan, 2.0, 2.5), 1):
        loss = loss.after(step, {"validation/loss": value})
    assert loss == Best("validation/loss", 2, 2.0, 3)
    assert loss.is_stale(3)
    assert not loss.is_stale(4)
    assert not loss.is_stale(None)
    name = "validation_by_family/multi_turn_token_accuracy"
    accuracy = Best(name).after(1, {name: 0.5}).after(2, {name: 0.75}).after(3, {name: 0.6})
    assert accuracy == Best(name, 2, 0.75, 1)
    never = Best("validation/loss").after(1, {"validation/loss": math.inf})
    assert never == Best("validation/loss", 0, None, 1)
    assert "never was finite" in never.describe()
    assert Best().after(1, {}) == Best()


def test_a_metric_that_turns_out_not_to_be_there_is_an_error() -> None:
    with pytest.raises(RunError, match=r"save\.best: the evaluation gives no a/loss.*expected one of b/loss"):
        Best("a/loss").after(1, {"b/loss": 1.0})


def test_tasks_are_grouped_by_all_that_is_known_of_them() -> None:
    task = TaskInfo(name="one", family="multi_task", source="tasks", category="sums")
    tasks = [task, replace(task, name="two", category=None), task]
    assert task_groups("validation", tasks) == {
        "validation/": [0, 1, 2],
        "validation_by_family/multi_task_": [0, 1, 2],
        "validation_by_source/tasks_": [0, 1, 2],
        "validation_by_category/sums_": [0, 2],
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("save.best=validation/los",),
            "save.best: no such metric of the evaluation: got 'validation/los'; expected one of validation/loss, "
            "validation/token_accuracy, or one by family, source, category; did you mean 'validation/loss'?",
        ),
        (
            ("save.best=train/loss",),
            "save.best: got 'train/loss' and train is not evaluated; expected it in evaluate.splits, which are "
            "validation",
        ),
        (
            ("save.best=unseen_tasks/loss",),
            "save.best: no such metric of the evaluation: got 'unseen_tasks/loss'",
        ),
        (
            ("save.best=validation/loss", "evaluate.splits=[]"),
            "save.best: got 'validation/loss' and no split is evaluated; expected one in evaluate.splits",
        ),
        (
            ("evaluate.patience=3",),
            "evaluate.patience: needs a metric to watch: got 3 without save.best; expected one, such as save.best: "
            "validation/loss",
        ),
    ],
)
def test_what_cannot_be_watched_is_said_before_the_start(
    made: Path, settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RunError) as caught:
        check_run(load_run_config(made, settings))
    assert str(caught.value).startswith(message)


def test_metrics_by_family_can_be_watched(made: Path) -> None:
    check_run(
        load_run_config(made, ["save.best=validation_by_family/single_turn_loss", "evaluate.patience=2"])
    )


def checkpoints_of(folder: Path, *bests: tuple[int, Best]) -> Path:
    """Make finished checkpoints that hold no weights."""
    for step, best in bests:
        path = folder / f"step-{step:06d}"
        path.mkdir(parents=True)
        progress: dict[str, Any] = {
            "step": step, "packs_consumed": 1, "shards_fingerprint": "", "seed": 1, "world_size": 1,
            "optimizer_step": 1, "optimizer_states": [], "parameter_groups": [], "shapes": {}, "versions": {},
            "format_version": 1, "best": {"metric": best.metric, "step": best.step, "value": best.value},
        }  # fmt: skip
        (path / "progress.json").write_text(json.dumps(progress))
        (path / "DONE").touch()
    return folder


def test_where_the_best_could_not_be_saved_the_one_before_counts(tmp_path: Path) -> None:
    first, lost = Best("validation/loss", 10, 2.0), Best("validation/loss", 20, 1.0)
    folder = checkpoints_of(tmp_path, (10, first), (15, first), (25, lost))
    assert best_checkpoint(folder) == folder / "step-000010"
    prune(folder, keep=1, keep_every=None)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000010", "step-000025"]
    unwatched = checkpoints_of(tmp_path / "other", (10, first), (15, replace(first, metric="")))
    assert best_checkpoint(unwatched) is None
    prune(unwatched, keep=1, keep_every=None)
    assert [path.name for path in unwatched.iterdir()] == ["step-000015"]
    with pytest.raises(RunError, match=r"no checkpoint is known to be the best; set save\.best"):
        pick_checkpoint(unwatched, "best")
