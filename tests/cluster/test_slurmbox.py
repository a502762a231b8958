"""The cluster that the other tests here stand on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.cluster.slurmbox import SlurmBox, missing_programs
from tests.conftest import ROOT

pytestmark = pytest.mark.alone


def test_two_nodes_with_two_tasks_each_and_their_gpus(slurm: SlurmBox) -> None:
    job = slurm.sbatch(
        *("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=h100:4", "--output=%j.out", "--wrap"),
        "srun bash -c 'echo $SLURM_PROCID $SLURM_LOCALID $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES'",
    )
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    lines = sorted((slurm.root / f"{job}.out").read_text().splitlines())
    assert lines == [
        *("0 0 127.0.0.1 0,1,2,3", "1 1 127.0.0.1 0,1,2,3"),
        *("2 0 127.0.0.2 0,1,2,3", "3 1 127.0.0.2 0,1,2,3"),
    ]


@pytest.mark.skipif(
    bool(missing_programs()), reason="needs the Debian packages slurmctld slurmd slurm-client"
)
def test_nothing_is_left_when_the_test_itself_is_killed(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys; from tests.cluster.slurmbox import SlurmBox\n"
        "with SlurmBox(pathlib.Path(sys.argv[1])) as box:\n"
        "    box.wait(box.sbatch('--nodes=2', '--wrap', 'srun sleep 600'), states=['RUNNING'])\n"
        "    print('up', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    mark = f"SLURM_CONF={tmp_path}/slurm.conf"
    assert len(list(_with_variable(mark))) > 4  # the controller, two nodes, steps, tasks
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 20
    while list(_with_variable(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(_with_variable(mark)) == []


def _with_variable(mark: str) -> "list[psutil.Process]":
    found = []
    for process in psutil.process_iter():
        try:
            environ = Path(f"/proc/{process.pid}/environ").read_bytes()
        except OSError:
            continue
        if mark.encode() in environ.split(b"\0") and process.pid != os.getpid():
            found.append(process)
    return found
