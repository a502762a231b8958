"""What a job checks on each node before its ranks start."""

import json
from pathlib import Path

import pytest

from tests.training.small_run import make_small_run
from training.cluster.prolog import node_mistakes, prepare_node
from training.cluster.submit import prepare_job
from training.config import load_run_config
from training.ds_config import read_ds_config
from training.nodes import node_name
from training.run_folder import RunFolder

pytestmark = pytest.mark.alone


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("PATH", "/nonexistent")
    return prepare_job(load_run_config(make_small_run(tmp_path / "project"))).run


def mistakes(run: RunFolder, *, ranks: int = 2) -> list[str]:
    config = load_run_config(run.config_path)
    return list(node_mistakes(run, config, read_ds_config(run.ds_config_path), ranks=ranks))


def test_a_good_node_and_a_cleared_folder(run: RunFolder) -> None:
    run.write_state("stopped")
    run.request_stop()
    prepare_node(run, ranks=2)
    assert run.state is None
    assert not run.stop_requested()
    assert mistakes(run) == []


def test_only_the_first_node_clears_the_folder(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    run.request_stop()
    prepare_node(run, ranks=2)
    assert run.stop_requested()


def test_each_thing_that_is_missing_is_named_with_the_node(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "n17")
    assert node_name() == "n17"
    config = load_run_config(run.config_path)
    (config.shards / "index.json").unlink()
    (config.model / "config.json").unlink()
    found = mistakes(run)
    assert [line.split(":")[0] for line in found] == ["shards", "model"]
    with pytest.raises(Exception, match=f"n17: shards: {config.shards}/index.json: is not there") as error:
        prepare_node(run, ranks=2)
    assert f"n17: model: {config.model}/config.json: is not there" in str(error.value)


def test_shared_memory_for_all_ranks(run: RunFolder) -> None:
    (found,) = mistakes(run, ranks=10**6)
    assert found.startswith("/dev/shm: too full: got ")
    assert "expected 68000000 for 1000000 ranks" in found


def test_fewer_gpus_than_ranks(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    (found,) = mistakes(run)
    assert "launch.gpus_per_node: got 2; expected at most the 1 GPUs that Slurm gave this job here" in found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert mistakes(run) == []


@pytest.mark.parametrize(
    ("nvme_path", "said"),
    [
        ("/proc/nowhere", "nvme_path: /proc/nowhere: cannot be made"),
        ("${NO_SUCH_SCRATCH}", "the environment variable NO_SUCH_SCRATCH is not set"),
    ],
)
def test_scratch_that_cannot_be_used(run: RunFolder, nvme_path: str, said: str) -> None:
    section = {"device": "nvme", "nvme_path": nvme_path, "pin_memory": False}
    ds_config = {"zero_optimization": {"stage": 3, "offload_optimizer": section}}
    run.ds_config_path.write_text(json.dumps(ds_config))
    config = load_run_config(run.config_path)
    (found,) = node_mistakes(run, config, ds_config, ranks=1)
    assert said in found
