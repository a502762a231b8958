"""Weights & Biases beside a run: whatever happens to it, the run's log goes on, and says so once."""

import importlib.util
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from training.metrics import MetricsLog, read_metrics
from training.monitoring.wandb_feed import Tail, WandbFeed, send

needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs the extra `wandb`")


class Board:
    """What `send` needs of a run at Weights & Biases."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, Any]]] = []

    def log(self, metrics: dict[str, Any], *, step: int) -> None:
        self.lines.append((step, metrics))


def write_lines(path: Path, *steps: int) -> None:
    path.write_text("".join(json.dumps({"step": step, "train/loss": step / 2}) + "\n" for step in steps))


def records(data: bytes) -> Iterator[bytes]:
    """Yield the records of an offline run: 7 bytes of head, then LevelDB's log format in blocks of 32 KiB."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


def sent(folder: Path) -> dict[int, dict[str, Any]]:
    """Return what an offline run holds: step to metrics."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    found = {}
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            found[record.history.step.num] = {
                key: json.loads(text) for key, text in items.items() if not key.startswith("_")
            }
    return found


def test_new_lines_are_read_once_and_torn_ones_when_they_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert list(tail.read()) == []
    write_lines(path, 1, 2)
    with path.open("a") as file:
        file.write('{"step": 3')
    assert [row["step"] for row in tail.read()] == [1, 2]
    with path.open("a") as file:
        file.write("}\n")
    assert list(tail.read()) == [{"step": 3}]


def test_of_a_file_that_was_replaced_all_is_read_and_steps_stay_in_order(tmp_path: Path) -> None:
    path, board = tmp_path / "metrics.jsonl", Board()
    tail = Tail(path)
    write_lines(path, 1, 2, 3)
    last = send(board, tail.read(), 0)  # type: ignore[arg-type]
    write_lines(tmp_path / "new", 1, 2, 3, 4)
    (tmp_path / "new").replace(path)
    assert send(board, tail.read(), last) == 4  # type: ignore[arg-type]
    assert [step for step, _ in board.lines] == [1, 2, 3, 3, 4]


def test_a_value_that_was_not_finite_is_left_out() -> None:
    board = Board()
    send(board, iter([{"step": 1, "train/loss": None, "train/lr": 0.1}]), 0)  # type: ignore[arg-type]
    assert board.lines == [(1, {"train/lr": 0.1})]


def test_what_fails_is_said_once_and_the_log_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # A package of the same name that cannot be imported, for the process that is to import it.
    (tmp_path / "broken" / "wandb").mkdir(parents=True)
    (tmp_path / "broken" / "wandb" / "__init__.py").write_text(
        "raise ImportError('wandb is not what it was')"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'broken'}:{ROOT}")
    (tmp_path / "config.yaml").write_text("name: demo\n")
    feed = WandbFeed(tmp_path, "offline", "shardtune")
    feed._process.wait(60)
    with caplog.at_level(logging.WARNING):
        log = MetricsLog(tmp_path, resume_step=0, tensorboard=False, feed=feed)
        for step in (1, 2, 3):
            log.write(step, {"train/loss": 1.0})
        log.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    said = [record.getMessage() for record in caplog.records if "wandb" in record.getMessage()]
    assert len(said) == 1
    assert "wandb is not what it was; install it with: pip install 'shardtune[wandb]'" in said[0]
    assert "the run goes on without" in said[0]


@needs_wandb
def test_offline_holds_what_the_log_holds_and_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: demo\noptim: {lr: 0.1}\n")
    feed = WandbFeed(tmp_path, "offline", "shardtune")
    log = MetricsLog(tmp_path, resume_step=0, tensorboard=False, feed=feed)
    for step in range(1, 6):
        log.write(step, {"train/loss": 1 / step})
    log.close()
    assert feed._process.returncode == 0, (tmp_path / "logs" / "wandb.log").read_text()
    assert sent(tmp_path) == {step: {"train/loss": pytest.approx(1 / step)} for step in range(1, 6)}


@needs_wandb
def test_a_server_that_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config.yaml").write_text("name: demo\n")
    write_lines(tmp_path / "metrics.jsonl", 1)
    command = [sys.executable, "-m", "training.monitoring.wandb_feed", str(tmp_path), "online", "shardtune"]
    ended = subprocess.run(
        [*command, "--all"], cwd=ROOT, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stdout + ended.stderr
    assert ended.stdout.strip()
