"""`shardtune init`: what it lays down is accepted by the commands it is for."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_tools.errors import RunError
from data_tools.settings import load_data_settings
from training.cli import app
from training.config import load_run_config
from training.ds_config import read_ds_file
from training.starting_files import lay_down


def test_its_settings_are_accepted_and_its_files_are_whole(tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["init", str(tmp_path / "new" / "project")])
    assert made.exit_code == 0
    folder = tmp_path / "new" / "project"
    assert sorted(map(Path, made.stdout.split())) == sorted(
        path for path in folder.rglob("*") if path.is_file()
    )
    config = load_run_config(folder / "run.yaml")
    assert read_ds_file(config.deepspeed)["zero_optimization"]["stage"] == 3
    assert load_data_settings(folder / "data.yaml").output == config.shards
    assert {path.name for path in (folder / "slurm").iterdir()} >= {"train.sbatch", "eval.sbatch", "sites"}


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("mine")
    with pytest.raises(RunError, match=r"has run\.yaml already"):
        lay_down(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
