"""The log with the reason among the logs of a failed run."""

import os
from pathlib import Path

import pytest

from training.last_words import (
    TAIL_BYTES,
    describe_code,
    find_last_words,
    killed_by,
    newest_logs,
    read_tail,
    was_cut_off,
)

CUT_OFF = "Traceback (most recent call last):\nRuntimeError: [gloo] Connection closed by peer [127.0.0.1]:1\n"


def test_exit_codes_of_killed_ranks_are_read() -> None:
    assert "a rank was ended by SIGKILL" in describe_code(247)  # the launcher says sys.exit(-9)
    assert "a rank was ended by SIGKILL" in describe_code(137)  # srun
    assert "the launcher was ended by SIGTERM" in describe_code(-15)
    assert describe_code(3) == "exit code 3"
    assert [killed_by(code) for code in (-9, 247, 137, 0, 1, 75)] == [9, 9, 9, None, None, None]


def test_the_newest_log_of_each_rank(tmp_path: Path) -> None:
    names = ("20260101000000_rank0.log", "job-7.0.0_rank1.log", "job-7.1.0_rank1.log", "launcher.log")
    for age, name in enumerate(names):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    (tmp_path / "rank-0.log").symlink_to(names[0])
    assert newest_logs(tmp_path) == {0: tmp_path / names[0], 1: tmp_path / names[2]}


def test_a_rank_without_a_launcher_was_not_killed(tmp_path: Path) -> None:
    logs = {rank: tmp_path / f"a_rank{rank}.log" for rank in range(2)}
    logs[0].write_text(CUT_OFF)
    logs[1].write_text("step 3\n")
    assert find_last_words(logs, tmp_path / "launcher.log").silent == 1
    logs[1].write_text("step 3\nthe process that started this rank has ended; ending too\n")
    assert find_last_words(logs, tmp_path / "launcher.log").silent is None


@pytest.mark.parametrize(
    ("said", "cut_off"),
    [
        ("[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:16287: Connection reset by peer.", True),
        ("NCCL error: ncclRemoteError: A call failed possibly due to a network error", True),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", False),
    ],
)
def test_an_error_that_only_says_that_another_rank_is_gone(said: str, cut_off: bool) -> None:
    assert was_cut_off(RuntimeError(said)) is cut_off


def test_of_chained_errors_the_last_one_is_it_and_a_cut_off_is_none(tmp_path: Path) -> None:
    log = tmp_path / "a_rank0.log"
    log.write_text(
        "Traceback (most recent call last):\n  File x\nKeyError: 'a'\n\nDuring handling of the above exception, "
        "another exception occurred:\n\nTraceback (most recent call last):\n  File y\nValueError: b\nmore\n"
    )
    assert find_last_words({0: log}, tmp_path / "launcher.log").error == "ValueError: b"
    log.write_text(CUT_OFF)
    assert find_last_words({0: log}, tmp_path / "launcher.log").error is None


def test_of_a_long_log_the_end_is_read_from_a_whole_line_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {n}\n" for n in range(TAIL_BYTES // 4)))
    tail = read_tail(path)
    assert len(tail) <= TAIL_BYTES
    assert tail.startswith("line ")
    assert tail.endswith(f"line {TAIL_BYTES // 4 - 1}\n")
    assert read_tail(tmp_path / "nowhere") == ""
