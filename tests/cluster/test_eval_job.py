"""The side job of `shardtune submit --eval`: checkpoints of a run on a real cluster, evaluated while it trains."""

import os
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from data_tools.errors import RunError, SettingsError, ShardtuneError
from data_tools.pack import pack
from data_tools.settings import load_data_settings
from tests.cluster.jobs import ENVIRONMENT, ClusterRun, wait_until
from tests.cluster.slurmbox import SlurmBox
from tests.conftest import ROOT
from tests.training.harness import shardtune
from tests.training.small_run import copy_small_run, make_small_run
from training.cli import app
from training.cluster.eval_job import prepare_eval_job, submit_eval
from training.config import load_run_config
from training.evaluation.places import SideJob
from training.evaluation.results import read_results
from training.report.page import write_report
from training.status.report import read_status

pytestmark = pytest.mark.alone

EVERY = 50
STEPS = 1_000_000  # it is stopped when there is enough to see


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run.yaml of a small model and its shards, which have validation and no test."""
    return make_small_run(tmp_path_factory.mktemp("side") / "project")


def send(run: ClusterRun, *arguments: str | Path) -> str:
    """Give the command; return the id of the job."""
    done = run.slurm.command(
        *shardtune("submit", *arguments, "--eval"),
        env={**ENVIRONMENT, "LOOK_AGAIN_SECONDS": "3"},
        cwd=run.project,
    )
    return done.stdout.removeprefix("submitted batch job ").replace(",", ";").split(";")[0]


def log(run: Path, job: str) -> str:
    return (run / "logs" / f"eval-{job}.out").read_text()


def evaluated(run: Path) -> dict[int, Path]:
    """Return step -> results of validation."""
    found = run.glob("evaluation/step-*/validation/results.json")
    return {int(path.parents[1].name.removeprefix("step-")): path for path in found}


def curve(board: Path, tag: str) -> dict[int, float]:
    """Return step -> value as TensorBoard reads a folder; steps that are there twice or go back are a failure."""
    steps = [
        (point.step, point.value)
        for point in EventAccumulator(str(board), size_guidance={"scalars": 0}).Reload().Scalars(tag)
    ]
    assert [step for step, _ in steps] == sorted({step for step, _ in steps})
    return dict(steps)


@pytest.fixture(scope="module")
def trained(slurm: SlurmBox, made: Path) -> ClusterRun:
    """Return a run of two ranks that was stopped; its checkpoints were evaluated while it trained, and after it."""
    run = ClusterRun(
        *(slurm, made.parent, "watched"),
        steps=STEPS,
        log={"tensorboard": True},
        save={"every_steps": EVERY, "keep": 2},
        slurm={"nodes": 2, "time": "00:10:00", "gpus": None},
        launch={"gpus_per_node": 1},
    )
    job = run.submit()
    side = send(run, run.yaml, "--limit", "6")
    assert slurm.job(side)["JobName"] == "watched-eval"
    assert slurm.job(side)["NumNodes"] == "1"
    wait_until(lambda: bool(evaluated(run.path)), 150)
    # Training goes on meanwhile: it saves, and deletes what was evaluated.
    step = min(evaluated(run.path))
    assert slurm.job(job)["JobState"] == "RUNNING"
    status = read_status(run.path)
    assert (status.state, status.jobs) == ("running", [job])
    wait_until(lambda: not (run.path / "checkpoints" / f"step-{step:06d}").exists(), 60)
    (run.path / "STOP").touch()
    assert slurm.wait(job, 60)["JobState"] == "COMPLETED", run.log(job)
    assert slurm.wait(side, 150)["JobState"] == "COMPLETED", log(run.path, side)
    assert "nothing newer yet, and job 'watched' is in the queue; requeued" in log(run.path, side)
    return run


@pytest.mark.slow
def test_scores_stand_in_the_runs_tensorboard_at_the_checkpoints_step(trained: ClusterRun) -> None:
    found = evaluated(trained.path)
    last = max(int(path.name.removeprefix("step-")) for path in (trained.path / "checkpoints").glob("step-*"))
    assert max(found) == last == trained.logged_step()
    assert len(found) >= 2
    expected = {}
    for step, path in found.items():
        whole = read_results(path).group("all", "all")
        assert whole is not None
        assert whole.documents == 6
        expected[step] = whole.scores["loss"].value
    assert curve(trained.path / "tensorboard", "eval_validation/loss") == pytest.approx(expected)
    assert set(curve(trained.path / "tensorboard", "train/loss")) == set(range(1, last + 1))
    assert expected[max(found)] < expected[min(found)] < 6  # it is the model that was trained
    assert len(list((trained.path / "tensorboard").glob("*.evaluation"))) == 1

    told = {event["step"]: event for event in trained.events("evaluated")}
    assert {step: told[step]["loss"] for step in told} == expected
    assert [event["step"] for event in trained.events("evaluated")] == sorted(expected)  # none of them twice
    assert list(trained.path.glob("evaluation/*/model*")) == []
    report = write_report(trained.path, None).read_text()
    assert f"step-{last:06d}" in report
    status = read_status(trained.path)
    assert (status.state, status.problems) == ("stopped", ())


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_with_the_answers_that_it_has(trained: ClusterRun) -> None:
    slurm, run = trained.slurm, trained
    last = f"step-{trained.logged_step():06d}"
    job = send(run, run.path, "--checkpoint", last, "--split", "train", "--keep-export")
    place = run.path / "evaluation" / last
    answers = place / "train" / "answers.jsonl"
    wait_until(lambda: answers.exists() and answers.read_text().count("\n") > 8, 90)
    slurm.command("scontrol", "requeue", job)  # as a preemption does
    before = answers.read_text().splitlines()
    export = (place / "model" / "model.safetensors").stat().st_mtime_ns
    assert not (place / "train" / "results.json").exists()
    # What comes in between does not matter: the export is there, whatever `save.keep` deletes.
    away = run.path / "checkpoints" / last
    away.rename(run.path / "away")
    try:
        assert slurm.wait(job, 120)["JobState"] == "COMPLETED", log(run.path, job)
    finally:
        (run.path / "away").rename(away)
    assert slurm.job(job)["Restarts"] == "1"
    assert answers.read_text().splitlines()[: len(before) - 1] == before[:-1]
    assert read_results(place / "train").about["answers"] == len(answers.read_text().splitlines()) - 1 > 100
    kept = run.path / "export" / last / "model.safetensors"
    assert kept.stat().st_mtime_ns == export
    assert not (place / "model").exists()
    assert list(curve(run.path / "tensorboard", "eval_train/loss")) == [trained.logged_step()]


@pytest.fixture
def run_folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a prepared run without a checkpoint, on a login node without Slurm."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("PATH", "/nonexistent")
    config = load_run_config(copy_small_run(made, tmp_path / "project"))
    config.run_folder.mkdir(parents=True)
    config.write(config.run_folder / "config.yaml")
    return config.run_folder


@pytest.fixture
def login_node(slurm: SlurmBox, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> SlurmBox:
    """Let this process stand on the cluster's login node."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH", "SRUN", "SQUEUE"))]:
        monkeypatch.delenv(name)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm.env[name])
    return slurm


