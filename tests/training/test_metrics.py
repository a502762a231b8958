"""metrics.jsonl and TensorBoard: each step once, whatever was killed and resumed."""

import json
import logging
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.distributed import World
from training.metrics import MetricsLog, Progress, cut_after, duration, read_metrics, short


def write(folder: Path, first: int, last: int, *, run: float) -> None:
    log = MetricsLog(folder, resume_step=first - 1, tensorboard=True, num_steps=9)
    for step in range(first, last + 1):
        log.write(step, {"train/loss": run + step})
    log.close()


def test_after_a_resume_each_step_stands_once(tmp_path: Path) -> None:
    write(tmp_path, 1, 6, run=100.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train/l')  # torn by a kill
    write(tmp_path, 4, 8, run=200.0)
    assert read_metrics(tmp_path) == [
        {"step": step, "train/loss": (100.0 if step < 4 else 200.0) + step} for step in range(1, 9)
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}


def test_tensorboard_shows_each_step_once_too(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, 1, 6, run=100.0)
    write(tmp_path, 4, 8, run=200.0)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert shown == [(step, (100.0 if step < 4 else 200.0) + step) for step in range(1, 9)]


def test_a_new_run_in_an_old_folder_begins_anew(tmp_path: Path) -> None:
    write(tmp_path, 1, 6, run=100.0)
    write(tmp_path, 1, 2, run=200.0)
    assert [line["train/loss"] for line in read_metrics(tmp_path)] == [201.0, 202.0]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, resume_step=0, tensorboard=True, world=World(rank=1, size=2, local_rank=1))
    log.write(1, {"train/loss": 1.0})
    log.text("config", "text")
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, resume_step=0, tensorboard=False)
    log.write(1, {"train/grad_norm": math.inf, "train/loss": 1.0})
    log.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line) == {"step": 1, "train/grad_norm": None, "train/loss": 1.0}


@given(
    steps=st.lists(st.integers(1, 50), unique=True).map(sorted),
    cut=st.integers(0, 60),
    torn=st.integers(0, 20),
)
def test_cutting_keeps_exactly_the_whole_lines_up_to_the_step(steps: list[int], cut: int, torn: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        text = "".join(json.dumps({"step": step, "train/loss": 0.5}) + "\n" for step in steps)
        path.write_text(text[: len(text) - torn] if torn < len(text) else "")
        whole = path.read_text().count("\n")
        cut_after(path, cut)
        assert [line["step"] for line in read_metrics(Path(folder))] == [s for s in steps[:whole] if s <= cut]
        assert path.read_text() == "" or path.read_text().endswith("\n")


def test_the_progress_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = MetricsLog(tmp_path, resume_step=0, tensorboard=False, num_steps=300)
    with caplog.at_level(logging.INFO):
        metrics = {
            "train/loss": 2.3149,
            "train/lr": 1e-5,
            "train/grad_norm": 0.8,
            "speed/tokens_per_second": 1234,
        }
        log.write(12, metrics)
    log.close()
    assert caplog.messages == ["step 12/300  loss 2.315  lr 1.00e-05  grad 0.8  1.23k tok/s"]
    assert Progress(num_steps=None).line(3, {}) == "step 3"


def test_the_time_left_appears_from_the_second_step_on() -> None:
    progress = Progress(num_steps=3)
    assert "left" not in progress.line(1, {})
    assert "left 0 s" in progress.line(2, {})
    assert "left" not in progress.line(3, {})


def test_numbers_for_people() -> None:
    assert [short(value) for value in (12.345, 1234, 2_500_000, 3e9)] == ["12.3", "1.23k", "2.5M", "3G"]
    assert [duration(value) for value in (5, 300, 10800)] == ["5 s", "5 min", "3.0 h"]


def test_what_is_found_later_is_added_to_the_last_line(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, resume_step=0, tensorboard=False)
    for step in (1, 2):
        log.write(step, {"train/loss": 3.0 - step, "train/grad_norm": math.inf})
    log.amend(2, {"validation/loss": 2.5})
    log.write(3, {"train/loss": 0.5})
    log.close()
    assert read_metrics(tmp_path) == [
        {"step": 1, "train/loss": 2.0, "train/grad_norm": None},
        {"step": 2, "train/loss": 1.0, "train/grad_norm": None, "validation/loss": 2.5},
        {"step": 3, "train/loss": 0.5},
    ]
    assert not list(tmp_path.glob("*.partial"))
    reader = MetricsLog(tmp_path, resume_step=3, tensorboard=False, world=World(1, 2, 1))
    reader.amend(3, {"validation/loss": 9.0})  # of rank 0 alone
    assert "validation/loss" not in read_metrics(tmp_path)[-1]
