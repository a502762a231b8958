"""`shardtune status` on folders as runs leave them; real endings are in test_launch.py and tests/cluster."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import RunError
from tests.training.harness import shardtune
from training.config import load_run_config
from training.events import record_event
from training.lease import this_holder
from training.metrics import MetricsLog, read_metrics
from training.run_folder import RunFolder, State
from training.status.goodput import measure_goodput
from training.status.queue import QueueEntry
from training.status.report import Status, read_status, to_json, to_text
from training.status.starts import Start

CUT_OFF = "Traceback (most recent call last):\nRuntimeError: [gloo] Connection closed by peer [127.0.0.1]:1\n"


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.training.small_run import make_small_run

    return make_small_run(tmp_path_factory.mktemp("status") / "small")


class Folder:
    """A run folder in the making: what the run's own code would write, written by that code."""

    def __init__(self, path: Path, run_yaml: Path) -> None:
        self.run = RunFolder(path)
        self.run.logs.mkdir(parents=True)
        load_run_config(run_yaml).write(self.run.config_path)

    def event(self, event: str, **facts: Any) -> None:
        record_event(self.run.path, event, **facts)

    def start(self, *, step: int = 0, **facts: Any) -> None:
        """Let the run begin, and go on from a step."""
        self.event("started", **facts)
        self.event("training", step=step, num_steps=12, world=2, reached=0)

    def log(self, first: int, last: int) -> None:
        log = MetricsLog(self.run.path, resume_step=first - 1, tensorboard=False)
        for step in range(first, last + 1):
            metrics = {
                "train/loss": 2.0 - step / 10,
                "time/step_seconds": 2.0,
                "speed/tokens_per_second": 500.0,
            }
            if step % 4 == 0:
                metrics["validation/loss"] = 2.1
            log.write(step, {**metrics, "train/epoch": step / 6})
        log.close()

    def history(
        self, events: Sequence[dict[str, Any]], steps: Sequence[dict[str, Any]] | None = None
    ) -> None:
        """Let these be the run's events, with times of their own, and its steps; None leaves the steps as they are."""
        for name, lines in (("events.jsonl", events), ("metrics.jsonl", steps)):
            if lines is not None:
                (self.run.path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))

    def checkpoint(self, step: int, *, ranks: int = 2) -> Path:
        folder = self.run.checkpoints / f"step-{step:06d}"
        folder.mkdir(parents=True)
        (folder / "progress.json").write_text(json.dumps({"world_size": 2}))
        for rank in range(ranks):
            (folder / f"rank-{rank:05d}-of-00002.safetensors").write_bytes(bytes(1 << 19))
        (folder / "DONE").touch()
        return folder

    def rank_logs(self, *texts: str) -> None:
        for rank, text in enumerate(texts):
            (self.run.logs / f"job-7.0.0_rank{rank}.log").write_text(text)

    def end(self, state: State | None) -> Status:
        if state is not None:
            self.run.write_state(state)
        return read_status(self.run.path)


@pytest.fixture
def folder(tmp_path: Path, small: Path) -> Folder:
    return Folder(tmp_path / "demo", small)


def why_of(status: Status) -> tuple[str, str]:
    assert status.why is not None
    return status.why.kind, "\n".join((status.why.text, *status.why.lines, status.why.advice))


# --- where a run stands ------------------------------------------------------------------------------------


def test_what_a_side_job_does_changes_nothing_of_it(folder: Folder) -> None:
    folder.start(job=7)
    folder.event("side_job", job="8")
    folder.log(1, 8)
    folder.event("stopped", step=8)
    folder.event("requeued", job=7)
    folder.event("evaluated", step=8, split="test", documents=20, loss=2.0)
    status = folder.end("stopped")
    assert (status.state, status.jobs, status.restarts, status.problems) == ("waiting", ["7"], 0, ())


def test_a_run_that_has_not_started(folder: Folder) -> None:
    status = folder.end(None)
    assert (status.state, status.step, status.num_steps, status.why) == ("not started", 0, 4, None)
    assert "start it with shardtune submit" in to_text(status)


