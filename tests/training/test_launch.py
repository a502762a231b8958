"""The launcher with real processes: how runs end, and that no rank outlives what started it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from data_tools.errors import RunError
from tests.conftest import ROOT
from training.launch import Devices, launch, launcher_command, launcher_environment, visible_gpus
from training.ops import CACHE_VARIABLE
from training.run_folder import RunFolder
from training.status.report import read_status

pytestmark = pytest.mark.alone

SECONDS = 60.0  # for things that take a few on a quiet machine


def wait_for(condition: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(0.05)


class Front:
    """A started front process, its ranks, and its launcher."""

    def __init__(self, folder: Path, *, steps: int = 100_000, **plan: object) -> None:
        folder.mkdir(exist_ok=True)
        for old in (folder / "pids").glob("*"):
            old.unlink()
        (folder / "plan.json").write_text(json.dumps({"steps": steps, **plan}))
        self.run = RunFolder(folder)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.training.gloo_front", str(folder)],
            cwd=ROOT,
            env={**os.environ, "DS_ACCELERATOR": "cpu"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def wait_for_ranks(self) -> None:
        wait_for(lambda: len(self._pids()) == 2 or self.process.poll() is not None, "ranks")

    def _pids(self) -> list[list[int]]:
        return sorted([int(part) for part in path.name.split("-")] for path in self.run.path.glob("pids/*"))

    @property
    def ranks(self) -> list[int]:
        return [pid for _, pid, _ in self._pids()]

    @property
    def launcher(self) -> int:
        return self._pids()[0][2]

    def finish(self) -> tuple[int, str, str]:
        stdout, stderr = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, stdout, stderr

    def nobody_left(self) -> bool:
        return not any(alive(pid) for pid in [*self.ranks, self.launcher])


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Front]]:
    fronts: list[Front] = []

    def start_one(**plan: object) -> Front:
        fronts.append(Front(tmp_path / "run", **plan))  # type: ignore[arg-type]
        return fronts[-1]

    yield start_one
    for front in fronts:
        if front.process.poll() is None:
            front.process.kill()
        front.process.communicate()


def test_a_run_that_ends_by_itself(start: Callable[..., Front]) -> None:
    front = start(steps=3)
    code, stdout, stderr = front.finish()
    assert code == 0, stderr
    assert [line for line in stdout.splitlines() if line.startswith("step")] == ["step 1", "step 2", "step 3"]
    assert front.run.state == "done"
    assert "step 3" in (front.run.logs / "rank-0.log").read_text()
    assert (front.run.logs / "rank-1.log").exists()
    assert not (front.run.path / "lease.json").exists()


def test_a_signal_stops_the_run_and_a_second_start_is_refused_while_it_runs(
    start: Callable[..., Front],
) -> None:
    front = start()
    front.wait_for_ranks()
    second = subprocess.run(
        [sys.executable, "-m", "tests.training.gloo_front", str(front.run.path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert second.returncode != 0
    assert f"in use by process {front.process.pid}" in second.stderr
    front.process.send_signal(signal.SIGUSR1)
    code, _, stderr = front.finish()
    assert code == 75, stderr
    assert "SIGUSR1: stopping after this step" in stderr
    assert front.run.state == "stopped"
    assert front.run.stop_requested()

    again = start(steps=2)  # which must not stop at once for the old STOP
    assert again.finish()[0] == 0
    assert again.run.state == "done"


@pytest.mark.parametrize("victim", ["front", "launcher", "rank"])
def test_kill_leaves_no_rank_behind_and_frees_the_run(start: Callable[..., Front], victim: str) -> None:
    front = start()
    front.wait_for_ranks()
    pids = {"front": front.process.pid, "launcher": front.launcher, "rank": front.ranks[1]}
    os.kill(pids[victim], signal.SIGKILL)
    wait_for(front.nobody_left, "end of all ranks", seconds=5.0 if victim == "front" else SECONDS)
    code, _, stderr = front.finish()
    if victim == "front":
        assert front.run.state is None
    else:
        assert code == 1
        assert "was ended by SIGKILL" in stderr or "rank 1 has ended without a word" in stderr
        assert front.run.state == "failed"

    if victim == "launcher":
        return
    began = time.monotonic()
    again = start(steps=1)
    code, _, stderr = again.finish()
    assert code == 0, stderr
    assert time.monotonic() - began < 25  # taken over at once, not after the 30 s of a silent heartbeat


def test_the_failing_ranks_own_words_are_shown(start: Callable[..., Front]) -> None:
    front = start(fail_at=2, how="bug")
    code, _, stderr = front.finish()
    assert code == 1
    assert "ArithmeticError: rank 1 cannot count further" in stderr
    assert "the last lines of rank 1" in stderr
    assert front.run.state == "failed"


def test_a_users_mistake_found_by_a_rank_keeps_its_exit_code(start: Callable[..., Front]) -> None:
    front = start(fail_at=1, how="user")
    code, _, stderr = front.finish()
    assert code == 2
    assert stderr.splitlines()[-1] == "weights: they do not fit"
    assert "Traceback" not in stderr


def test_what_fails_before_there_are_ranks_is_told_in_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    (tmp_path / "file").touch()
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("SHARDTUNE_CACHE", str(tmp_path / "file"))
    run.logs.mkdir(parents=True)
    run.config_path.touch()
    with pytest.raises(RunError, match="set SHARDTUNE_CACHE to a folder that can be written to"), run.hold():
        launch(run, Devices(("0",), on_gpu=False), {"zero_optimization": {}}, ops=["NoSuchBuilder"])
    status = read_status(run.path)
    assert status.state == "failed"
    assert status.why is not None
    assert status.why.kind == "mistake"
    assert "DeepSpeed's ops cannot be kept here: Not a directory" in "\n".join(
        [status.why.text, *status.why.lines]
    )


def test_a_stop_that_ends_the_compiler_too_is_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path / "run")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "ops"))
    run.logs.mkdir(parents=True)
    run.config_path.touch()
    with run.hold():
        run.request_stop()
        code = launch(run, Devices(("0",), on_gpu=False), {"zero_optimization": {}}, ops=["NoSuchBuilder"])
    assert (code, run.state, read_status(run.path).state) == (75, "stopped", "stopped")


def test_the_line_is_deepspeeds_launcher_for_each_device(tmp_path: Path) -> None:
    command = launcher_command(RunFolder(tmp_path), Devices(("GPU-5", "GPU-7"), on_gpu=True))
    assert command[1:4] == ["-u", "-m", "deepspeed.launcher.launch"]
    assert command[-4:] == ["--no_local_rank", "--module", "training.train", str(tmp_path / "config.yaml")]


def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    added = launcher_environment(Devices(("0", "1"), on_gpu=False))
    assert added["DS_ACCELERATOR"] == "cpu"
    assert int(added["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)
    assert added["TORCH_EXTENSIONS_DIR"].startswith("/cache/shardtune/ops/py3")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert "OMP_NUM_THREADS" not in launcher_environment(Devices(("0", "1"), on_gpu=False))
    assert "DS_ACCELERATOR" not in launcher_environment(Devices(("0",), on_gpu=True))


def test_no_gpu_is_seen_where_cpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert visible_gpus() == ()
