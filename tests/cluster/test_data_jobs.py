"""tokenize.sbatch and pack.sbatch on a real cluster, as `shardtune submit` sends them; and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from data_tools.errors import RunError, SettingsError
from data_tools.pack import pack
from data_tools.recognise import load_sources
from tests.cluster.slurmbox import SlurmBox
from tests.training.harness import shardtune
from tests.training.small_run import make_tokenizer
from training.cluster.data_jobs import _ranges, is_data_file, prepare_data_jobs, send_data_jobs, submit_data

pytestmark = pytest.mark.alone

NUM_TASKS = 8


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data.yaml of eight files, so that each element of an array of eight has one."""
    for number in range(NUM_TASKS):
        rows = [
            {"instruction": f"What is {number} times {n}?", "input": "", "output": f"It is {number * n}."}
            for n in range(20)
        ]
        (tmp_path / f"part-{number}.json").write_text(json.dumps(rows))
    make_tokenizer(tmp_path / "model", ["What is 1 times 2? It is 2."])
    settings = {
        "output": "shards",
        "tokenizer": "model",
        "seq_len": 128,
        "splits": {"validation": 0.1, "test": 0},
        "sources": [{"path": "part-*.json", "format": "alpaca"}],
    }
    path = tmp_path / "data.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def login_node(slurm: SlurmBox, monkeypatch: pytest.MonkeyPatch) -> SlurmBox:
    """Let this process stand on the cluster's login node."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH", "SRUN", "SQUEUE"))]:
        monkeypatch.delenv(name)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm.env[name])
    return slurm


def submit(data: Path, capsys: pytest.CaptureFixture[str], *, array: int | None) -> list[str]:
    """Send the jobs as the command does; return their ids, in order."""
    submit_data(data, array=array)
    return [line.removeprefix("job ").partition(":")[0] for line in capsys.readouterr().out.splitlines()]


def shard_files(folder: Path) -> dict[str, bytes]:
    names = ("*.arrow", "*.parquet", "index.json", "rejects.jsonl")
    return {path.name: path.read_bytes() for name in names for path in folder.glob(name)}


def test_elements_that_were_killed_are_sent_again_alone_and_the_bytes_are_those_of_one_machine(
    data: Path, login_node: SlurmBox, capsys: pytest.CaptureFixture[str]
) -> None:
    array, packing = submit(data, capsys, array=NUM_TASKS)
    with pytest.raises(RunError, match=rf"its jobs {array}, {packing} are still in the queue.*scancel"):
        submit_data(data, array=NUM_TASKS)
    for element in (2, 5):  # killed as the kernel does it, in the middle of their work
        login_node.wait_all(f"{array}_{element}", states=["RUNNING"])
        login_node.command("scancel", "--signal=KILL", "--full", f"{array}_{element}")
    ended = {job["ArrayTaskId"]: job["JobState"] for job in login_node.wait_all(array)}
    assert {element for element, state in ended.items() if state != "COMPLETED"} == {"2", "5"}
    # What depends on the array neither hangs nor packs half of it: it ends, and says what to do.
    assert login_node.wait(packing)["JobState"] == "FAILED"
    shards = data.parent / "shards"
    said = (shards / "jobs" / "logs" / f"pack-{packing}.out").read_text()
    assert "2 of 8 elements are not tokenized: 2,5; shardtune submit again sends them alone" in said

    others = {path: path.stat().st_mtime_ns for path in (shards / "parts").glob("*.part")}
    assert len(others) >= NUM_TASKS - 2  # an element may have been killed between its part and its mark
    again, packing = submit(data, capsys, array=NUM_TASKS)
    elements = login_node.wait_all(again)
    assert sorted(job["ArrayTaskId"] for job in elements) == ["2", "5"]
    assert login_node.wait(packing)["JobState"] == "COMPLETED"
    assert {path: path.stat().st_mtime_ns for path in others} == others

    alone = load_sources(data, [f"output={data.parent / 'alone'}"])
    pack(alone)
    assert shard_files(shards) == shard_files(alone.output)
    assert len(list((shards / "parts").glob("*.part"))) == NUM_TASKS


def test_without_an_array_one_job_does_both(
    data: Path, login_node: SlurmBox, capsys: pytest.CaptureFixture[str]
) -> None:
    (job,) = submit(data, capsys, array=None)
    assert login_node.wait(job)["JobState"] == "COMPLETED"
    assert (data.parent / "shards" / "index.json").exists()


def test_printing_sends_nothing_and_shows_both_scripts(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit_data(data, ["seq_len=64"], array=NUM_TASKS, print_only=True, options=["--account=physics"])
    printed = capsys.readouterr().out
    assert printed.startswith("#!/bin/bash\n")
    assert printed.count("#SBATCH --account=physics") == 2
    assert printed.count("#SBATCH --array=0-7\n") == 1
    jobs = data.parent / "shards" / "jobs"
    assert f"DATA={jobs / 'data.yaml'}" in printed
    assert load_sources(jobs / "data.yaml") == load_sources(data, ["seq_len=64"])
    assert not (jobs / "submitted").exists()


def test_the_command_tells_a_data_yaml_from_a_run_yaml(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.yaml"
    run.write_text("name: a\nshards: x\n")
    for arguments, code, words in (
        ((data, "--array", "2", "--print"), 0, ""),
        ((data, "--nodes", "2", "--print"), 2, f"--nodes: {data}: expected a run's settings; leave it out"),
        (
            (run, "--array", "2", "--print"),
            2,
            f"--array: {run}: expected a data.yaml's settings; leave it out",
        ),
    ):
        done = subprocess.run(shardtune("submit", *arguments), capture_output=True, text=True)
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr
        assert ("#SBATCH --array=0-1\n" in done.stdout) == (code == 0)


def test_a_mark_counts_for_the_same_input_and_settings_alone(data: Path) -> None:
    settings = load_sources(data)
    jobs = prepare_data_jobs(settings, array=4)
    jobs.done.mkdir()
    for task in (0, 1, 3):
        (jobs.done / str(task)).touch()
    again = prepare_data_jobs(settings, array=4)
    assert again.missing == (2,)
    assert "#SBATCH --array=2\n" in again.scripts["tokenize.sbatch"]
    assert prepare_data_jobs(settings, array=5).missing == (0, 1, 2, 3, 4)
    time.sleep(0.01)
    (data.parent / "part-3.json").touch()
    assert prepare_data_jobs(settings, array=4).missing == (0, 1, 2, 3)


def test_when_all_is_tokenized_only_the_packing_is_sent(data: Path) -> None:
    jobs = prepare_data_jobs(load_sources(data), array=1)
    jobs.done.mkdir()
    (jobs.done / "0").touch()
    assert list(prepare_data_jobs(load_sources(data), array=1).scripts) == ["pack.sbatch"]


@pytest.mark.parametrize("array", [0, 10_000_000])
def test_an_array_that_slurm_does_not_take(data: Path, array: int) -> None:
    with pytest.raises(SettingsError, match=rf"--array: got {array}; expected 1 … \d+"):
        prepare_data_jobs(load_sources(data), array=array)


def test_a_site_profile_that_is_not_there(data: Path) -> None:
    with pytest.raises(RunError, match=r"--site: nowhere\.sh: no such file"):
        prepare_data_jobs(load_sources(data), array=None, site=Path("nowhere.sh"))


def test_without_slurm_the_jobs_cannot_be_sent(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = prepare_data_jobs(load_sources(data), array=2)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert shutil.which("sbatch") is None
    with pytest.raises(RunError, match="sbatch: not found"):
        list(send_data_jobs(jobs))


def test_the_kinds_of_settings_are_told_apart_by_their_keys(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.yaml"
    run.write_text("name: a\nshards: x\n")
    assert is_data_file(data)
    assert not is_data_file(run)
    assert not is_data_file(tmp_path / "nowhere.yaml")


def test_numbers_as_sbatch_writes_them() -> None:
    assert _ranges([0, 1, 2, 3, 7, 9, 10]) == "0-3,7,9-10"