def test_a_run_that_goes_on(folder: Folder) -> None:
    folder.start(host="n1")
    folder.log(1, 9)
    folder.checkpoint(8)
    (folder.run.path / "heartbeat").mkdir()
    for rank, age in enumerate((0.0, 40.0)):
        beat = {"host": f"n{rank}", "pid": 1, "step": 10, "phase": "forward", "time": time.time() - age}
        (folder.run.path / "heartbeat" / f"rank-{rank}.json").write_text(json.dumps(beat))
    lease = folder.run.path / "lease.json"
    lease.write_text(json.dumps(asdict(this_holder())))
    # The second rank's heartbeat is older than the start: it is the one of the start before.
    status = read_status(folder.run.path)
    assert (status.state, status.why) == ("running", None)
    assert (status.step, status.num_steps, status.epoch) == (9, 12, 1.5)
    assert status.losses == {"train": 1.1, "validation": 2.1}
    assert (status.seconds_left, status.tokens_per_second) == (6.0, 500.0)
    assert status.checkpoint is not None
    assert (status.checkpoint.step, status.checkpoint.num_bytes > 1 << 20) == (8, True)
    assert [(beat.rank, beat.host, beat.step, beat.phase) for beat in status.heartbeats] == [
        (0, "n0", 10, "forward")
    ]
    text = to_text(status)
    assert "running, step 9 of 12, epoch 1.5" in text
    assert f"held by      process {os.getpid()} on {socket.gethostname()}" in text
    assert "left         6 s of training" in text


