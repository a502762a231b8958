"""What is said about a run that failed; how runs end is in test_launch.py, with real processes."""

import os
from pathlib import Path

import pytest

from data_tools.errors import RunError
from training.run_folder import RunFolder
from training.supervise import exit_code

pytestmark = pytest.mark.alone

CUT_OFF = "Traceback (most recent call last):\nRuntimeError: [gloo] Connection closed by peer [127.0.0.1]:1\n"
BUG = "Traceback (most recent call last):\nArithmeticError: cannot count further\n"


def logs(folder: Path, *texts: str) -> dict[int, Path]:
    (folder / "logs").mkdir()
    paths = {rank: folder / "logs" / f"rank-{rank}.log" for rank in range(len(texts))}
    for rank, text in enumerate(texts):
        paths[rank].write_text(text)
        os.utime(paths[rank], (rank, rank))
    return paths


def test_the_rank_with_the_reason_is_shown_and_not_those_it_cut_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(RunFolder(tmp_path), 1, logs(tmp_path, CUT_OFF, CUT_OFF, BUG)) == 1
    stderr = capsys.readouterr().err
    assert "the last lines of rank 2" in stderr
    assert "ArithmeticError: cannot count further" in stderr
    assert "Connection closed" not in stderr
    assert RunFolder(tmp_path).state == "failed"


def test_a_rank_that_was_killed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(RunFolder(tmp_path), 1, logs(tmp_path, CUT_OFF, "")) == 1
    assert "rank 1 has ended without a word, as when it is killed" in capsys.readouterr().err


def test_a_launcher_that_starts_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/launcher.log").write_text("ModuleNotFoundError: No module named 'deepspeed'\n")
    assert exit_code(RunFolder(tmp_path), 1, {}) == 1
    stderr = capsys.readouterr().err
    assert "the last lines of the launcher" in stderr
    assert "No module named 'deepspeed'" in stderr


def test_the_state_counts_and_not_the_launchers_code(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_state("done")
    assert exit_code(run, 250, {}) == 0
    run.write_state("stopped")
    assert exit_code(run, 0, {}) == 75


def test_a_users_mistake_is_told_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path)
    paths = logs(tmp_path, CUT_OFF, "some progress\n")
    run.write_mistake(RunError("model: the weights do not fit"))
    assert exit_code(run, 1, paths) == 2
    assert capsys.readouterr().err == "model: the weights do not fit\n"
