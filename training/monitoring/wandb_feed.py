"""Weights & Biases, in a process of its own that reads metrics.jsonl: whatever happens to it, the run goes on.

`python -m training.monitoring.wandb_feed RUN_FOLDER offline|online PROJECT [--all]`. With --all it sends what there is
and ends, for a run that has ended: from a login node, say, when the nodes reach no network. Otherwise it follows the
file until its standard input ends, which it does with the rank that started it.
"""

import json
import logging
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

if TYPE_CHECKING:
    from wandb import Run

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
LOG = "logs/wandb.log"
POLL_SECONDS = 2.0
# A run that is over waits so long for what is still on its way to the server.
FINISH_SECONDS = 60.0
INIT_SECONDS = 60.0
# Signals mean the run, which saves, logs and then ends this process itself.
RUN_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class WandbFeed:
    """The process beside a run, as seen from the run."""

    def __init__(self, run_folder: Path, mode: Literal["offline", "online"], project: str) -> None:
        self._log = run_folder / LOG
        self._log.parent.mkdir(exist_ok=True)
        self._told = False
        command = [sys.executable, "-m", __name__, str(run_folder), mode, project]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)

    def look(self) -> None:
        """Say so, once, if the process has ended before the run."""
        code = self._process.poll()
        if code is not None and not self._told:
            self._tell(f"has ended with code {code}: {self._last_words()}")

    def close(self) -> None:
        """Let it send the rest and end; it is ended if that takes too long."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(FINISH_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._tell(f"was not ready {FINISH_SECONDS:.0f} s after the run, and was ended")
        if self._process.returncode:
            self.look()

    def _tell(self, what: str) -> None:
        if not self._told:
            logger.warning("log.wandb: Weights & Biases %s; the run goes on without; see %s", what, self._log)
        self._told = True

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


class Tail:
    """The new lines of metrics.jsonl, also when it was replaced by one whose last lines are other ones."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = self._offset = 0

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the whole lines that were not there the last time; all of them if the file was replaced."""
        try:
            with self._path.open("rb") as file:
                inode = self._path.stat().st_ino
                if inode != self._inode:
                    self._inode, self._offset = inode, 0
                file.seek(self._offset)
                whole = file.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return
        if whole:
            self._offset += len(whole) + 1
            yield from map(json.loads, whole.splitlines())


def send(board: "Run", rows: Iterator[dict[str, Any]], last_step: int) -> int:
    """Log lines from `last_step` on, each at its step; return the last step that was logged.

    Weights & Biases takes steps in order alone. What is sent of a step that was sent already is added to it: steps that
    are done again after a resume have the same numbers.
    """
    for row in rows:
        step = row.pop("step")
        if step >= last_step:
            board.log({key: value for key, value in row.items() if value is not None}, step=step)
            last_step = step
    return last_step


def open_board(run_folder: Path, mode: Literal["offline", "online"], project: str) -> "Run":
    """Start, or go on with, the run of this folder at Weights & Biases."""
    import wandb

    config = yaml.safe_load((run_folder / "config.yaml").read_text(encoding="utf-8"))
    own_id = run_folder / "wandb" / "run_id"
    if not own_id.exists():
        own_id.parent.mkdir(exist_ok=True)
        own_id.write_text(uuid.uuid4().hex[:16], encoding="utf-8")
    return wandb.init(
        project=project,
        name=config["name"],
        id=own_id.read_text(encoding="utf-8").strip(),
        resume="allow",
        mode=mode,
        dir=run_folder,
        config=config,
        settings=wandb.Settings(
            init_timeout=INIT_SECONDS, console="off", disable_git=True, save_code=False, silent=True
        ),
    )


def main(arguments: list[str]) -> int:
    """Feed the metrics of a run folder to Weights & Biases; return 0, or 1 with the reason on the last line."""
    for number in RUN_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    folder, project = Path(arguments[0]).absolute(), arguments[2]
    mode: Literal["offline", "online"] = "online" if arguments[1] == "online" else "offline"
    try:
        import wandb
    except ImportError as error:
        print(f"{error}; install it with: pip install 'shardtune[wandb]'")
        return 1
    try:
        board = open_board(folder, mode, project)
        tail, last_step, ended = Tail(folder / METRICS), 0, "--all" in arguments
        last_step = board.starting_step - 1 if board.resumed else 0
        while True:
            last_step = send(board, tail.read(), last_step)
            if ended:
                break
            ended = bool(select.select([sys.stdin], [], [], POLL_SECONDS)[0])
        board.finish()
    except (wandb.Error, OSError) as error:
        print(" ".join(f"{type(error).__name__}: {error}".split()))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