def test_a_run_that_ends_while_its_files_are_read_is_not_done_before_its_last_step(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.start()
    folder.log(1, 11)
    lease = folder.run.path / "lease.json"
    lease.write_text(json.dumps(asdict(this_holder())))

    def read_then_end(path: Path) -> list[dict[str, Any]]:
        rows = read_metrics(path)
        folder.log(12, 12)
        folder.run.write_state("done")
        folder.event("done")
        lease.unlink(missing_ok=True)
        return rows

    monkeypatch.setattr("training.status.facts.read_metrics", read_then_end)
    status = read_status(folder.run.path)
    assert (status.state, status.step) == ("running", 11)
    status = read_status(folder.run.path)
    assert (status.state, status.step) == ("done", 12)


def test_a_holder_on_another_machine_lives_as_long_as_its_heart_beats(folder: Folder) -> None:
    folder.event("started", host="elsewhere")
    lease = folder.run.path / "lease.json"
    lease.write_text(json.dumps(asdict(replace(this_holder(), machine="elsewhere"))))
    assert folder.end(None).state == "starting"
    os.utime(lease, (time.time() - 1000,) * 2)
    status = folder.end(None)
    assert status.state == "died"
    assert why_of(status)[0] == "vanished"


def test_a_run_that_waits_in_the_queue(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # no squeue to ask
    folder.event("submitted", job=71)
    status = folder.end(None)
    assert (status.state, status.jobs, status.queue) == ("waiting", ["71"], None)
    assert "job 71 has been sent" in to_text(status)


@pytest.mark.parametrize(
    ("queue", "age", "state"),
    [
        (None, 5, "starting"),
        (None, 600, "died"),
        ([QueueEntry("7", "RUNNING", "None", "1:00", None, None)], 600, "starting"),
        ([], 5, "died"),
    ],
)
def test_a_job_whose_ranks_have_not_met_yet_is_starting(
    folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
    queue: list[QueueEntry] | None,
    age: float,
    state: str,
) -> None:
    monkeypatch.setattr("training.status.report.ask_queue", lambda job: queue)
    folder.start(job=6)
    folder.log(1, 8)
    folder.event("stopped", step=8)
    folder.event("ended", state="stopped")
    folder.event("started", job=7)
    events = folder.run.path / "events.jsonl"
    *before, last = events.read_text().splitlines()
    begun = json.dumps(json.loads(last) | {"time": time.time() - age})
    events.write_text("\n".join([*before, begun]) + "\n")
    status = folder.end(None)
    assert status.state == state
    assert (status.why is None) == (state == "starting")


def test_restarts_jobs_and_nodes_are_counted_over_all_starts(folder: Folder) -> None:
    for restart in range(3):
        folder.start(step=4 * restart, job="7_1", restart=restart, nodes="n1 n2")
        folder.event("stopped", signalled=True)
        folder.event("ended", code=0)
    folder.log(1, 12)
    status = folder.end("done")
    assert (status.restarts, status.jobs, status.nodes, status.num_ranks) == (2, ["7_1"], "n1 n2", 2)
    assert why_of(status)[0] == "done"


def test_the_json_has_all_of_it(folder: Folder) -> None:
    folder.start()
    folder.log(1, 3)
    loaded = json.loads(to_json(folder.end("done")))
    assert set(loaded) == set(Status.__dataclass_fields__)
    assert (loaded["state"], loaded["why"]["kind"], loaded["losses"]["train"]) == ("done", "done", 1.7)


# --- why it stopped ----------------------------------------------------------------------------------------


def test_a_stop_by_signal_or_by_the_file(folder: Folder) -> None:
    folder.start()
    assert why_of(folder.end("stopped")) == (
        "stop_file",
        "the file STOP asked for it; it has saved\nstart it again: it goes on from its newest checkpoint",
    )
    folder.event("signalled", signal="USR1")
    kind, text = why_of(folder.end("stopped"))
    assert (kind, "time limit was near" in text) == ("signal", True)
    folder.start()
    folder.event("stopped", signalled=True)
    kind, text = why_of(folder.end("stopped"))
    assert (kind, "the ranks got a signal, as before a preemption" in text) == ("signal", True)
    folder.event("requeued", job=7)
    status = folder.end("stopped")
    assert status.state == "waiting"
    assert "Slurm starts it again by itself" in why_of(status)[1]


SLURM_LINES = {
    "time_limit": "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-02T03:04:05 DUE TO TIME LIMIT ***",
    "preempted": "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-02T03:04:05 DUE TO PREEMPTION ***",
    "node_failure": "srun: error: Node failure on n2",
    "cancelled": "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-02T03:04:05 ***",
    "out_of_memory": "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0. Some of your processes may have "
    "been killed by the cgroup out-of-memory handler.",
}


@pytest.mark.parametrize("kind", SLURM_LINES)
def test_what_slurm_says_comes_before_what_ranks_say(folder: Folder, kind: str) -> None:
    folder.start()
    folder.rank_logs(CUT_OFF, CUT_OFF)
    job_log = folder.run.logs / "job-7.out"
    job_log.write_text(f"nodes n1, meeting at n1:1\n{SLURM_LINES[kind]}\n")
    found, text = why_of(folder.end(None))
    assert found == kind
    assert SLURM_LINES[kind] in text


def test_what_slurm_said_of_an_earlier_start_does_not_count(folder: Folder) -> None:
    folder.start()
    # A step is cancelled whenever one of its ranks fails.
    step = "slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-01-02T03:04:05 ***"
    (folder.run.logs / "job-7.out").write_text(
        f"nodes n1, meeting at n1:1\n{SLURM_LINES['preempted']}\nnodes n1, meeting at n1:2\n{step}\n"
    )
    folder.event("failed", rank=1, host="n2", error="ZeroDivisionError: division by zero")
    assert why_of(folder.end("failed"))[0] == "error"


ERRORS = {
    "cuda_out_of_memory": "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …",
    "out_of_memory": "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9",
    "disk_full": "OSError: [Errno 28] No space left on device: 'runs/demo/metrics.jsonl'",
    "gpu_fault": "AcceleratorError: CUDA error: uncorrectable ECC error encountered",
    "network": "DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1, unhandled system error",
    "not_installed": "ModuleNotFoundError: No module named 'deepspeed'",
    "error": "ZeroDivisionError: division by zero",
}


@pytest.mark.parametrize("kind", ERRORS)
def test_the_first_rank_with_a_reason_says_it(folder: Folder, kind: str) -> None:
    folder.start()
    folder.event("failed", rank=0, host="n1", error="RuntimeError: Connection closed by peer")
    folder.event("failed", rank=1, host="n2", error=ERRORS[kind])
    found, text = why_of(folder.end("failed"))
    assert found == kind
    assert ERRORS[kind] in text
    assert "rank 1 on n2" in text


def test_a_reason_that_only_a_log_holds(folder: Folder) -> None:
    folder.start()
    folder.rank_logs(
        CUT_OFF, "[rank1]: Traceback (most recent call last):\n[rank1]:   line\n[rank1]: MemoryError\n"
    )
    found, text = why_of(folder.end("failed"))
    assert (found, "rank 1: MemoryError" in text) == ("out_of_memory", True)


def test_logs_of_an_earlier_start_do_not_count(folder: Folder) -> None:
    folder.rank_logs("Traceback (most recent call last):\nZeroDivisionError: old\n")
    for path in folder.run.logs.iterdir():
        os.utime(path, (time.time() - 100,) * 2)
    folder.start()
    folder.event("ended", code=3)
    assert why_of(folder.end("failed"))[0] == "unknown"


def test_a_rank_that_was_killed(folder: Folder) -> None:
    folder.start()
    folder.rank_logs(CUT_OFF, "step 1\n")
    found, text = why_of(folder.end("failed"))
    assert (found, "rank 1 was killed (SIGKILL), as the kernel does when memory runs out" in text) == (
        "killed",
        True,
    )


@pytest.mark.parametrize("code", [{"launcher_code": 247, "code": 1}, {"code": 137}])
def test_a_rank_that_was_killed_without_a_log(folder: Folder, code: dict[str, int]) -> None:
    folder.start()
    folder.event("ended", **code)
    assert why_of(folder.end("failed"))[0] == "killed"


def test_a_rank_that_srun_saw_killed(folder: Folder) -> None:
    folder.start()
    (folder.run.path / "heartbeat").mkdir()
    beat = {"host": "n2", "pid": 1, "step": 3, "phase": "forward", "time": time.time()}
    (folder.run.path / "heartbeat" / "rank-1.json").write_text(json.dumps(beat))
    step = "slurmstepd: error: *** STEP 8.0 ON n1 CANCELLED AT 2026-01-02T03:04:05 ***"
    (folder.run.logs / "job-8.out").write_text(f"srun: error: n2: task 1: Killed\n{step}\n")
    folder.event("ended", code=137)
    found, text = why_of(folder.end(None))
    assert found == "killed"
    assert "rank 1 on n2 was killed" in text
    assert "srun: error: n2: task 1: Killed" in text


def test_a_stuck_step_names_the_nodes(folder: Folder) -> None:
    folder.start()
    folder.event("stuck", step=5, host="n2,n3", said="rank 4 on n2 is in backward since 600 s")
    status = folder.end(None)
    found, text = why_of(status)
    assert (found, "ranks that did not answer are on n2,n3" in text, "bad_nodes" in text) == (
        "stuck",
        True,
        True,
    )


def test_the_users_mistakes_and_bad_steps(folder: Folder) -> None:
    folder.start()
    folder.run.write_mistake(RunError("model: the weights do not fit"))
    assert why_of(folder.end("failed"))[0] == "mistake"
    folder.run.write_mistake(
        RunError("max_bad_steps: 5 steps in a row …; rows in it:\n  alpaca: sums.json#3")
    )
    found, text = why_of(folder.end("failed"))
    assert (found, "alpaca: sums.json#3" in text) == ("bad_steps", True)
    folder.run.write_mistake(RunError("step-000008: could not be saved: rank 0: No space left on device"))
    assert why_of(folder.end("failed"))[0] == "disk_full"


def test_a_node_that_was_not_ready(folder: Folder) -> None:
    folder.event("started", nodes="n1 n2", job=7)
    folder.event("failed", host="n2", error="n2: shards: x/index.json: is not there")
    folder.event("ended", state="none", job=7)
    status = folder.end(None)
    assert status.state == "failed"
    found, text = why_of(status)
    assert found == "mistake"
    assert "node n2 is not ready for the run\nn2: shards: x/index.json: is not there" in text


def test_a_run_that_ended_early(folder: Folder) -> None:
    folder.start()
    folder.event("stopped_early", step=8, why="validation/loss has not improved")
    assert "it stopped early: validation/loss has not improved" in why_of(folder.end("done"))[1]


def test_a_run_that_is_made_ready_to_go_on_is_still_done(folder: Folder) -> None:
    """As `train --print` leaves it, or a job that Slurm has refused: the file `state` is gone."""
    folder.start()
    folder.log(1, 12)
    folder.checkpoint(12)
    folder.event("done")
    assert folder.end(None).state == "done"
    folder.event("started")
    assert folder.end(None).state == "died"


# --- goodput -----------------------------------------------------------------------------------------------


def test_goodput_counts_starts_and_repeated_steps_and_leaves_the_queue_out(folder: Folder) -> None:
    # A step takes 10 s. Start 1: 20 s to start, steps 1-6, killed after 80 s; saved at 4. 1000 s in the queue.
    # Start 2: 10 s to start, steps 5-8 and the end: 50 s. Useful: 8 steps = 80 s of 80 + 50 s.
    lines = [
        {"time": 0, "event": "started"},
        {"time": 20, "event": "training", "step": 0, "num_steps": 8, "world": 2, "reached": 0},
        {"time": 61, "event": "saved", "step": 4},
        {"time": 1080, "event": "submitted", "job": 2},
        {"time": 2080, "event": "started", "last_sign": 80},
        {"time": 2090, "event": "training", "step": 4, "num_steps": 8, "world": 2, "reached": 6},
        {"time": 2130, "event": "done"},
    ]
    rows = [{"step": n, "time/step_seconds": 10.0, "speed/tokens_per_second": 7.0} for n in range(1, 9)]
    folder.history(lines, rows)
    goodput = folder.end("done").goodput
    assert goodput is not None
    assert asdict(goodput) == {
        "goodput": pytest.approx(80 / 130),
        "wall_seconds": 130.0,
        "startup_seconds": 30.0,
        "repeated_seconds": pytest.approx(20.0),
        "other_seconds": pytest.approx(0.0),
        "slow_steps_seconds": pytest.approx(0.0),
        "useful_tokens": 560,
        "repeated_steps": 2,
        "num_starts": 2,
    }
    # Of a run that has died, what was not saved will be done again and does not count.
    folder.checkpoint(4)
    lines[-1] = {"time": 2130, "event": "ended", "code": 1}
    folder.history(lines)
    goodput = folder.end("failed").goodput
    assert goodput is not None
    assert goodput.goodput == pytest.approx(40 / 130)


def test_while_a_start_comes_up_the_shares_add_up() -> None:
    starts = [
        Start(
            (
                {"event": "started", "time": 0.0, "job": 1},
                {"event": "training", "time": 10.0, "step": 0, "num_steps": 99, "reached": 0},
                {"event": "ended", "time": 30.0},
            )
        ),
        Start(({"event": "started", "time": 100.0, "job": 1},)),
    ]
    metrics = [
        {"step": step, "time/step_seconds": 2.0, "speed/tokens_per_second": 500.0} for step in range(1, 11)
    ]
    goodput = measure_goodput(starts, metrics, kept_step=10, last_sign=120.0)
    assert goodput is not None
    assert goodput.goodput == pytest.approx(20 / 50)
    assert goodput.wall_seconds == 50.0
    assert (goodput.startup_seconds, goodput.repeated_seconds) == (30.0, 0.0)
    assert goodput.other_seconds == pytest.approx(0.0)


def test_each_start_is_held_against_its_own_pace(folder: Folder) -> None:
    # Two nodes: 10 s to start, 4 steps of 10 s. Then one node, half as fast: 10 s to start, 2 steps of 20 s.
    lines = [
        {"time": 0, "event": "started"},
        {"time": 10, "event": "training", "step": 0, "num_steps": 6, "world": 4, "reached": 0},
        {"time": 50, "event": "stopped"},
        {"time": 900, "event": "started", "last_sign": 50},
        {"time": 910, "event": "training", "step": 4, "num_steps": 6, "world": 2, "reached": 4},
        {"time": 950, "event": "done"},
    ]
    rows = [
        {"step": n, "time/step_seconds": seconds, "speed/tokens_per_second": 200 / seconds}
        for n, seconds in enumerate([10.0] * 4 + [20.0] * 2, 1)
    ]
    folder.history(lines, rows)
    goodput = folder.end("done").goodput
    assert goodput is not None
    assert goodput.goodput == pytest.approx(1200 / (20 * 50 + 10 * 50))
    assert goodput.startup_seconds == 20.0
    assert goodput.other_seconds == pytest.approx(0.0)


def test_slower_steps_are_told_apart_from_what_lies_between_steps(folder: Folder) -> None:
    # 10 s to start; of 5 steps four take 10 s and one 20 s; 5 s to save.
    lines = (
        {"time": 0, "event": "started"},
        {"time": 10, "event": "training", "step": 0, "num_steps": 5, "world": 2, "reached": 0},
        {"time": 75, "event": "done"},
    )
    rows = [
        {"step": n, "time/step_seconds": seconds, "speed/tokens_per_second": 70 / seconds}
        for n, seconds in enumerate([10.0, 10.0, 20.0, 10.0, 10.0], 1)
    ]
    folder.history(lines, rows)
    status = folder.end("done")
    assert status.goodput is not None
    assert status.goodput.goodput == pytest.approx(50 / 75)
    assert status.goodput.other_seconds == pytest.approx(15.0)
    assert status.goodput.slow_steps_seconds == pytest.approx(10.0)
    assert "the rest 20.0% (13.3% to slower steps)" in to_text(status)


# --- what is no run, or damaged ----------------------------------------------------------------------------


def _no_folder(path: Path) -> Path:
    return path / "nowhere"


def _a_file(path: Path) -> Path:
    (path / "run.yaml").write_text("name: demo\n")
    return path / "run.yaml"


def _no_run(path: Path) -> Path:
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_no_folder, "no such folder"),
        (_a_file, "is a file"),
        (_no_run, "it has no config.yaml; it holds runs: demo"),
    ],
)
def test_what_is_no_run_folder_is_said_in_one_line(
    folder: Folder, make: Callable[[Path], Path], words: str
) -> None:
    path = make(folder.run.path.parent)
    done = subprocess.run(shardtune("status", path), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_damaged_files_are_named_and_the_rest_is_shown(folder: Folder) -> None:
    folder.start()
    folder.log(1, 6)
    folder.checkpoint(4, ranks=1)
    with (folder.run.path / "metrics.jsonl").open("r+b") as file:
        file.write(b"\0\0\0")  # a byte flipped in the first line
    with (folder.run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 7, "tra')  # torn by a kill, as it may be
    folder.run.config_path.write_text("name: [\n")
    status = folder.end("failed")
    assert status.step == 6
    assert [problem.partition(":")[0] for problem in status.problems] == [
        "metrics.jsonl",
        "config.yaml",
        "checkpoints/step-000004",
    ]
    assert "damaged      metrics.jsonl: 1 damaged lines are left out" in to_text(status)
    shutil.copy(folder.run.path / "state", folder.run.path / "lease.json")
    assert folder.end("failed").held_by is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("events.jsonl", b""),
        ("events.jsonl", b"\xff\x00\n" * 5),
        ("events.jsonl", b'{"event": "training", "time": 1}\n'),
        ("metrics.jsonl", b'{"step": 1, "train/loss": "x"}\n'),
        ("state", b"\xff\xfe\x00"),
    ],
)
def test_files_without_sense_are_no_traceback(folder: Folder, name: str, content: bytes) -> None:
    folder.start()
    folder.log(1, 6)
    folder.checkpoint(4)
    folder.event("done")
    folder.run.write_state("done")
    (folder.run.path / name).write_bytes(content)
    assert to_text(read_status(folder.run.path))


def test_it_needs_no_torch_and_no_slurm(folder: Folder) -> None:
    folder.start(job="7")
    code = (
        "import sys; from training.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "assert 'torch' not in sys.modules"
    )
    command = [shardtune()[0], "-c", code, "status", "--json", str(folder.run.path)]
    done = subprocess.run(command, env=os.environ | {"PATH": "/nowhere"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["queue"] is None
