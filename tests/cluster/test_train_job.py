"""Training jobs on a real Slurm cluster; what happened is read from the runs' own files."""

import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.cluster.jobs import ENVIRONMENT, ClusterRun, environment_of, wait_until
from tests.cluster.slurmbox import SlurmBox
from tests.conftest import ROOT
from tests.training.harness import shardtune
from tests.training.small_run import make_small_run
from training.status.report import read_status

pytestmark = pytest.mark.alone

STEPS = 40


def why(run_folder: Path) -> str:
    """Return the kind of reason that `shardtune status` gives for a run that has ended."""
    found = read_status(run_folder).why
    assert found is not None
    return found.kind


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small model and its shards."""
    return make_small_run(tmp_path_factory.mktemp("jobs") / "project").parent


@pytest.fixture(scope="module")
def unbroken(slurm: SlurmBox, project: Path) -> dict[int, float]:
    """Return the losses of a run to the end: two nodes, two ranks each, by the script that --print gives."""
    run = ClusterRun(
        slurm,
        project,
        "unbroken",
        steps=STEPS,
        slurm={
            "nodes": 2,
            "time": "00:10:00",
            "gpu_type": "h100",
            "cpus_per_task": 2,
            "site": str(ROOT / "slurm" / "sites" / "example.sh"),
        },
    )
    printed = slurm.command(
        *shardtune("submit", run.yaml, "--print"), env={**ENVIRONMENT, "NO_COLOR": "1"}, cwd=project
    )
    assert "#SBATCH --gpus-per-node=h100:2\n" in printed.stdout
    assert "2 nodes x 2 ranks" in printed.stderr
    job_script = project / "as-printed.sh"
    job_script.write_text(printed.stdout)
    job = slurm.sbatch(job_script, env=ENVIRONMENT)
    run.wait_for_step(1)
    ranks = run.ranks()
    assert sorted(ranks) == [0, 1, 2, 3]
    seen = [environment_of(process.pid) for _, process in sorted(ranks.items())]
    assert slurm.wait(job)["JobState"] == "COMPLETED", run.log(job)

    assert [env["SLURMD_NODENAME"] for env in seen] == ["127.0.0.1"] * 2 + ["127.0.0.2"] * 2
    assert {env["CUDA_VISIBLE_DEVICES"] for env in seen} == {"0,1"}
    assert {env["HF_HUB_OFFLINE"] for env in seen} == {"1"}
    assert run.state == "done"
    assert sorted(run.losses) == list(range(1, STEPS + 1))
    assert f"step {STEPS}/{STEPS}" in (run.path / "logs" / "rank-0.log").read_text()
    assert (run.path / "logs" / "rank-3.log").is_file()
    (started,), (ended,) = run.events("started"), run.events("ended")
    assert (started["nodes"], started["ranks"], started["restart"]) == ("127.0.0.1 127.0.0.2", 4, 0)
    assert (ended["state"], ended["code"], ended["saved"]) == ("done", 0, STEPS)
    # A job that comes after the end, as in a chain, has nothing to do.
    late = slurm.sbatch(job_script, env=ENVIRONMENT)
    assert slurm.wait(late)["JobState"] == "COMPLETED"
    assert "the run is done; nothing to do" in run.log(late)
    assert len(run.events("started")) == 1
    return run.losses


def test_signalled_then_preempted_it_gives_the_losses_of_the_unbroken_run(
    slurm: SlurmBox, project: Path, unbroken: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_CONF", "PATH"):  # so that the status can ask for the job
        monkeypatch.setenv(name, slurm.env[name])
    run = ClusterRun(
        slurm,
        project,
        "broken",
        steps=STEPS,
        slurm={"nodes": 2, "time": "00:10:00", "gpus": "gres", "partition": "main"},
    )
    job = run.submit()
    assert "#SBATCH --gres=gpu:2\n" in (run.path / "train.sbatch").read_text()

    run.wait_for_step(5)
    assert environment_of(run.ranks()[3].pid)["CUDA_VISIBLE_DEVICES"] == "0,1"
    slurm.command("scancel", "--signal=USR1", "--batch", job)  # what Slurm does before the time limit
    states: set[str] = set()

    def trains_again() -> bool:
        states.add(read_status(run.path).state)
        return len(run.events("training")) == 2

    wait_until(trains_again, 150)
    assert "starting" in states  # while the ranks load
    assert not states & {"died", "failed", "done"}
    run.wait_for_step(1, starts=2)
    first_stop = run.events("training")[1]["step"]
    assert 5 <= first_stop < STEPS
    assert run.events("signalled")[0]["signal"] == "USR1"

    run.wait_for_step(first_stop + 5, starts=2)
    urgent = slurm.sbatch("--partition=urgent", "--nodes=3", "--exclusive", "--wrap", "sleep 1")
    assert slurm.wait(urgent)["JobState"] == "COMPLETED"
    assert slurm.wait(job)["JobState"] == "COMPLETED", run.log(job)
    second_stop = run.events("training")[2]["step"]
    assert first_stop + 5 <= second_stop < STEPS
    assert slurm.job(job)["Restarts"] == "2"
    assert [event["job"] for event in run.events("requeued")] == [int(job), int(job)]
    assert [event["state"] for event in run.events("ended")] == ["stopped", "stopped", "done"]
    assert run.losses == unbroken
    assert "has not requeued" not in run.log(job)


def test_a_killed_rank_a_cancelled_job_and_one_node_in_place_of_two(slurm: SlurmBox, project: Path) -> None:
    run = ClusterRun(
        slurm,
        project,
        "killed",
        steps=100,
        launch={"gpus_per_node": 1},
        save={"every_steps": 10},
        slurm={"nodes": 2, "gpus": None},
    )
    run.submit("--print")
    script = run.path / "train.sbatch"
    assert "gpu" not in "".join(
        line for line in script.read_text().splitlines() if line.startswith("#SBATCH")
    )
    job = slurm.sbatch("--export=ALL,LAUNCH=deepspeed", script, env=ENVIRONMENT)
    run.wait_for_step(15)
    run.ranks()[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: bool(run.events("ended")), 60)
    assert time.monotonic() - killed < 30
    assert run.events("ended")[0]["state"] == "none"

    # A checkpoint was made in this start, so it is worth another one: in the same job, from the last complete one.
    run.wait_for_step(11, starts=2)
    resumed = run.events("training")[1]["step"]
    assert resumed in (10, 20)
    assert (run.path / "checkpoints" / f"step-{resumed:06d}" / "DONE").is_file()
    assert "starting again from step" in run.log(job)
    slurm.command("scancel", job)
    assert slurm.wait(job)["JobState"] == "CANCELLED"
    time.sleep(1)
    assert slurm.job(job)["JobState"] == "CANCELLED"  # and not pending once more
    wait_until(lambda: not run.ranks(), 30)
    assert not run.events("requeued")
    assert why(run.path) == "cancelled"

    alone = run.submit("--nodes", "1", "steps=40" if run.logged_step() < 30 else "steps=100")
    assert slurm.wait(alone, 150)["JobState"] == "COMPLETED", run.log(alone)
    assert run.state == "done"
    assert run.events("training")[-1]["world"] == 1
    assert run.events("training")[-1]["step"] >= resumed


def test_a_mistake_that_only_the_ranks_find_is_told_and_not_tried_again(
    slurm: SlurmBox, project: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "project"
    shutil.copytree(project, folder)
    run = ClusterRun(
        slurm, folder, "wrong", steps=4, launch={"gpus_per_node": 1}, slurm={"nodes": 2, "gpus": None}
    )
    run.submit("--print")
    shutil.rmtree(folder / "shards")
    job = run.sbatch()
    assert slurm.wait(job)["JobState"] == "FAILED"
    log = run.log(job)
    assert f"127.0.0.2: shards: {folder}/shards/index.json: is not there" in log
    assert slurm.job(job)["Restarts"] == "0"
    assert {event["host"] for event in run.events("failed")} == {"127.0.0.1", "127.0.0.2"}
    assert (read_status(run.path).state, why(run.path)) == ("failed", "mistake")
