import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from data_tools.errors import ShardtuneError
from tests.conftest import ROOT
from tests.training.small_run import copy_small_run, write_run
from training.cli import app
from training.config import read_run_config


@pytest.fixture
def folder(small_run: Path, tmp_path: Path) -> Path:
    return copy_small_run(small_run, tmp_path / "run").parent


def plan(run: Path, *options: str) -> str:
    """Return what the command printed; a mistake of the user's is raised."""
    result = CliRunner().invoke(app, ["plan", str(run), *options])
    if isinstance(result.exception, ShardtuneError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_a_plan_for_cpu_ranks_says_all_of_it(folder: Path) -> None:
    run = write_run(folder, deepspeed=str(ROOT / "ds_configs" / "zero3_offload_cpu.json"))
    output = plan(run, "--tokens-per-second", "1000", "--disk", "0.5", "--host-memory", "64")
    for expected in (
        "2 ranks (1 nodes x 2 CPU ranks)",
        "the host of one node",
        "states of adamw",
        "the host of one node: fits",
        "of 64 GiB",
        "zero3_offload_nvme.json",
        "would choose",
        "zero3.json: the fastest that fits; up to micro_packs 2",
        "steps: 4",
        "hours in all",
        "s a save",
        "1,000 tokens a second, as stated",
    ):
        assert expected in output
    assert "not measured on a GPU" not in output


def test_a_plan_for_gpus_where_there_are_none_is_marked(folder: Path) -> None:
    run = write_run(folder, deepspeed=str(ROOT / "ds_configs" / "zero3.json"))
    output = plan(run, "--nodes", "1", "--gpus-per-node", "4", "--gpu-memory", "0.5")
    assert "4 ranks (1 nodes x 4 GPUs)" in output
    assert "does not fit: one GPU is too small" in output
    assert "they were not measured on a GPU" in output
    assert "the host of one node: needs" in output  # this machine's is not the GPU node's


def test_the_same_as_json(folder: Path) -> None:
    run = write_run(folder, deepspeed=str(ROOT / "ds_configs" / "zero3.json"))
    found: dict[str, Any] = json.loads(plan(run, "--json", "--gpus-per-node", "2", "--gpu-memory", "80"))
    assert found["fits"] is True
    assert found["needed"]["gpu"] == sum(need["bytes"] for need in found["needs"] if need["tier"] == "gpu")
    assert found["largest_micro_packs"] == 2
    assert Path(found["chosen"]).name == "zero3.json"
    assert len(found["ds_configs"]) >= 4


def test_one_ds_config_alone_and_settings_behind_it(folder: Path) -> None:
    run = write_run(folder, deepspeed=str(ROOT / "ds_configs" / "zero3.json"))
    other = ROOT / "ds_configs" / "zero3_offload_optimizer.json"
    found = json.loads(plan(run, "batch.micro_packs=2", "--json", "--ds-config", str(other)))
    assert found["ds_config"] == str(other)
    assert list(found["ds_configs"]) == [str(other)]
    assert found["micro_packs"] == 2


def test_packs_of_another_length_than_the_shards(folder: Path) -> None:
    assert "up to 96 tokens, 96 of them targets" in plan(folder / "run.yaml", "--seq-len", "96")


def test_shards_need_not_be_there(folder: Path) -> None:
    shutil.rmtree(folder / "shards")
    run = folder / "run.yaml"
    with pytest.raises(ShardtuneError, match="say how long packs are: --seq-len 4096"):
        plan(run)
    assert "up to 128 tokens, 128 of them targets" in plan(run, "--seq-len", "128")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpu-memory", "-1"], "--gpu-memory: got -1; expected a number above 0"),
        (["--nodes", "0"], "--nodes: got 0; expected a number above 0"),
        (["--tokens-per-second", "nan"], "--tokens-per-second: got nan; expected a number above 0"),
        (["--calibrate", "nowhere"], "nowhere: holds no metrics.jsonl"),
        (["--ds-config", "nowhere.json"], "nowhere.json: no such file"),
        (["launch.gpus_per_node=3"], "cannot be shared out: got 4 packs for 3 ranks"),
        (["model=nowhere"], "no such folder; expected a Hugging Face model folder"),
    ],
)
def test_what_cannot_be_planned_is_one_line(options: list[str], message: str, folder: Path) -> None:
    with pytest.raises(ShardtuneError) as caught:
        plan(folder / "run.yaml", *options)
    assert message in str(caught.value)


def test_training_writes_the_number_that_auto_takes(folder: Path) -> None:
    run = write_run(folder, batch={"packs_per_step": 8, "micro_packs": "auto"})
    result = CliRunner().invoke(app, ["train", str(run), "--print"])
    assert result.exit_code == 0, result.output
    written = folder / "runs" / "small" / "config.yaml"
    assert yaml.safe_load(written.read_text())["batch"]["micro_packs"] == 4
    assert read_run_config(written).batch.packs_per_forward == 4
    assert (
        json.loads((folder / "runs" / "small" / "ds_config.json").read_text())["gradient_accumulation_steps"]
        == 1
    )
