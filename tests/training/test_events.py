"""events.jsonl: lines of several writers, some of which are killed."""

import subprocess
import sys
from pathlib import Path

import pytest

from training.events import last_sign_of_life, read_events, record_event


def test_events_are_read_in_order_and_what_is_none_is_left_out(tmp_path: Path) -> None:
    record_event(tmp_path, "started", host="n1", job=None)
    record_event(tmp_path, "done", step=3)
    events = read_events(tmp_path)
    assert [set(event) for event in events] == [{"time", "event", "host"}, {"time", "event", "step"}]
    assert events[0]["time"] <= events[1]["time"]
    assert read_events(tmp_path / "nowhere") == []


def test_a_torn_line_takes_no_other_with_it(tmp_path: Path) -> None:
    record_event(tmp_path, "started")
    path = tmp_path / "events.jsonl"
    path.write_text(path.read_text() + '{"time": 1, "eve')
    assert [event["event"] for event in read_events(tmp_path)] == ["started"]
    record_event(tmp_path, "done")
    assert [event["event"] for event in read_events(tmp_path)] == ["started", "done"]


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    code = "import sys; from training.events import record_event; from pathlib import Path\n"
    code += "for n in range(200): record_event(Path(sys.argv[1]), 'saved', step=n, text='x' * 900)"
    writers = [subprocess.Popen([sys.executable, "-c", code, tmp_path]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    events = read_events(tmp_path)
    assert len(events) == 600
    assert {len(event["text"]) for event in events} == {600}


def test_a_job_script_records_with_one_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training.events", str(tmp_path), "started"]
    subprocess.run([*command, "job=12_3", "restart=2", "nodes=n1 n2", "why="], check=True)
    (event,) = read_events(tmp_path)
    del event["time"]
    assert event == {"event": "started", "job": "12_3", "restart": 2, "nodes": "n1 n2"}
    assert subprocess.run([*command, "job"], capture_output=True).returncode == 2


def test_a_start_notes_the_last_sign_of_life_of_the_one_before(tmp_path: Path) -> None:
    assert last_sign_of_life(tmp_path) is None
    (tmp_path / "metrics.jsonl").touch()
    sign = last_sign_of_life(tmp_path)
    record_event(tmp_path, "started")
    assert read_events(tmp_path)[0]["last_sign"] == sign


def test_a_folder_that_cannot_be_written_is_told_of_and_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record_event(tmp_path / "nowhere", "failed")
    assert "the event 'failed' could not be recorded: No such file" in caplog.text
