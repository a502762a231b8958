"""The lease: one holder at a time, and a dead one's is taken over by exactly one."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import RunError
from tests.conftest import ROOT
from training.lease import Holder, Lease, process_lives, process_started, read_holder, this_holder

pytestmark = pytest.mark.alone


def put(path: Path, holder: Holder) -> None:
    path.write_text(json.dumps(asdict(holder)))


def dead_holder() -> Holder:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    holder = replace(this_holder(), pid=process.pid, started=process_started(process.pid))
    process.kill()
    process.wait()
    return holder


def test_a_lease_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    with Lease(path):
        holder = read_holder(path)
        assert holder is not None
        assert holder.pid == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_living_holder_on_this_machine_refuses_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    began = time.monotonic()
    with (
        Lease(path),
        pytest.raises(
            RunError, match=f"in use by process {os.getpid()} on .*; stop it, or give this run another name"
        ),
        Lease(path),
    ):
        pass
    assert time.monotonic() - began < 2


def test_a_dead_holder_on_this_machine_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    put(path, dead_holder())
    began = time.monotonic()
    with Lease(path):
        holder = read_holder(path)
        assert holder is not None
        assert holder.pid == os.getpid()
    assert time.monotonic() - began < 2
    assert list(tmp_path.iterdir()) == []


def test_a_pid_that_was_given_out_again_is_not_the_holder(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    put(path, replace(this_holder(), started=process_started(os.getpid()) - 1000))
    with Lease(path):
        pass


def test_the_dead_holders_ranks_are_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    put(path, dead_holder())
    ranks = [["process 1"], ["process 1"], []]
    with Lease(path, survivors=lambda: ranks.pop(0) if len(ranks) > 1 else ranks[0]):
        assert ranks == [[]]
    put(path, dead_holder())
    with (
        pytest.raises(RunError, match="in use by process 7"),
        Lease(path, survivors=lambda: ["process 7"], stale_seconds=0.5),
    ):
        pass


def test_a_silent_holder_on_another_machine_is_replaced_after_the_wait(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    put(path, replace(this_holder(), machine="elsewhere", host="node7"))
    began = time.monotonic()
    with Lease(path, stale_seconds=1.0):
        assert time.monotonic() - began > 1.0


def test_a_beating_holder_on_another_machine_refuses(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    other = replace(this_holder(), machine="elsewhere", host="node7", job="4711")
    put(path, other)
    beats = iter(range(100))

    def beat() -> list[str]:
        put(path, replace(other, beat=next(beats) // 2))
        return []

    with (
        pytest.raises(RunError, match=r"in use by process .* on node7, job 4711"),
        Lease(path, survivors=beat, stale_seconds=5.0),
    ):
        pass


def test_a_lease_without_a_name_is_replaced_after_the_wait(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    path.touch()  # its holder died between making the file and writing it
    with Lease(path, stale_seconds=0.5):
        holder = read_holder(path)
        assert holder is not None
        assert holder.pid == os.getpid()


@pytest.mark.parametrize("change", [{"pid": "twelve"}, {"beat": None}, {"started": "now"}, {"added": 1}])
def test_a_lease_that_was_changed_by_hand_is_replaced_after_the_wait(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "lease.json"
    path.write_text(json.dumps(asdict(this_holder()) | change))
    assert read_holder(path) is None
    with Lease(path, stale_seconds=0.5):
        holder = read_holder(path)
        assert holder is not None
        assert holder.pid == os.getpid()


def test_the_heart_beats(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    with Lease(path, beat_seconds=0.05):
        time.sleep(0.5)
        holder = read_holder(path)
        assert holder is not None
        assert holder.beat >= 2


RACER = """
import sys, time
from pathlib import Path
from typing import Any
from data_tools.errors import RunError
from training.lease import Lease
try:
    with Lease(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(3)
except RunError:
    print("refused")
"""


def test_of_many_that_race_for_a_dead_holders_lease_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    put(path, dead_holder())
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    said = sorted(racer.communicate(timeout=60)[0].strip() for racer in racers)
    assert said == ["held", "refused", "refused", "refused"]


def test_a_holder_that_lost_its_lease_ends(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    code = (
        "import sys, time; from pathlib import Path; from training.lease import Lease\n"
        "with Lease(Path(sys.argv[1]), beat_seconds=0.2): print('held', flush=True); time.sleep(60)"
    )
    sleeper = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert sleeper.stdout is not None
    assert sleeper.stdout.readline() == "held\n"
    put(path, this_holder())
    assert sleeper.wait(timeout=10) == 1
    sleeper.stdout.close()
    assert path.exists()


def test_a_zombie_does_not_live() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    started = process_started(process.pid)
    time.sleep(1)
    assert not process_lives(process.pid, started)
    process.wait()
