"""`--follow` on a real cluster. The jobs write what a run writes, by the run's own code, and train nothing."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cluster.slurmbox import SlurmBox
from tests.conftest import ROOT
from training.cluster.follow import _News, follow
from training.events import record_event
from training.status.report import read_status

pytestmark = pytest.mark.alone

# Stopped and requeued in its first start, done in its second.
RUN = """
import os, sys, time
from pathlib import Path
from training.events import record_event
from training.metrics import MetricsLog
from training.run_folder import RunFolder
run, job = RunFolder(Path(sys.argv[1])), os.environ["SLURM_JOB_ID"]
first = 4 * int(os.environ.get("SLURM_RESTART_COUNT", 0))
with run.hold():
    record_event(run.path, "started", job=job, host="n1")
    record_event(run.path, "training", step=first, num_steps=8, world=1, reached=first)
    log = MetricsLog(run.path, resume_step=first, tensorboard=False)
    for step in range(first + 1, first + 5):
        time.sleep(0.2)
        log.write(step, {"train/loss": 9.0 - step, "time/step_seconds": 0.2, "speed/tokens_per_second": 100.0})
    run.write_state("done" if first else "stopped")
if not first:
    record_event(run.path, "requeued", job=job)
    os.execvp("bash", ["bash", "-c", f"scontrol requeue {job}; sleep 60"])
"""


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    (folder / "logs").mkdir(parents=True)
    (folder / "config.yaml").touch()
    return folder


@pytest.fixture
def shown(slurm: SlurmBox, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let this process stand on the login node; return what is shown there."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm.env[name])
    return []


def sbatch(slurm: SlurmBox, run_folder: Path, *options: str, code: str = RUN) -> str:
    script = run_folder / "run.py"
    script.write_text(code)
    job = slurm.sbatch(
        *("--requeue", "--open-mode=append", f"--output={run_folder}/logs/job-%j.out", *options),
        *("--wrap", f"{sys.executable} {script} {run_folder}"),
        env={"PYTHONPATH": str(ROOT)},
    )
    record_event(run_folder, "submitted", job=job)
    return job


def test_a_job_is_followed_through_its_requeue_to_the_end(
    slurm: SlurmBox, run_folder: Path, shown: list[str]
) -> None:
    job = sbatch(slurm, run_folder, "--begin=now+2")
    assert follow(run_folder, job, show=shown.append, poll_seconds=0.2) == 0
    text = "\n".join(shown)
    assert f"job {job} is PENDING (BeginTime)" in shown[0]
    assert shown.count(f"job {job} is RUNNING") == 2
    assert re.search(r"step [1-4]/8  loss [5-8]  100 tok/s", text)
    assert "demo: done, step 8 of 8" in shown[-1]
    assert "2 (1 restarts)" in shown[-1]
    assert all(line != before for before, line in itertools.pairwise(shown))


def test_steps_of_an_earlier_start_are_not_news_and_the_end_is_that_of_this_start(run_folder: Path) -> None:
    shown: list[str] = []
    news = _News(shown.append)
    earlier = replace(read_status(run_folder), state="waiting", step=16, num_steps=413, seconds_left=9000.0)
    for state in ("waiting", "starting", "running"):
        news.training(replace(earlier, state=state))
    assert shown == []
    news.training(replace(earlier, state="running", step=17, num_steps=29, seconds_left=30.0))
    assert shown == ["step 17/29  left 30 s"]


def test_a_job_that_leaves_the_queue_before_it_started(
    slurm: SlurmBox, run_folder: Path, shown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.cluster.follow.VISIBLE_SECONDS", 0.5)
    job = sbatch(slurm, run_folder, "--hold")
    slurm.command("scancel", job)
    assert follow(run_folder, job, show=shown.append, poll_seconds=0.2) == 1
    assert f"job {job} is not in Slurm's queue any more; submit it again" in shown[-1]


def test_a_users_mistake_gives_its_exit_code(slurm: SlurmBox, run_folder: Path, shown: list[str]) -> None:
    code = (
        "import sys; from pathlib import Path; from data_tools.errors import RunError\n"
        "from training.events import record_event; from training.run_folder import RunFolder\n"
        "run = RunFolder(Path(sys.argv[1])); record_event(run.path, 'started', host='n1')\n"
        "run.write_mistake(RunError('model: the weights do not fit')); run.write_state('failed'); sys.exit(2)\n"
    )
    job = sbatch(slurm, run_folder, code=code)
    assert follow(run_folder, job, show=shown.append, poll_seconds=0.2) == 2
    assert "model: the weights do not fit" in shown[-1]


def test_ctrl_c_leaves_the_job_alone(slurm: SlurmBox, run_folder: Path, shown: list[str]) -> None:
    job = sbatch(slurm, run_folder, code="import time; time.sleep(60)")
    code = "import signal, sys; from training.cluster.follow import follow; from pathlib import Path\n"
    code += (
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in a shell's background job
    )
    code += "sys.exit(follow(Path(sys.argv[1]), sys.argv[2]))"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, run_folder, job],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    assert process.stdout is not None
    assert f"job {job} is" in process.stdout.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 130
    assert f"job {job} goes on; see it with: shardtune status {run_folder}" in output
    assert slurm.job(job)["JobState"] == "RUNNING"
    slurm.command("scancel", job)
