"""The watchdog: by real ranks that hang in several ways, and what it makes of heartbeats."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.training.harness import environment, ranks_of, read_losses, shardtune
from tests.training.small_run import make_small_run
from tests.training.test_launch import Front, wait_for
from training.events import read_events
from training.heartbeat import Beat, Place
from training.metrics import last_logged_step
from training.nodes import add_bad_nodes, host_of_rank, node_name, read_bad_nodes
from training.run_folder import RunFolder
from training.watchdog import LONG_SECONDS, allowance, describe, judge

pytestmark = pytest.mark.alone

SECONDS = 4
HANGS_AT = 60  # three seconds and a few heartbeats after the start


def beat(rank: int, *, age: float = 0.0, progress: int = 7, waits: bool = True) -> Beat:
    return Beat(
        rank, f"n{rank}", 1, 3, "forward", 1000.0 - age, progress, "here:1", waits, "all_reduce (x.py:1)"
    )


@pytest.mark.parametrize(
    ("hang", "said", "stack"),
    [
        ("stop", "s ago in step ", None),
        ("sleep", "which hangs in step 60 (forward), at <lambda> (gloo_worker.py:", "gloo_worker.py"),
        pytest.param("keep the interpreter", "s ago in step ", "gloo_worker.py", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_hangs_is_named_and_the_run_ends(
    tmp_path: Path, hang: str, said: str, stack: str | None
) -> None:
    front = Front(tmp_path / "run", watchdog=SECONDS, hang_at=HANGS_AT, hang=hang)
    code, stdout, stderr = front.finish()
    assert code == 1, stderr
    assert f"step {HANGS_AT - 1}\n" in stdout
    assert f"step {HANGS_AT}\n" not in stdout
    line = next(line for line in stderr.splitlines() if "stuck for" in line)
    assert f"step {HANGS_AT} (forward): waits for rank 1 on node {node_name()}" in line
    assert said in line
    assert "start it again to go on" in line
    assert read_bad_nodes(front.run.path) == [node_name()]
    assert front.run.state == "stuck"
    (event,) = [event for event in read_events(front.run.path) if event["event"] == "stuck"]
    assert (event["ranks"], event["step"], event["host"]) == ([1], HANGS_AT, node_name())
    logs = [(front.run.logs / f"rank-{rank}.log").read_text() for rank in range(2)]
    assert "rank 0 has made no progress for" in logs[0]
    assert "all_reduce" in logs[0]  # where it waits
    if stack is not None:
        assert stack in logs[1]
    assert front.nobody_left()


@pytest.mark.slow
def test_by_the_real_command_a_stopped_rank_ends_the_run_and_the_next_start_goes_on(tmp_path: Path) -> None:
    run_yaml = make_small_run(tmp_path / "project")
    run = RunFolder(tmp_path / "project" / "runs" / "small")
    command = shardtune("train", run_yaml, "watchdog=10", "steps=100", "save.every_steps=10")
    with subprocess.Popen(
        command, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as front:
        wait_for(lambda: last_logged_step(run.path) >= 25 or front.poll() is not None, "step", 150)
        assert front.poll() is None, front.communicate()[0]
        ranks_of(front)[1].send_signal(signal.SIGSTOP)
        output, _ = front.communicate(timeout=200)
    assert front.returncode == 1, output
    last = output.splitlines()[-1]
    assert f"waits for rank 1 on node {node_name()} (process " in last
    assert last.endswith("start it again to go on")
    assert read_bad_nodes(run.path) == [node_name()]
    assert "in train_step" in (run.logs / "rank-0.log").read_text()

    done = subprocess.run(command, env=environment(), text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert run.state == "done"
    starts = [event["step"] for event in read_events(run.path) if event["event"] == "training"]
    assert starts[0] == 0
    assert starts[1] >= 20
    assert sorted(read_losses(run.path)) == list(range(1, 101))


@pytest.mark.slow
def test_a_slow_step_that_gets_on_and_a_pause_of_all_are_no_reason(tmp_path: Path) -> None:
    front = Front(tmp_path / "run", steps=3, watchdog=SECONDS, parts=120)  # 6 s a step, in parts
    front.wait_for_ranks()
    wait_for(lambda: (front.run.logs / "rank-0.log").exists() and "step 1" in logged(front), "step")
    for pid in front.ranks:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(SECONDS + 1)
    for pid in front.ranks:
        os.kill(pid, signal.SIGCONT)
    code, stdout, stderr = front.finish()
    assert code == 0, stderr
    assert "step 3" in stdout
    last = json.loads((front.run.path / "heartbeat" / "rank-1.json").read_text())
    assert (last["rank"], last["phase"], last["step"], last["host"]) == (1, "end", 3, node_name())


def logged(front: Front) -> str:
    return (front.run.logs / "rank-0.log").read_text()


def test_long_phases_have_more_time() -> None:
    place = Place()
    assert allowance(place, 10) == LONG_SECONDS
    place.at("forward", step=5)
    assert allowance(place, 200) == 600  # the first step compiles and warms up
    place.at("evaluation")
    assert allowance(place, 10) == 10
    place.at("forward", step=6)
    assert allowance(place, 10) == 10
    with place.inside("save"):
        assert allowance(place, 10) == LONG_SECONDS
    assert allowance(place, 10) == 10


def test_who_is_missing() -> None:
    def missing(*beats: Beat | None) -> tuple[int, ...]:
        return judge(beats, now=1000.0, silent_seconds=60).missing

    assert missing(beat(0), beat(1, age=100), beat(2)) == (1,)
    assert missing(beat(0), None, beat(2)) == (1,)
    assert missing(beat(0), beat(1), beat(2, waits=False)) == (2,)
    # No sign of life says more than a rank that does not wait, and that more than one that is behind.
    assert missing(beat(0, age=100), beat(1, waits=False), beat(2, progress=3)) == (0,)
    assert missing(beat(0), beat(1, progress=3), beat(2)) == (1,)
    # All of them, or none: nobody stands out.
    assert missing(beat(0), beat(1), beat(2)) == ()
    assert missing(beat(0, waits=False), beat(1, waits=False)) == ()
    assert missing(beat(0, waits=False)) == (0,)


def test_what_is_said_of_the_missing() -> None:
    beats = (beat(0), None, beat(2, age=time.time()))
    said = describe(judge(beats, now=1000.0, silent_seconds=60), {1: "n1", 2: "n2"})
    assert "rank 1 on node n1, which has never come up" in said
    assert "rank 2 on node n2 (process 1), last heard of" in said
    nobody = describe(judge((beat(0), beat(1)), now=1000.0, silent_seconds=60), {})
    assert nobody.startswith("no rank and no node stands out; the ranks are at all_reduce")


def test_bad_nodes_are_listed_once(tmp_path: Path) -> None:
    assert read_bad_nodes(tmp_path) == []
    add_bad_nodes(tmp_path, ["n3", "n4", "n3"])
    add_bad_nodes(tmp_path, ["n4", "n5"])
    assert (tmp_path / "bad_nodes").read_text() == "n3\nn4\nn5\n"


def test_outside_slurm_the_node_of_a_rank_that_never_came_up_is_not_known() -> None:
    assert host_of_rank(1, 2, {}) is None