def finish(run_folder: Path, *steps: int) -> None:
    """Let the run have checkpoints, as far as the login node looks at them."""
    for step in steps:
        (run_folder / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
        (run_folder / "checkpoints" / f"step-{step:06d}" / "DONE").touch()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "checkpoints: no finished checkpoint, and no job of the run in the queue; do: shardtune submit"),
        (
            {"checkpoint": "step-000003"},
            "no finished checkpoint of that name: got step-000003; expected one of",
        ),
        ({"checkpoint": "best"}, "no checkpoint is known to be the best"),
        (
            {"splits": ["test"]},
            "--split: nothing to evaluate on in .*: got test; expected one of train, validation",
        ),
        ({"limit": 0}, "--limit: got 0; expected 1 or more"),
        ({"overrides": ["slurm.site=nowhere.sh"]}, "slurm.site: .*nowhere.sh: no such file"),
        (
            {"splits": ["validation"], "checkpoint": "step-000001"},
            "step-000001 is evaluated on validation; remove",
        ),
        ({"settings": "nowhere.yaml"}, "nowhere.yaml"),
        ({"settings": "../.."}, "not a run folder: it has no config.yaml"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line_before_anything_is_written(
    run_folder: Path, arguments: dict[str, object], said: str
) -> None:
    if arguments:
        finish(run_folder, 1, 2)
        (run_folder / "checkpoints" / "step-000002" / "progress.json").write_text(PROGRESS)
    done = run_folder / "evaluation" / "step-000001" / "validation" / "results.json"
    done.parent.mkdir(parents=True)
    done.touch()
    settings = run_folder / str(arguments.pop("settings", "."))
    with pytest.raises(ShardtuneError, match=said) as error:
        submit_eval(settings, **{"overrides": [], **arguments})  # type: ignore[arg-type]
    assert len(str(error.value).splitlines()) == 1
    assert not (run_folder / "eval.sbatch").exists()


PROGRESS = (
    '{"format_version": 1, "step": 2, "packs_consumed": 8, "shards_fingerprint": "", "seed": 17, "world_size": 1, '
    '"optimizer_step": 2, "optimizer_states": [], "parameter_groups": [], "shapes": {}, "versions": {}}'
)


def test_the_run_must_be_there(made: Path) -> None:
    with pytest.raises(
        RunError, match=r"runs/small: no such run yet; do: shardtune submit .*run\.yaml, then this"
    ):
        submit_eval(made)


def test_the_script_asks_for_one_task_wherever_the_run_trains(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(run_folder, 4)
    overrides = ["slurm.nodes=4", "slurm.account=me", "slurm.gpus=gres", "slurm.gpu_type=h100", "slurm.mem=0"]
    overrides += ["slurm.options=[--exclusive]", "slurm.time=1-0"]
    config = load_run_config(run_folder / "config.yaml", overrides)
    job = SideJob((), "step-000004", 50)
    text = prepare_eval_job(run_folder, config, job, options=["--mem=64G", "--time=30"]).text
    assert [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")] == [
        "--job-name=small-eval-step-000004",
        f"--output={run_folder}/logs/eval-%j.out",
        *("--open-mode=append", "--nodes=1", "--ntasks=1", "--gres=gpu:h100:1", "--time=1-0", "--account=me"),
        *("--signal=B:USR1@60", "--requeue", "--dependency=singleton", "--mem=64G", "--time=30"),
    ]
    assert "\nTRAINING=''\nARGUMENTS='--split validation --checkpoint step-000004 --limit 50'\n" in text
    submit_eval(run_folder, print_only=True)
    printed = capsys.readouterr().out
    assert printed == (run_folder / "eval.sbatch").read_text()
    assert "\nTRAINING=small\nARGUMENTS='--split validation'\n" in printed
    assert "gpu" not in printed.partition("# ====")[0]
    with pytest.raises(RunError, match="sbatch: not found"):
        submit_eval(run_folder)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--eval", "--nodes", "2", "--array", "3"],
            "--nodes, --array: --eval: expected a run and a job of one node",
        ),
        (
            ["--split", "test", "--limit", "3"],
            "--split, --limit: .*run.yaml: expected --eval beside it; leave it out",
        ),
    ],
)
def test_options_of_one_kind_of_job_alone(made: Path, arguments: list[str], said: str) -> None:
    error = CliRunner().invoke(app, ["submit", str(made), *arguments]).exception
    assert isinstance(error, SettingsError)
    assert re.match(said, str(error)), error


