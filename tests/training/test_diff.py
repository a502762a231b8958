"""`shardtune diff` on run folders that were prepared for real, with measured lines beside them."""

import json
from pathlib import Path

import pytest

from data_tools.errors import RunError
from data_tools.pack import pack
from data_tools.settings import load_data_settings
from tests.training.small_run import make_small_run, write_run
from training.config import load_run_config
from training.diff import Difference, diff_runs
from training.launch import check, find_devices
from training.run_folder import RunFolder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_run(tmp_path_factory.mktemp("diff")).parent


def prepared(project: Path, name: str, losses: list[float], **changes: object) -> Path:
    """Prepare the folder of a run, and write the lines that it would have measured."""
    config = load_run_config(write_run(project, name=name, **changes))
    shards, ds_config = check(config, find_devices(config))
    run = RunFolder(config.run_folder)
    with run.hold():
        run.prepare(config, ds_config, shards_fingerprint=shards.fingerprint)
    lines = [json.dumps({"step": step, "train/loss": loss}) for step, loss in enumerate(losses, 1)]
    (run.path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return run.path


def test_two_runs_alike_differ_in_nothing(project: Path) -> None:
    a, b = prepared(project, "a", [3.0, 2.0]), prepared(project, "b", [3.0, 2.0])
    assert diff_runs(a, b) == []


def test_settings_and_losses_that_differ_are_shown(project: Path) -> None:
    a = prepared(project, "slow", [3.0, 2.0, 1.0])
    b = prepared(project, "fast", [3.0, 1.5], optim={"lr": 2e-3})
    found = diff_runs(a, b)
    assert Difference("settings", "optim.lr", "0.001", "0.002") in found
    assert Difference("step 2", "train/loss", "2", "1.5") in found
    assert Difference("end", "steps", "3", "2") in found
    assert Difference("end", "train/loss, lowest", "1", "1.5") in found
    assert {line.part for line in found} == {"settings", "deepspeed", "step 2", "end"}


def test_other_data_is_shown_by_source(project: Path) -> None:
    a = prepared(project, "whole", [3.0])
    half = [
        f"output={project}/half",
        "sources.0.weight=0.5",
    ]  # on a command line paths begin at the current folder
    pack(load_data_settings(project / "data.yaml", half), workers=1)
    b = prepared(project, "half", [3.0], shards="half")
    found = {line.what: line for line in diff_runs(a, b) if line.part == "data"}
    kept = found["source alpaca: kept"]
    assert int(kept.b) < int(kept.a)
    assert "split train: documents" in found

    (project / "half" / "index.json").unlink()
    gone = {line.what: line for line in diff_runs(a, b) if line.part == "data"}
    assert gone["shards"].b == "the folder is gone, or another now"


def test_mistakes_get_one_line(project: Path, tmp_path: Path) -> None:
    a = prepared(project, "good", [3.0])
    with pytest.raises(RunError, match="no such folder"):
        diff_runs(a, tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"not a run folder: it has no config\.yaml"):
        diff_runs(a, tmp_path)
    b = prepared(project, "damaged", [3.0])
    (b / "environment.json").write_text("{")
    with pytest.raises(RunError, match="a file of the run is damaged"):
        diff_runs(a, b)


@pytest.mark.parametrize("content", ["", "- a\n", "3\n"])
def test_settings_that_are_none_are_named(project: Path, content: str) -> None:
    run = prepared(project, "senseless", [3.0])
    (run / "config.yaml").write_text(content)
    with pytest.raises(RunError, match=r"config\.yaml: is damaged"):
        diff_runs(run, run)
