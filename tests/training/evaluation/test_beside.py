"""Checkpoints evaluated beside a training that saves and deletes meanwhile; the runs are invented, all else is real."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoConfig, AutoModelForCausalLM

from data_tools.errors import RunError
from tests.training.small_run import copy_small_run, make_small_run
from training.checkpoint_files import CheckpointReader, Progress, checkpoint_folder
from training.checkpoint_write import Signals, Slice, prune, publish, write_part
from training.config import load_run_config
from training.evaluation import answers
from training.evaluation.beside import evaluate_checkpoints, main, write_board
from training.evaluation.places import SideJob, missing_splits, next_checkpoint
from training.evaluation.results import read_results
from training.events import read_events
from training.safetensors_file import TensorSpec

JOB = SideJob(("validation",), limit=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_run(tmp_path_factory.mktemp("beside") / "project")


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """Return the folder of a run without a checkpoint."""
    config = load_run_config(copy_small_run(made, tmp_path / "project"))
    config.run_folder.mkdir(parents=True)
    config.write(config.run_folder / "config.yaml")
    return config.run_folder


def save(run: Path, step: int) -> None:
    """Let the run have a checkpoint, of weights that are drawn from the step."""
    torch.manual_seed(step)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(run.parents[1] / "model"))
    weights = dict(model.named_parameters())
    pieces = [
        Slice(f"master|{name}", TensorSpec(torch.float32, (weight.numel(),)), weight.detach().flatten())
        for name, weight in weights.items()
    ]
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    final, signals = checkpoint_folder(run / "checkpoints", step), Signals()
    write_part(final, pieces, 0, 1, signals)
    publish(final, Progress(step, 4 * step, "", 17, 1, step, (), (), shapes, {}), signals)


def curve(run: Path) -> list[int]:
    """Return the steps of the evaluation's loss as TensorBoard reads them."""
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    return [point.step for point in board.Scalars("eval_validation/loss")]


def test_the_newest_is_evaluated_once_and_an_older_one_by_its_name(run: Path) -> None:
    save(run, 10)
    save(run, 30)
    assert evaluate_checkpoints(run, JOB) == ["step-000030"]
    assert evaluate_checkpoints(run, JOB) == []
    named = SideJob(("validation", "train"), "step-000010", limit=2, keep_export=True)
    assert evaluate_checkpoints(run, named) == ["step-000010"]
    # Later in time, and before in the curve: TensorBoard drops what follows a step that goes back.
    assert curve(run) == [10, 30]
    losses = {}
    for step in (10, 30):
        whole = read_results(run / "evaluation" / f"step-{step:06d}" / "validation").groups[0]
        losses[step] = whole.scores["loss"].value
    assert losses[10] != losses[30]
    events = [event for event in read_events(run) if event["event"] == "evaluated"]
    assert [(event["step"], event["split"]) for event in events] == [
        *((30, "validation"), (10, "validation"), (10, "train"))
    ]
    assert events[0]["loss"] == losses[30]
    assert (run / "export" / "step-000010" / "model.safetensors").is_file()
    assert list(run.glob("evaluation/*/model*")) == []


def test_a_checkpoint_that_is_deleted_while_it_is_read_gives_way_to_the_newest(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Slow(CheckpointReader):
        """The training saves and deletes before the files are opened."""

        def __init__(self, folder: Path) -> None:
            super().__init__(folder)
            if folder.name == "step-000010":
                save(run, 20)
                prune(run / "checkpoints", keep=1, keep_every=None)

    monkeypatch.setattr("training.export.CheckpointReader", Slow)
    save(run, 10)
    with caplog.at_level("INFO"):
        assert evaluate_checkpoints(run, JOB) == ["step-000020"]
    assert (
        "step-000010: was deleted by save.keep while it was read; the newest is taken instead" in caplog.text
    )
    assert list(run.glob("evaluation/*/*")) == [run / "evaluation" / "step-000020" / "validation"]
    # Who has named it is told, and so is who has a checkpoint that is damaged.
    with pytest.raises(RunError, match="no finished checkpoint of that name: got step-000010"):
        evaluate_checkpoints(run, SideJob(("validation",), "step-000010"))
    save(run, 40)
    next((run / "checkpoints" / "step-000040").glob("rank-*")).unlink()
    with pytest.raises(RunError, match="step-000040: the checkpoint is damaged: missing rank-00000"):
        evaluate_checkpoints(run, JOB)


def test_killed_in_the_middle_it_goes_on_though_its_checkpoint_has_gone(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    answer = answers._answer_batch

    def killed_at_the_second(folder: Any, prompts: Sequence[Any], *rest: Any, **more: Any) -> list[str]:
        asked.append(len(prompts))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return answer(folder, prompts, *rest, **more)

    monkeypatch.setattr(answers, "_answer_batch", killed_at_the_second)
    save(run, 10)
    job = SideJob(("validation",), limit=12)
    with pytest.raises(KeyboardInterrupt):
        evaluate_checkpoints(run, job)
    place = run / "evaluation" / "step-000010"
    before = (place / "validation" / "answers.jsonl").read_text()
    assert len(before.splitlines()) == 9
    save(run, 20)
    shutil.rmtree(run / "checkpoints" / "step-000010")
    assert evaluate_checkpoints(run, job) == ["step-000010", "step-000020"]
    assert asked == [8, 4, 4, 8, 4]  # the first eight were not asked again
    assert (place / "validation" / "answers.jsonl").read_text().startswith(before)
    assert not (place / "model").exists()

    # Killed between the results and what comes of them: they are not made again.
    (place / "model").mkdir()
    for path in (run / "tensorboard").iterdir():
        path.unlink()
    assert evaluate_checkpoints(run, job) == ["step-000010"]
    assert len(asked) == 5
    assert curve(run) == [10, 20]
    write_board(run)
    assert curve(run) == [10, 20]
    assert len(list((run / "tensorboard").iterdir())) == 1


def test_what_is_next(tmp_path: Path) -> None:
    def touch(name: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    job = SideJob(("validation", "test"))
    assert next_checkpoint(tmp_path, job) is None
    for step in (999_999, 1_000_000):  # by number, and not by name
        touch(f"checkpoints/step-{step}/DONE")
    touch("checkpoints/step-1000001/progress.json")
    assert next_checkpoint(tmp_path, job) == "step-1000000"
    touch("evaluation/step-1000000/validation/results.json")
    assert missing_splits(tmp_path, "step-1000000", job.splits) == ["test"]
    touch("evaluation/step-1000000/test/results.json")
    assert next_checkpoint(tmp_path, job) is None
    assert next_checkpoint(tmp_path, SideJob(("test",), "step-999999")) == "step-999999"
    (tmp_path / "evaluation" / "step-000003" / "model").mkdir(parents=True)
    assert next_checkpoint(tmp_path, job) == "step-000003"


def test_without_tensorboard_there_is_none_and_a_mistake_is_a_line(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_run_config(run / "config.yaml", ["log.tensorboard=false"]).write(run / "config.yaml")
    save(run, 10)
    assert main([str(run), "--split", "validation", "--limit", "1"]) == 0
    assert not (run / "tensorboard").exists()
    assert json.loads((run / "evaluation/step-000010/validation/results.json").read_text())
    capsys.readouterr()
    assert main([str(run), "--split", "validation", "--checkpoint", "step-000011"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
