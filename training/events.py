"""What has happened to a run, one short line each in RUN/events.jsonl: what metrics.jsonl cannot tell.

started    whoever starts the ranks: host, job, restart, nodes, ranks, last_sign (of life of the start before)
training   rank 0, with the engine built: step (done so far), num_steps, world, reached (by the start before)
signalled  whoever got it: signal         saved   rank 0: step, seconds
stuck      the watchdog                   requeued   the batch script: job
done  stopped  failed   the ranks' own end: step; of a failure each rank that can still speak: rank, host, error
ended      whoever started the ranks, when they are gone: code, state
side_job   submit --eval: job        evaluated   that job: step, split, documents, loss, exact_match

Several hosts append to the file. A job script records with `python -m training.events RUN_FOLDER EVENT KEY=VALUE…`.
"""

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from data_tools.errors import RunError

logger = logging.getLogger(__name__)

FILE_NAME = "events.jsonl"
# What is done beside the training, which says nothing of where that stands.
BESIDE = ("side_job", "evaluated")
# A short line is appended by one write, which systems do not mix with another's.
MAX_TEXT = 600
# What the ranks of a run touch at each step: its newest time is their last sign of life.
SIGNS_OF_LIFE = ("metrics.jsonl", "heartbeat/rank-*.json")


def record_event(run_folder: Path, event: str, **facts: Any) -> None:
    """Append `{time, event, …}` to the run's events; facts that are None are left out, long texts cut.

    Where it cannot be written (a full disk), that is logged and no error: it must not hide what was to be told.
    """
    if event == "started":
        facts.setdefault("last_sign", last_sign_of_life(run_folder))
    kept = {
        key: value[:MAX_TEXT] if isinstance(value, str) else value
        for key, value in facts.items()
        if value is not None
    }
    line = json.dumps({"time": round(time.time(), 3), "event": event, **kept}) + "\n"
    try:
        file = os.open(run_folder / FILE_NAME, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(file).st_size
            torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
            os.write(file, (("\n" if torn else "") + line).encode())
        finally:
            os.close(file)
    except OSError as error:
        logger.warning("%s: the event %r could not be recorded: %s", run_folder, event, error.strerror)


def read_events(run_folder: Path) -> list[dict[str, Any]]:
    """Return the run's events, oldest first; lines that are torn or damaged are left out."""
    try:
        lines = (run_folder / FILE_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [event for event in map(_parse, lines) if event is not None]


def _parse(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(value, dict) and isinstance(value.get("event"), str)
    if not whole or not isinstance(value.get("time"), int | float) or not 0 <= value["time"] < 1e11:
        return None
    if value["event"] == "training" and not all(
        isinstance(value.get(key), int) for key in ("step", "num_steps")
    ):
        return None
    return value  # type: ignore[no-any-return]


def last_sign_of_life(run_folder: Path) -> float | None:
    """Return when the ranks last wrote (seconds since the epoch); None for a run that never trained."""
    times = []
    for pattern in SIGNS_OF_LIFE:
        for path in run_folder.glob(pattern):
            try:
                times.append(path.stat().st_mtime)
            except FileNotFoundError:  # replaced at this moment
                continue
    return round(max(times), 3) if times else None


def main(arguments: list[str]) -> int:
    """Record one event for a job script: RUN_FOLDER EVENT KEY=VALUE…; an empty value is left out."""
    if len(arguments) < 2 or not all("=" in fact for fact in arguments[2:]):
        sys.stderr.write("usage: python -m training.events RUN_FOLDER EVENT [KEY=VALUE]...\n")
        return RunError.exit_code
    facts = dict(fact.split("=", 1) for fact in arguments[2:])
    values = {key: int(text) if text.isdecimal() else text for key, text in facts.items() if text}
    record_event(Path(arguments[0]), arguments[1], **values)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