def test_it_starts_after_a_training_job_that_waits(
    login_node: SlurmBox, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(run_folder, 1)
    with pytest.raises(RunError, match=r"Slurm has refused the job: .*Memory specification can not"):
        submit_eval(run_folder, options=["--mem=999999G"])
    (run_folder / "checkpoints" / "step-000001" / "DONE").unlink()
    training = login_node.sbatch("--hold", "--job-name=small", "--wrap", "true")
    submit_eval(run_folder)
    side = capsys.readouterr().out.removeprefix("submitted batch job ").partition(",")[0]
    assert f"after:{training}" in login_node.job(side)["Dependency"]
    login_node.command("scancel", side, training)


def test_without_a_split_that_is_held_out_train_must_be_named(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(run_folder, 1)
    pack(load_data_settings(run_folder.parents[1] / "data.yaml", ["splits.validation=0"]), workers=1)
    with pytest.raises(RunError, match="got no split held out; expected one of train"):
        submit_eval(run_folder)
    submit_eval(run_folder, splits=["train"], print_only=True)
    assert "ARGUMENTS='--split train'" in capsys.readouterr().out


PYTHON = """#!/bin/bash
mkdir -p "$RUN/evaluation/step-1/test"
[ "${SLURM_RESTART_COUNT:-0}" = 1 ] && exit 0
[ -e "$RUN/stuck" ] || echo '{}' >> "$RUN/evaluation/step-1/test/answers.jsonl"
touch "$RUN/begun"
sleep 60
"""


@pytest.mark.parametrize("stuck", [pytest.param(False, marks=pytest.mark.slow), True])
def test_near_its_time_limit_it_is_requeued_if_it_came_any_further(
    slurm: SlurmBox, tmp_path: Path, stuck: bool
) -> None:
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    if stuck:
        (tmp_path / "stuck").touch()
    env = {"RUN": str(tmp_path), "PYTHON": str(python)}
    output = f"--output={tmp_path}/log"
    job = slurm.sbatch(
        output, "--gpus-per-node=0", "--cpus-per-task=1", ROOT / "slurm" / "eval.sbatch", env=env
    )
    wait_until((tmp_path / "begun").exists, 30)
    slurm.command("scancel", "--signal=USR1", "--batch", job)
    ended = slurm.wait(job, 60)
    text = (tmp_path / "log").read_text()
    if stuck:
        assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0"), text
        assert "there is not one answer more: raise --time, or set --limit" in text
    else:
        assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), text
        assert "the time is nearly over; requeued" in text
