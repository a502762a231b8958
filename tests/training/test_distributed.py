"""Rank and rendezvous, from whatever started the process; the collectives, in a real group."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.errors import RunError
from tests.conftest import ROOT
from training.distributed import rendezvous_from
from training.launch import Devices, launcher_environment
from training.ops import ensure_ops

pytestmark = pytest.mark.alone

LAUNCHED = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


def test_a_launcher_has_said_everything() -> None:
    assert rendezvous_from(LAUNCHED | {"SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}) == LAUNCHED


def test_half_a_rendezvous_is_an_error() -> None:
    with pytest.raises(RunError, match="RANK is set without LOCAL_RANK, MASTER_ADDR, MASTER_PORT"):
        rendezvous_from({"RANK": "0", "WORLD_SIZE": "2"})


def test_a_single_process_is_a_world_of_one() -> None:
    found = rendezvous_from({})
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"]) == ("0", "1", "0")


def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> dict[str, str]:
    """Put an `scontrol` of our own in the path; return what srun sets in a task."""
    program = tmp_path / "scontrol"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return {
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_NTASKS": "8",
        "SLURM_STEP_ID": "2",
        "SLURM_JOB_ID": "1234567",
        "SLURM_STEP_NODELIST": "gpu[07-10]",
    }


def test_a_task_of_srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = slurm(tmp_path, monkeypatch, 'test "$*" = "show hostnames gpu[07-10]" && printf "gpu07\\ngpu08\\n"')
    found = rendezvous_from(env)
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"]) == ("5", "8", "1")
    assert found["MASTER_ADDR"] == "gpu07"
    assert 15000 <= int(found["MASTER_PORT"]) < 30000
    assert rendezvous_from(env | {"SLURM_PROCID": "0"})["MASTER_PORT"] == found["MASTER_PORT"]
    assert rendezvous_from(env | {"MASTER_ADDR": "head-ib"})["MASTER_ADDR"] == "head-ib"


def test_the_batch_scripts_own_shell_is_no_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = slurm(tmp_path, monkeypatch, "exit 1")
    del env["SLURM_STEP_ID"]
    assert rendezvous_from(env)["WORLD_SIZE"] == "1"


def test_slurm_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = slurm(tmp_path, monkeypatch, "exit 1")
    with pytest.raises(RunError, match=r"scontrol show hostnames .*: failed: .*; do: set MASTER_ADDR"):
        rendezvous_from(env)
    del env["SLURM_STEP_NODELIST"]
    with pytest.raises(RunError, match="Slurm names no nodes"):
        rendezvous_from(env)


COLLECTIVES = """
import torch
from training.distributed import World, all_max, all_sum, barrier, init_world
world = init_world()
given = torch.tensor([1.0, world.rank])
assert all_sum(given).tolist() == [world.size, sum(range(world.size))]
assert given.tolist() == [1.0, world.rank]
assert all_max(world.rank) == world.size - 1
assert all_max(world.is_main) == 1.0
assert all_max(False) == 0.0
barrier()
assert init_world() == world
print(world)
torch.distributed.destroy_process_group()
"""


def test_the_collectives_alone_and_below_torchrun(tmp_path: Path) -> None:
    script = tmp_path / "collectives.py"
    script.write_text(COLLECTIVES)
    added = launcher_environment(Devices(("0", "1"), on_gpu=False))
    env = {**os.environ, **added, "PYTHONPATH": str(ROOT)}
    ensure_ops(["ShareMemCommBuilder"], env)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    shared = set(Path("/dev/shm").glob("deepspeed_*"))
    for command, worlds in (([sys.executable], 1), (torchrun, 2)):
        result = subprocess.run([*command, str(script)], cwd=ROOT, env=env, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        for rank in range(worlds):
            assert f"World(rank={rank}, size={worlds}, local_rank={rank}, sequence_size=1)" in result.stdout
    # DeepSpeed's buffers, 66 MiB a rank, would lie there until the machine is started again.
    assert set(Path("/dev/shm").glob("deepspeed_*")) <= shared
