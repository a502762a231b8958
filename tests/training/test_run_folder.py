"""The run folder: what may change when a run goes on, how it stops, and that no rank outlives its parent."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_tools.errors import RunError
from tests.conftest import ROOT
from tests.training.small_run import write_run
from training.config import RunConfig, load_run_config
from training.run_folder import (
    CLEARED_VARIABLE,
    PARENT_VARIABLE,
    RunFolder,
    changed_keys,
    on_stop_signals,
    parent_variable,
    worker_lease,
)

pytestmark = pytest.mark.alone


def config_of(folder: Path, **changes: Any) -> RunConfig:
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model/config.json").write_text("{}")
    return load_run_config(write_run(folder, **changes))


def prepared(folder: Path, fingerprint: str = "f" * 64, **changes: Any) -> RunFolder:
    config = config_of(folder, **changes)
    run = RunFolder(config.run_folder)
    with run.hold():
        run.prepare(config, {"zero_optimization": {"stage": 3}}, shards_fingerprint=fingerprint)
    return run


def with_checkpoint(run: RunFolder) -> RunFolder:
    (run.checkpoints / "step-000002").mkdir(parents=True)
    (run.checkpoints / "step-000002/DONE").touch()
    return run


def test_what_a_prepared_folder_holds(tmp_path: Path) -> None:
    run = prepared(tmp_path)
    assert sorted(path.name for path in run.path.iterdir()) == [
        "config.yaml",
        "ds_config.json",
        "environment.json",
        "logs",
    ]
    environment = json.loads(run.environment_path.read_text())
    assert environment["shards_fingerprint"] == "f" * 64
    assert environment["packages"]["deepspeed"].startswith("0.19")
    assert not any(value in json.dumps(environment) for value in ("TOKEN", "SECRET", os.environ["PATH"]))


def test_state_and_stop(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.state is None
    run.write_state("stopped")
    assert run.state == "stopped"
    assert (tmp_path / "state").read_text() == "stopped\n"
    run.clear_state()
    assert run.state is None
    assert not run.stop_requested()
    run.request_stop()
    assert run.stop_requested()
    with run.hold():
        assert not run.stop_requested()


def test_without_a_checkpoint_anything_may_change(tmp_path: Path) -> None:
    run = prepared(tmp_path, fingerprint="a" * 64)
    prepared(tmp_path, fingerprint="b" * 64, seed=99)
    assert json.loads(run.environment_path.read_text())["shards_fingerprint"] == "b" * 64


def test_a_run_goes_on_with_what_may_change(tmp_path: Path) -> None:
    run = with_checkpoint(prepared(tmp_path))
    again = prepared(
        tmp_path,
        steps=9,
        launch={"gpus_per_node": 1},
        save={"every_steps": 1},
        log={"tensorboard": False},
        evaluate={"every_steps": 3},
        batch={"packs_per_step": 4, "micro_packs": 2},
        deepspeed="other.json",
        slurm={"nodes": 4},
    )
    assert again == run
    assert load_run_config(run.config_path).steps == 9


def test_a_run_does_not_go_on_with_other_settings_and_names_them_all(tmp_path: Path) -> None:
    run = with_checkpoint(prepared(tmp_path))
    before = run.config_path.read_text()
    with pytest.raises(RunError) as caught:
        prepared(tmp_path, seed=18, optim={"lr": 5e-3}, batch={"packs_per_step": 8})
    text = str(caught.value)
    assert "seed: got 18; the run was made with 17" in text
    assert "optim.lr: got 0.005; the run was made with 0.001" in text
    assert "batch.packs_per_step: got 8; the run was made with 4" in text
    assert "give the new run another name" in text
    assert run.config_path.read_text() == before


def test_a_run_does_not_go_on_with_another_tuning_method(tmp_path: Path) -> None:
    with_checkpoint(prepared(tmp_path))
    with pytest.raises(RunError) as caught:
        prepared(tmp_path, tuning={"method": "bitfit"})
    assert "tuning.method: got bitfit; the run was made with full" in str(caught.value)


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"shards_fingerprint": 3}', "\x00"])
def test_an_environment_file_that_is_damaged_is_named(tmp_path: Path, text: str | None) -> None:
    run = with_checkpoint(prepared(tmp_path))
    run.environment_path.unlink() if text is None else run.environment_path.write_text(text)
    with pytest.raises(RunError) as caught:
        prepared(tmp_path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{run.environment_path}: is damaged: ")
    assert line.endswith("put it back, or give the new run another name")


def test_a_run_whose_shards_changed(tmp_path: Path) -> None:
    with_checkpoint(prepared(tmp_path, fingerprint="a" * 64))
    with pytest.raises(
        RunError, match="holds other packs than the run was made with: got fingerprint bbbbbbbbbbbb"
    ):
        prepared(tmp_path, fingerprint="b" * 64)


def test_a_run_whose_model_changed(tmp_path: Path) -> None:
    run = with_checkpoint(prepared(tmp_path))
    config = config_of(tmp_path)
    (tmp_path / "model/config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(RunError, match=r"model: the config\.json in .* is not the one the run was made with"):
        run.check_unchanged(config, shards_fingerprint="f" * 64)


def test_folders_that_moved_are_no_change(tmp_path: Path) -> None:
    here, there = config_of(tmp_path / "here"), config_of(tmp_path / "there")
    assert list(changed_keys(here, there)) == []


def test_a_worker_below_shardtune_train_takes_no_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    run.request_stop()
    with worker_lease(run, rank=1):
        assert not (tmp_path / "lease.json").exists()
    monkeypatch.setenv(PARENT_VARIABLE, parent_variable())
    with worker_lease(run, rank=0):
        assert not (tmp_path / "lease.json").exists()
    assert run.stop_requested()
    monkeypatch.delenv(PARENT_VARIABLE)
    with worker_lease(run, rank=0):
        assert (tmp_path / "lease.json").exists()
        assert not run.stop_requested()
    assert not (tmp_path / "lease.json").exists()


def test_a_stop_after_the_job_script_has_cleared_the_folder_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PARENT_VARIABLE, raising=False)
    monkeypatch.setenv(CLEARED_VARIABLE, "1")
    run = RunFolder(tmp_path)
    run.request_stop()
    with worker_lease(run, rank=0):
        assert run.stop_requested()


def test_stop_signals_are_caught_and_given_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    seen: list[int] = []
    undo = on_stop_signals(seen.append)
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    undo()
    assert seen == [signal.SIGUSR1, signal.SIGTERM]
    assert signal.getsignal(signal.SIGUSR1) == before


WATCHED = "import time; from training.run_folder import watch_parent; watch_parent(0.05); time.sleep(60)"
# Starts a watched process and ends: its child is an orphan. Prints the child's pid.
ORPHAN_MAKER = (
    "import subprocess, sys, time; "
    f"child = subprocess.Popen([sys.executable, '-c', {WATCHED!r}], stdin=subprocess.DEVNULL, "
    "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); print(child.pid, flush=True); time.sleep(2)"
)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until_gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return gone(pid)


def test_a_process_ends_when_its_parent_has_ended() -> None:
    made = subprocess.run([sys.executable, "-c", ORPHAN_MAKER], cwd=ROOT, capture_output=True, text=True)
    assert wait_until_gone(int(made.stdout), seconds=10)


def test_a_process_ends_when_the_named_process_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    named = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    host = parent_variable().partition(":")[0]
    monkeypatch.setenv(PARENT_VARIABLE, f"{host}:{named.pid}:{psutil.Process(named.pid).create_time()}")
    watched = subprocess.Popen([sys.executable, "-c", WATCHED], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    time.sleep(1.5)
    assert watched.poll() is None
    named.kill()
    named.wait()
    _, stderr = watched.communicate(timeout=10)
    assert watched.returncode == 1
    assert "the process that started this rank has ended" in stderr
