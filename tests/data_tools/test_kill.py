"""`tokenize` and `pack` killed at random moments, any of their processes: started again, the same bytes come out."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from data_tools.verify import verify
from tests.data_tools.small_data import alpaca_rows, default_settings, write_corpus, write_settings

ROOT = Path(__file__).resolve().parents[2]


def start(command: str, data: Path, *overrides: str) -> "subprocess.Popen[bytes]":
    line = [sys.executable, "-m", "data_tools.cli", command, str(data), *overrides, "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_one(running: "subprocess.Popen[bytes]", draw: random.Random) -> bool:
    """Kill -9 the program or one of the processes below it; return whether there was one left to kill."""
    try:
        main = psutil.Process(running.pid)
        chosen = draw.choice([main, *main.children(recursive=True)])
        chosen.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return running.poll() is None or running.returncode != 0


def wait_for_orphans(output: Path) -> None:
    """Wait until no process of a killed run works on the output any more: they end with what started them."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        owners = {
            path.name.removesuffix(".partial").rpartition("-")[2] for path in output.glob("parts/*.partial")
        }
        if not any(owner.isdecimal() and psutil.pid_exists(int(owner)) for owner in owners):
            return
        time.sleep(0.05)
    raise AssertionError(f"a worker outlived its program: {owners}")


def sealed_bytes(output: Path) -> dict[str, bytes]:
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and "parts" not in path.relative_to(output).parts
    }


def run_with_kills(folder: Path, *, count: int, num_kills: int, seed: int) -> None:
    data = write_corpus(folder, count=60)
    lines = "".join(json.dumps(row) + "\n" for row in alpaca_rows(count))
    (folder / "raw" / "many.jsonl").write_text(lines)
    sources = [*default_settings()["sources"][::2], {"path": "raw/many.jsonl", "format": "alpaca"}]
    data = write_settings(folder, sources=sources)
    begin = time.monotonic()
    assert start("pack", data, f"output={folder / 'unbroken'}").wait() == 0
    seconds = time.monotonic() - begin
    draw = random.Random(seed)
    output = folder / "broken"
    killed = 0
    for number in range(num_kills):
        running = start(("tokenize", "pack")[number % 2], data, f"output={output}")
        # The moments were drawn for a machine as busy as it was then: where they come too late, earlier ones are drawn.
        time.sleep(draw.uniform(0.2, 1.0) * seconds / 2 ** (number - killed))
        killed += kill_one(running, draw)
        running.wait(60)
    while not killed:
        running = start("pack", data, f"output={output}", "seed=99")
        time.sleep(0.3)
        killed += kill_one(running, draw)
        running.wait(60)
    wait_for_orphans(output)
    assert killed > 0
    assert start("pack", data, f"output={output}").wait() == 0
    assert sealed_bytes(output) == sealed_bytes(folder / "unbroken")
    assert not list(output.rglob("*.partial"))
    assert verify(output).ok


def test_killed_at_random_moments(tmp_path: Path) -> None:
    run_with_kills(tmp_path, count=4_000, num_kills=2, seed=os.getpid())


@pytest.mark.slow
def test_killed_many_times(tmp_path: Path) -> None:
    for seed in range(5):
        run_with_kills(tmp_path / str(seed), count=30_000, num_kills=12, seed=seed)


def test_another_weight_split_or_length_tokenizes_nothing(tmp_path: Path) -> None:
    data = write_corpus(tmp_path, count=60)
    assert start("pack", data).wait() == 0
    parts = tmp_path / "shards" / "parts"
    before = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.part")}
    assert len(before) == 5
    changes = (
        "seq_len=128",
        "sources.1.weight=2",
        "splits.test=0.3",
        "seed=3",
        "overlong=drop",
        "dedup=none",
    )
    assert start("pack", data, *changes).wait() == 0
    assert {path.name: path.stat().st_mtime_ns for path in parts.glob("*.part")} == before
