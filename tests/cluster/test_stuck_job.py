"""Bad nodes in a job with a spare one: found by the watchdog, and by the check before the ranks start."""

import signal
from pathlib import Path

import pytest

from tests.cluster.jobs import ClusterRun
from tests.cluster.slurmbox import SlurmBox
from tests.training.small_run import make_small_run
from training.nodes import read_bad_nodes

pytestmark = [pytest.mark.slow, pytest.mark.alone]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small model and its shards."""
    return make_small_run(tmp_path_factory.mktemp("stuck_jobs") / "project").parent


def with_a_spare(slurm: SlurmBox, project: Path, name: str, *, steps: int, **keys: object) -> ClusterRun:
    """Return a run of one rank on each of two nodes, with a third one standing by."""
    return ClusterRun(
        slurm,
        project,
        name,
        steps=steps,
        watchdog=10,
        launch={"gpus_per_node": 1},
        save={"every_steps": 20},
        slurm={"nodes": 2, "spare_nodes": 1, "gpus": None, **keys},
    )


def test_a_job_goes_on_without_the_node_of_a_rank_that_hangs(slurm: SlurmBox, project: Path) -> None:
    run = with_a_spare(slurm, project, "stuck", steps=200)
    job = run.submit()
    run.wait_for_step(45)
    run.ranks()[1].send_signal(signal.SIGSTOP)
    assert slurm.wait(job, 240)["JobState"] == "COMPLETED", run.log(job)
    (stuck,) = run.events("stuck")
    assert (stuck["ranks"], stuck["host"]) == ([1], "127.0.0.2")
    assert "waits for rank 1 on node 127.0.0.2" in stuck["said"]
    assert read_bad_nodes(run.path) == ["127.0.0.2"]
    assert [event["nodes"] for event in run.events("started")] == [
        "127.0.0.1 127.0.0.2",
        "127.0.0.1 127.0.0.3",
    ]
    assert run.events("training")[1]["step"] >= 40  # and nothing torn: it goes on from the newest checkpoint
    assert run.state == "done"
    assert sorted(run.losses) == list(range(1, 201))
    assert slurm.job(job)["Restarts"] == "0"
    stacks = "".join(path.read_text() for path in (run.path / "logs").glob("job-*_rank0.log"))
    assert "rank 0 has made no progress for" in stacks


def test_a_job_tries_its_nodes_and_starts_without_the_bad_one(slurm: SlurmBox, project: Path) -> None:
    run = with_a_spare(slurm, project, "tried", steps=4, check_nodes=True)
    (run.path / "preflight").mkdir(parents=True)
    (run.path / "preflight" / "check-127.0.0.2-1").symlink_to("/dev/full")
    job = run.submit()
    assert slurm.wait(job, 240)["JobState"] == "COMPLETED", run.log(job)
    assert "node 127.0.0.2, rank 1: [Errno 28] No space left on device" in run.log(job)
    assert read_bad_nodes(run.path) == ["127.0.0.2"]
    assert [event["nodes"] for event in run.events("started")][-1] == "127.0.0.1 127.0.0.3"
    assert run.state == "done"
