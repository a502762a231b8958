"""DeepSpeed's ops: which are needed, where they are kept, and locks that killed processes leave behind."""

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from data_tools.errors import RunError
from training.ops import CACHE_VARIABLE, clear_stale_locks, ensure_ops, needed_ops, path_to_ninja

pytestmark = pytest.mark.alone


def test_needed_ops_follow_the_offload() -> None:
    cpu = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    nvme = {
        "zero_optimization": {"offload_optimizer": {"device": "nvme"}, "offload_param": {"device": "nvme"}}
    }
    assert needed_ops({"zero_optimization": {}}, on_gpu=True) == []
    assert needed_ops(cpu, on_gpu=False) == ["ShareMemCommBuilder", "CPUAdamBuilder"]
    assert needed_ops(nvme, on_gpu=True) == ["CPUAdamBuilder", "AsyncIOBuilder"]


def test_a_lock_of_a_killed_process_is_removed_and_a_held_one_waited_for(tmp_path: Path) -> None:
    stale, held = tmp_path / "a" / "lock", tmp_path / "b" / "lock"
    for lock in (stale, held):
        lock.parent.mkdir()
        lock.touch()
        os.utime(lock, (0, 0))
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import os, time; f = open({str(held)!r}); time.sleep(1.5); os.remove(f.name)",
        ]
    )
    while str(held) not in [file.path for file in psutil.Process(holder.pid).open_files()]:
        time.sleep(0.05)
    began = time.monotonic()
    clear_stale_locks(tmp_path)
    assert not stale.exists()
    assert not held.exists()
    assert time.monotonic() - began > 0.5  # its holder removed it, not we
    assert holder.wait() == 0


def test_ops_that_are_built_are_not_built_again(tmp_path: Path) -> None:
    (tmp_path / "NoSuchBuilder.built").touch()
    ensure_ops(["NoSuchBuilder"], {**os.environ, CACHE_VARIABLE: str(tmp_path)})


def test_nobody_waits_while_another_run_builds_what_this_one_does_not_need(tmp_path: Path) -> None:
    (tmp_path / "NoSuchBuilder.built").touch()
    (tmp_path / "other").mkdir()
    with (tmp_path / "build.lock").open("w") as build, (tmp_path / "other" / "lock").open("w"):
        fcntl.flock(build, fcntl.LOCK_EX)
        began = time.monotonic()
        ensure_ops(["NoSuchBuilder"], {**os.environ, CACHE_VARIABLE: str(tmp_path)})
        assert time.monotonic() - began < 10  # both are held until this is over
    assert (tmp_path / "other" / "lock").exists()


def test_an_op_that_cannot_be_built(tmp_path: Path) -> None:
    env = {**os.environ, CACHE_VARIABLE: str(tmp_path), "DS_ACCELERATOR": "cpu"}
    with pytest.raises(RunError, match=r"DeepSpeed's NoSuch cannot be built here; needs a C\+\+ compiler"):
        ensure_ops(["NoSuchBuilder"], env)
    assert not (tmp_path / "NoSuchBuilder.built").exists()


def test_the_ninja_beside_the_interpreter_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    here = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", f"/usr/bin:{here}:/bin")
    assert path_to_ninja() == f"{here}:/usr/bin:/bin"
