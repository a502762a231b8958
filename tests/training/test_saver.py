"""Saving while training goes on, in real runs: what a checkpoint holds, what it costs, and a disk that says no."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.training.checkpoints import read_ledger, same_checkpoint
from tests.training.harness import Project, make_project, read_losses
from training.checkpoint_files import checkpoint_folder
from training.status.report import read_status


@pytest.fixture(scope="module")
def in_step(tiny: Project) -> Path:
    """Return the checkpoints of a run of 10 steps whose every save is waited for."""
    save = {"every_steps": 2, "keep": 1, "keep_every": 4, "mode": "sync"}
    tiny.train("in-step", steps=10, save=save)
    return tiny.run_folder("in-step") / "checkpoints"


def test_what_is_saved_while_training_goes_on_is_the_state_at_the_start_of_the_save(
    tiny: Project, in_step: Path
) -> None:
    tiny.train("meanwhile", steps=10, save={"every_steps": 2, "keep": 1, "keep_every": 4})
    checkpoints = tiny.run_folder("meanwhile") / "checkpoints"
    names = sorted(path.name for path in checkpoints.iterdir())
    assert names == ["step-000004", "step-000008", "step-000010"]
    assert names == sorted(path.name for path in in_step.iterdir())
    for name in names:
        assert same_checkpoint(checkpoints / name, in_step / name), name
    rows = [json.loads(line) for line in (checkpoints.parent / "metrics.jsonl").read_text().splitlines()]
    assert all("time/save_seconds" in row for row in rows)


def fill_the_disk(project: Project, name: str, step: int, rank: int) -> Path:
    """Let the system refuse the file of a rank in the checkpoint of a step; return what does it."""
    full = project.folder / f"full-{name}-{step}"
    full.mkdir()
    (full / f"rank-{rank:05d}-of-00002.safetensors.partial").symlink_to("/dev/full")
    obstacle = project.run_folder(name) / "checkpoints" / f"step-{step:06d}.partial"
    obstacle.parent.mkdir(parents=True, exist_ok=True)
    obstacle.symlink_to(full)
    return obstacle


@pytest.mark.slow
def test_a_full_disk_ends_the_run_or_not_as_set_and_the_last_checkpoint_stays(
    tiny: Project, in_step: Path
) -> None:
    save: dict[str, Any] = {"every_steps": 2, "keep": 9}
    obstacle = fill_the_disk(tiny, "full", 4, rank=1)
    process = tiny.start(tiny.write_run("full", {"steps": 10, "save": save}))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2, output
    checkpoints = tiny.run_folder("full") / "checkpoints"
    assert f"{checkpoints}/step-000004: the checkpoint could not be saved: rank 1: " in output
    assert "No space left on device" in output
    assert "step-000002 is untouched" in output
    status = read_status(checkpoints.parent)
    assert status.why is not None
    assert (status.state, status.why.kind) == ("failed", "disk_full")
    obstacle.unlink()

    fill_the_disk(tiny, "full", 6, rank=0)
    process = tiny.start(tiny.write_run("full", {"steps": 10, "save": save | {"on_error": "continue"}}))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert f"{checkpoints}/step-000006: the checkpoint could not be saved: rank 0: " in output
    assert "training goes on" in output
    finished = sorted(path.parent.name for path in checkpoints.glob("*/DONE"))
    assert finished == ["step-000002", "step-000004", "step-000008", "step-000010"]
    for name in ("step-000004", "step-000010"):
        assert same_checkpoint(checkpoints / name, in_step / name), name
    assert list(read_losses(checkpoints.parent)) == list(range(1, 11))


@pytest.mark.slow
def test_continued_on_three_ranks_after_four(tiny: Project) -> None:
    settings: dict[str, Any] = {"batch": {"packs_per_step": 12, "micro_packs": 1}}
    unbroken = tiny.train("of-two", steps=6, **settings)
    for steps, ranks in ((3, 4), (6, 3)):
        losses = tiny.train("of-four-and-three", steps=steps, launch={"gpus_per_node": ranks}, **settings)
    assert losses == pytest.approx(unbroken, abs=1e-4)
    ledgers = {read_ledger(tiny.run_folder(name), 6) for name in ("of-two", "of-four-and-three")}
    assert len(ledgers) == 1


@pytest.mark.slow
@pytest.mark.parametrize("ds_config", ["zero3", "zero3_offload_cpu"])
def test_with_tied_embeddings_it_resumes_exactly(
    tmp_path_factory: pytest.TempPathFactory, ds_config: str
) -> None:
    layers = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    folder = tmp_path_factory.mktemp("tied")
    project = make_project(
        folder, rows_per_family=30, seq_len=128, layers=layers | {"tie_word_embeddings": True}
    )
    settings = {"deepspeed": str(ROOT / "ds_configs" / f"{ds_config}.json"), "precision": "bf16"}
    whole = project.train("whole", steps=4, **settings)
    project.train("parts", steps=2, **settings)
    assert project.train("parts", steps=4, **settings) == whole
    folders = [checkpoint_folder(project.run_folder(name) / "checkpoints", 4) for name in ("whole", "parts")]
    assert same_checkpoint(*folders)
