"""`shardtune submit` before the queue: what it refuses, and what it writes."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import RunError, SettingsError, ShardtuneError
from tests.cluster.slurmbox import SlurmBox
from tests.training.harness import shardtune
from tests.training.small_run import copy_small_run, make_small_run
from training.cluster.gpus import Nodes, check_nodes, choose_gpus
from training.cluster.settings import parse_time
from training.cluster.submit import prepare_job
from training.config import load_run_config
from training.events import record_event
from training.nodes import add_bad_nodes

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_run(tmp_path_factory.mktemp("submit") / "project")


@pytest.fixture
def run_yaml(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run of its own, on a login node where Slurm cannot be asked and the ranks run on CPUs."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("PATH", "/nonexistent")
    return copy_small_run(made, tmp_path / "project")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800),
        ("30:00", 1800),
        ("0:90", 90),
        ("1:30:00", 5400),
        ("24:00:00", 86400),
        ("1-0", 86400),
        ("2-12:30", 217800),
        ("1-0:0:1", 86401),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(text: str, seconds: int) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("slurm.time=1h", "slurm.time: got '1h'; expected a time limit such as 24:00:00"),
        ("slurm.time=24:00:00", 'slurm.time: got 86400; expected a time limit in quotes: "24:00:00"'),
        ("slurm.options=[exclusive]", "expected a list of options of sbatch, such as --exclusive"),
        ("slurm.options=[--nodes=9]", "expected slurm.nodes in place of --nodes, which would undo"),
        ("slurm.options=['-t 5']", "expected slurm.time in place of -t, which would undo"),
        ("slurm.gpus=per-task", "slurm.gpus: got 'per-task'"),
        ("slurm.gpu=8", "slurm.gpu: unknown key"),
        ("slurm.partition='a b'", "slurm.partition: got 'a b'"),
        ("slurm.nodes=0", "slurm.nodes: got 0"),
    ],
)
def test_keys_are_checked(run_yaml: Path, override: str, said: str) -> None:
    with pytest.raises(SettingsError) as error:
        load_run_config(run_yaml, [override])
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ['slurm.time="1"'],
            "slurm.time: too short for a save: got 1 (60 s); expected more than 91 s: a step of 30 s, a save of 0 s",
        ),
        (
            ["slurm.signal_seconds=10"],
            "slurm.signal_seconds: too short to stop in time: got 10; expected at least 91",
        ),
        (
            ["slurm.signal_seconds=7200", "slurm.time=00:30:00"],
            "slurm.time: too short for a save: got 00:30:00 (1800 s); expected more than 7200 s",
        ),
        (["slurm.site=nowhere.sh"], "nowhere.sh: no such file; expected one like those in slurm/sites"),
        (["slurm.nodes=3"], "got 4 packs for 6 ranks"),
        (
            ["launch.gpus_per_node=null"],
            "launch.gpus_per_node: got null, which a login node cannot count; expected the number of GPUs",
        ),
        (["shards=HERE/nowhere"], "nowhere: "),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    run_yaml: Path, overrides: list[str], said: str
) -> None:
    with pytest.raises(ShardtuneError) as error:
        prepare_job(
            load_run_config(run_yaml, [text.replace("HERE", str(run_yaml.parent)) for text in overrides])
        )
    assert said in str(error.value)
    assert not (run_yaml.parent / "runs").exists()


def test_the_lead_follows_from_what_the_run_has_measured(run_yaml: Path) -> None:
    config = load_run_config(run_yaml)
    config.run_folder.mkdir(parents=True)
    rows = [{"step": step, "time/step_seconds": 900.0 if step == 1 else 20.0} for step in range(1, 61)]
    (config.run_folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for seconds in (200.0, 240.5):
        record_event(config.run_folder, "saved", step=60, seconds=seconds)
    assert "#SBATCH --signal=B:USR1@321\n" in prepare_job(config).text  # 20 + 240.5 + 60
    with pytest.raises(RunError, match=r"a save of 240 s \(measured in this run\)"):
        prepare_job(load_run_config(run_yaml, ["slurm.time=00:05:00"]))


def test_bad_nodes_are_left_out_and_the_folder_is_ready(run_yaml: Path) -> None:
    config = load_run_config(run_yaml, ["slurm.nodes=2", "slurm.time=00:30:00"])
    config.run_folder.mkdir(parents=True)
    add_bad_nodes(config.run_folder, ["n7", "n9"])
    script = prepare_job(config)
    assert "#SBATCH --exclude=n7,n9\n" in script.text
    assert script.path.read_text() == script.text
    ds_config = json.loads(script.run.ds_config_path.read_text())
    assert ds_config["gradient_accumulation_steps"] == 1  # 4 packs on 2 nodes x 2 ranks
    assert script.run.config_path.is_file()
    assert script.run.logs.is_dir()  # without it the job would fail without a word
    assert not (script.run.path / "lease.json").exists()


def nodes_with(gpus: set[int] | None, partition: str | None = None) -> Nodes | None:
    """Return three nodes of 16 CPUs with these numbers of GPUs; None: Slurm cannot be asked."""
    where = f"partition {partition}" if partition else "this cluster"
    return None if gpus is None else Nodes(where, 3, 16, frozenset(gpus))


@pytest.mark.parametrize(
    ("changes", "listed", "expected"),
    [
        ({}, {8}, ("gpus-per-node", 2)),
        ({}, {0}, (None, 2)),
        ({}, None, ("gpus-per-node", 2)),
        ({"slurm.gpus": "gres"}, {0, 4}, ("gres", 2)),
        ({"slurm.gpus": "null"}, {8}, (None, 2)),
        ({"launch.gpus_per_node": "null"}, {0, 4}, ("gpus-per-node", 4)),
    ],
)
def test_how_gpus_are_asked_for(
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    listed: set[int] | None,
    expected: Any,
) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    config = load_run_config(made, [f"{key}={value}" for key, value in changes.items()])
    assert choose_gpus(config, nodes_with(listed)) == expected


@pytest.mark.parametrize(
    ("changes", "listed", "said"),
    [
        (
            ["launch.gpus_per_node=8"],
            {4},
            "got 8; expected at most the 4 that Slurm knows of on a node of this cluster",
        ),
        (
            ["slurm.gpus=gres", "slurm.partition=cpu"],
            {0},
            "expected at most the 0 that Slurm knows of on a node of partition cpu; set slurm.gpus: null",
        ),
        (["launch.gpus_per_node=null"], {4, 8}, "got null, which a login node cannot count"),
        (
            ["slurm.gpu_type=a100"],
            {0},
            "got a100 for a job without GPUs: Slurm knows of none on the nodes of",
        ),
    ],
)
def test_gpus_that_are_not_there(made: Path, changes: list[str], listed: set[int], said: str) -> None:
    config = load_run_config(made, changes)
    with pytest.raises(RunError) as error:
        choose_gpus(config, nodes_with(listed, config.slurm.partition))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["slurm.nodes=4"], "slurm.nodes: got 4; expected at most the 3 nodes of this cluster"),
        (["slurm.nodes=2", "slurm.spare_nodes=2"], "got 2 and slurm.spare_nodes 2; expected at most the 3"),
        (["slurm.cpus_per_task=9"], "got 9 for each of 2 ranks of a node; expected at most 8: a node"),
    ],
)
def test_a_job_that_would_wait_for_ever_is_refused(made: Path, changes: list[str], said: str) -> None:
    with pytest.raises(RunError) as error:
        check_nodes(load_run_config(made, changes).slurm, nodes_with({0}), ranks_per_node=2)
    assert said in str(error.value)


def test_a_job_that_fits_is_not_refused(made: Path) -> None:
    slurm = load_run_config(made, ["slurm.nodes=3", "slurm.cpus_per_task=8"]).slurm
    check_nodes(slurm, nodes_with({0}), ranks_per_node=2)
    check_nodes(slurm, None, ranks_per_node=100)


def test_what_slurm_refuses_is_passed_on(slurm: SlurmBox, run_yaml: Path) -> None:
    def submit(*overrides: str) -> "subprocess.CompletedProcess[str]":
        return slurm.command(*shardtune("submit", run_yaml, *overrides), check=False, cwd=run_yaml.parent)

    unknown = submit("slurm.partition=nowhere")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("slurm.partition: got nowhere; expected one of ")
    refused = submit("slurm.mem=999999G")
    assert refused.returncode == 2
    assert (
        "Slurm has refused the job: sbatch: error: Memory specification can not be satisfied"
        in refused.stderr
    )
    waits = submit("slurm.nodes=40", "batch.packs_per_step=80")
    assert "slurm.nodes: got 40; expected at most the" in waits.stderr
    too_many = submit("launch.gpus_per_node=8")
    assert "expected at most the 4 that Slurm knows of" in too_many.stderr


def test_with_print_only_the_script_is_on_stdout_and_without_slurm_it_cannot_be_sent(run_yaml: Path) -> None:
    def submit(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = shardtune("submit", run_yaml, *arguments)
        env = {"PATH": "/nowhere", "DS_ACCELERATOR": "cpu"}
        return subprocess.run(command, capture_output=True, text=True, cwd=run_yaml.parent, env=env)

    printed = submit("--print", "--nodes", "2")
    assert printed.returncode == 0
    assert printed.stdout == (run_yaml.parent / "runs" / "small" / "train.sbatch").read_text()
    assert "2 nodes x 2 ranks" in printed.stderr
    sent = submit()
    assert (sent.returncode, sent.stdout) == (2, "")
    assert "sbatch: not found; do this on a login node of the cluster, or use --print" in sent.stderr
    assert "Traceback" not in sent.stderr
