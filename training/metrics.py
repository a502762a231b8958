"""What a run measures: metrics.jsonl is the record, TensorBoard and the progress line are views of it.

Only rank 0 writes. After a resume each step stands once in either.
"""

import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.monitoring.dashboard import write_dashboard

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from training.config import RunConfig
    from training.distributed import World
    from training.monitoring.wandb_feed import WandbFeed

logger = logging.getLogger(__name__)

FILE_NAME = "metrics.jsonl"


class MetricsLog:
    """The log of one run, from `resume_step` on (0 for a new run)."""

    def __init__(
        self,
        run_folder: Path,
        *,
        resume_step: int,
        tensorboard: bool,
        world: "World | None" = None,
        num_steps: int | None = None,
        feed: "WandbFeed | None" = None,
    ) -> None:
        """Open the log; `feed` is a reader of the file beside the run, which ends with the log."""
        self._feed = feed
        self._progress = Progress(num_steps=num_steps)
        self._writes = world is None or world.is_main
        self._board = _open_board(run_folder, resume_step) if self._writes and tensorboard else None
        if self._writes:
            path = run_folder / FILE_NAME
            cut_after(path, resume_step)
            self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step, `group/name` to value; a step is written once."""
        if not self._writes:
            return
        self._file.write(_as_line(step, metrics))
        self._file.flush()
        self._draw(step, metrics)
        if self._feed is not None:
            self._feed.look()
        logger.info("%s", self._progress.line(step, metrics))

    def _draw(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._board is not None:
            for key, value in metrics.items():
                self._board.add_scalar(key, value, step)

    def amend(self, step: int, added: Mapping[str, float]) -> None:
        """Add metrics to the line of `step`, which is the last one there."""
        if not self._writes:
            return
        self._file.close()
        path = Path(self._file.name)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        before = json.loads(lines.pop()) if lines and _step_of(lines[-1]) == step else {}
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text("".join([*lines, _as_line(step, {**before, **added})]), encoding="utf-8")
        partial.replace(path)
        self._file = path.open("a", encoding="utf-8")
        self._draw(step, added)

    def text(self, tag: str, text: str, *, step: int = 0) -> None:
        """Show a text (markdown) in TensorBoard."""
        if self._board is not None:
            self._board.add_text(tag, text, step)

    def describe(self, config: "RunConfig", splits: Sequence[str]) -> None:
        """Lay out TensorBoard's dashboard for a run that is evaluated on `splits`."""
        if self._board is not None:
            write_dashboard(self._board, config, splits)

    def close(self) -> None:
        """Write out what is still buffered."""
        if self._writes:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        if self._board is not None:
            self._board.close()
        if self._feed is not None:
            self._feed.close()


def _as_line(step: int, metrics: Mapping[str, float | None]) -> str:
    """Return the line of a step. JSON has no infinity: a value that is not finite is written as null."""
    finite = {key: v if v is not None and math.isfinite(v) else None for key, v in metrics.items()}
    return json.dumps({"step": step, **finite}) + "\n"


def _open_board(run_folder: Path, resume_step: int) -> "SummaryWriter":
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run_folder / "tensorboard"), purge_step=resume_step + 1)


def cut_after(path: Path, step: int) -> None:
    """Remove the lines of steps after `step` from a metrics file, and a last line that was torn by a kill.

    The file is replaced whole, so that a kill in the middle loses nothing.
    """
    if not path.exists():
        return
    partial = path.with_name(f"{path.name}.partial")
    with path.open(encoding="utf-8") as lines, partial.open("w", encoding="utf-8") as kept:
        kept.writelines(line for line in lines if _step_of(line) <= step)
        kept.flush()
        os.fsync(kept.fileno())
    partial.replace(path)


def read_metrics(run_folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl, without one that is torn; none where there is no such file."""
    if not (run_folder / FILE_NAME).exists():
        return []
    with (run_folder / FILE_NAME).open(encoding="utf-8", errors="replace") as lines:
        rows = map(_parse, lines)
        return [row for row in rows if row is not None]


def last_logged_step(run_folder: Path) -> int:
    """Return the last step in a run's metrics.jsonl; 0 if there is none."""
    return max((row["step"] for row in read_metrics(run_folder)), default=0)


def _step_of(line: str) -> float:
    """Return the step of a line; infinity for a torn one."""
    row = _parse(line)
    return math.inf if row is None else row["step"]


def _parse(line: str) -> dict[str, Any] | None:
    """Return the metrics of a step; None for a line that is torn or damaged."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    whole = line.endswith("\n") and isinstance(row, dict) and isinstance(row.get("step"), int)
    if not whole or any(not isinstance(value, int | float | None) for value in row.values()):
        return None
    return row  # type: ignore[no-any-return]


SHOWN = (
    ("train/loss", "loss", "{:.4g}"),
    ("train/lr", "lr", "{:.2e}"),
    ("train/grad_norm", "grad", "{:.3g}"),
    ("validation/loss", "validation", "{:.4g}"),
)


def progress_line(
    step: int, num_steps: int | None, metrics: Mapping[str, float], seconds_left: float | None
) -> str:
    """Return a step for the terminal: `step 12/300  loss 2.31  lr 1.0e-05  grad 0.80  1.2k tok/s  left 3 min`."""
    parts = [f"step {step}/{num_steps}" if num_steps else f"step {step}"]
    parts += [f"{label} {form.format(metrics[key])}" for key, label, form in SHOWN if key in metrics]
    if metrics.get("health/skipped_steps"):
        parts.append(f"skipped {metrics['health/skipped_steps']:.0f}")
    if "speed/tokens_per_second" in metrics:
        parts.append(f"{short(metrics['speed/tokens_per_second'])} tok/s")
    if seconds_left is not None:
        parts.append(f"left {duration(seconds_left)}")
    return "  ".join(parts)


class Progress:
    """The progress lines of a process that trains: it knows how long its steps take."""

    def __init__(self, *, num_steps: int | None) -> None:
        self._num_steps = num_steps
        self._first: tuple[int, float] | None = None

    def line(self, step: int, metrics: Mapping[str, float]) -> str:
        """Return the progress line of a step."""
        return progress_line(step, self._num_steps, metrics, self._seconds_left(step))

    def _seconds_left(self, step: int) -> float | None:
        """Return the time to the end at the mean pace since the first step seen, which itself is not counted:
        the first step of a process compiles, allocates and reads what the others find ready."""
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        first_step, since = self._first
        if self._num_steps is None or step == first_step or step >= self._num_steps:
            return None
        return (now - since) / (step - first_step) * (self._num_steps - step)


def short(value: float) -> str:
    """Return a number with three digits and a suffix: 1234 is 1.23k."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Return a time for people: 5 s, 5 min, 3.0 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
