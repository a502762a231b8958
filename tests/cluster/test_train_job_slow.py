"""What takes minutes to see: the time limit itself, a node that is lost, a chain of jobs."""

import signal
from pathlib import Path

import pytest

from tests.cluster.jobs import ENVIRONMENT, ClusterRun, wait_until
from tests.cluster.slurmbox import SlurmBox
from tests.training.small_run import make_small_run

pytestmark = [pytest.mark.slow, pytest.mark.alone]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small model and its shards."""
    return make_small_run(tmp_path_factory.mktemp("slow_jobs") / "project").parent


def two_nodes(slurm: SlurmBox, project: Path, name: str, *, steps: int, **keys: object) -> ClusterRun:
    """Return a run of one rank on each of two nodes."""
    settings = {"nodes": 2, "gpus": None, **keys}
    return ClusterRun(
        slurm,
        project,
        name,
        steps=steps,
        launch={"gpus_per_node": 1},
        save={"every_steps": 20},
        slurm=settings,
    )


def test_near_its_time_limit_a_job_saves_and_is_requeued_until_the_user_says_stop(
    slurm: SlurmBox, project: Path
) -> None:
    run = two_nodes(slurm, project, "limit", steps=100_000, time="00:03:00", check_nodes=True)
    job = run.submit()
    wait_until(lambda: bool(run.events("signalled")), 240)  # Slurm sends it up to a minute early
    run.wait_for_step(1, starts=2)
    assert slurm.job(job)["Restarts"] == "1"
    assert "2 ranks on 2 nodes: no mistakes" in run.log(job)  # slurm.check_nodes
    resumed = run.events("training")[1]["step"]
    assert resumed > 0
    run.wait_for_step(resumed + 5, starts=2)
    (run.path / "STOP").touch()
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    assert run.state == "stopped"
    assert "stopped by the file STOP; not requeued" in run.log(job)
    assert slurm.job(job)["Restarts"] == "1"
    # A later job of a chain respects it too.
    late = run.sbatch()
    assert slurm.wait(late)["JobState"] == "FAILED"
    assert "STOP: asks the run to stop" in run.log(late)


def test_a_chain_of_three_jobs(slurm: SlurmBox, project: Path) -> None:
    run = two_nodes(slurm, project, "chain", steps=150)
    first = run.submit()
    second, third = run.sbatch(), run.sbatch("--array=1-2%1")
    run.wait_for_step(25)
    assert {slurm.job(second)["JobState"], slurm.jobs(third)[0]["JobState"]} == {"PENDING"}
    slurm.command("scancel", first)  # the ranks get SIGTERM and save
    run.wait_for_step(1, starts=2)
    assert slurm.job(first)["JobState"] == "CANCELLED"
    resumed = run.events("training")[1]["step"]
    assert resumed >= 20
    run.ranks()[0].send_signal(signal.SIGKILL)  # before it has saved again
    assert slurm.wait(second)["JobState"] == "FAILED"
    assert "ranks have died before a checkpoint was made" in run.log(second)
    records = slurm.wait_all(third)
    assert [record["JobState"] for record in records] == ["COMPLETED", "COMPLETED"]
    assert run.state == "done"
    assert [event["step"] for event in run.events("training")] == [0, resumed, resumed]
    assert sorted(run.losses) == list(range(1, 151))


def test_a_lost_node(slurm: SlurmBox, project: Path) -> None:
    run = two_nodes(slurm, project, "lost", steps=100_000)
    job = run.submit()
    run.wait_for_step(25)
    slurm.kill_node("127.0.0.2")
    slurm.wait(job, 90, states=["PENDING", "REQUEUED"])
    run.wait_for_step(1, starts=2)  # there are three nodes: it goes on with the other two
    assert slurm.job(job)["Restarts"] == "1"
    assert run.events("started")[1]["nodes"] == "127.0.0.1 127.0.0.3"
    assert run.events("training")[1]["step"] >= 20
    slurm.command("scancel", job)
    slurm.wait(job)
    slurm.start_node("127.0.0.2")
    wait_until(lambda: slurm.command("sinfo", "-h", "-t", "idle", "-o", "%D").stdout.strip() == "3", 60)


def test_a_spare_node_takes_the_place_of_a_bad_one_and_of_a_lost_one(slurm: SlurmBox, project: Path) -> None:
    run = two_nodes(slurm, project, "spare", steps=100_000, spare_nodes=1)
    run.submit("--print")
    (run.path / "bad_nodes").write_text("127.0.0.1\n")
    job = slurm.sbatch(run.path / "train.sbatch", env=ENVIRONMENT)
    run.wait_for_step(25)
    assert run.events("started")[0]["nodes"] == "127.0.0.2 127.0.0.3"
    (run.path / "bad_nodes").write_text("")
    slurm.kill_node("127.0.0.3")
    run.wait_for_step(1, starts=2)
    # In the same job, which has kept its place: no queue.
    assert run.events("started")[1]["nodes"] == "127.0.0.1 127.0.0.2"
    assert slurm.job(job)["Restarts"] == "0"
    assert run.events("training")[1]["step"] >= 20
    slurm.command("scancel", job)
    slurm.wait(job)
    slurm.start_node("127.0.0.3")
    wait_until(lambda: slurm.command("sinfo", "-h", "-t", "idle", "-o", "%D").stdout.strip() == "3", 60)
