"""Which rank of a failed run says why: of many logs that end badly, the one with the reason.

One rank fails, and every other is cut off in a collective and says so, at greater length and sometimes sooner.
"""

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TAIL_LINES = 30
# A log may hold hours of warnings; how a process ended is at its end.
TAIL_BYTES = 1 << 18
RANK_LOG = re.compile(r"rank-?(\d+)\.log$")
PREFIX = re.compile(r"^\[rank\d+\]: ?", re.MULTILINE)
TRACEBACK = re.compile(r"^(\[rank\d+\]: ?)?Traceback ", re.MULTILINE)
CUT_OFF = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|Socket closed|remote process exited|ncclRemoteError"
)


def was_cut_off(error: BaseException) -> bool:
    """Return whether a rank's error says only that another rank is gone."""
    return CUT_OFF.search(str(error)) is not None


ORPHANED = "the process that started this rank has ended"


@dataclass(frozen=True, slots=True)
class LastWords:
    """The end of the log that knows most. rank: None for the launcher's; silent: a rank that ended without a word,
    where all that others say is that they were cut off."""

    rank: int | None
    path: Path
    text: str
    silent: int | None

    @property
    def lines(self) -> list[str]:
        """Return the last lines of the log."""
        return self.text.splitlines()[-TAIL_LINES:]

    @property
    def error(self) -> str | None:
        """Return the error in one line, `ValueError: …`; None if there is no traceback, or it is of a cut-off."""
        found = [error for error in _errors(self.text) if not CUT_OFF.search(error)]
        return found[-1] if found else None


def newest_logs(folder: Path) -> dict[int, Path]:
    """Return the newest log of each rank, by the names that `shardtune train` and the job script give them."""
    found: dict[int, Path] = {}
    for path in folder.glob("*rank*.log"):
        match = RANK_LOG.search(path.name)
        if match is None or path.is_symlink():
            continue
        rank = int(match[1])
        if rank not in found or path.stat().st_mtime > found[rank].stat().st_mtime:
            found[rank] = path
    return dict(sorted(found.items()))


def find_last_words(logs: Mapping[int, Path], launcher_log: Path) -> LastWords:
    """Return the end of the log that says why a run failed; that of the launcher where no rank has a log."""
    texts = {rank: read_tail(path) for rank, path in sorted(logs.items())}
    broken = [rank for rank, text in texts.items() if TRACEBACK.search(text)]
    # What a rank says that was cut off by another's end is no reason; of several reasons the first one is it.
    reasons = [rank for rank in broken if not CUT_OFF.search(texts[rank])] or broken or list(texts)
    rank = min(reasons, key=lambda rank: logs[rank].stat().st_mtime, default=None)
    # A rank that found itself without a launcher has ended by itself: it was not killed.
    quiet = [rank for rank in texts if rank not in broken and ORPHANED not in texts[rank]]
    all_cut_off = bool(broken) and all(CUT_OFF.search(texts[rank]) for rank in broken)
    silent = quiet[0] if quiet and all_cut_off else None
    if rank is None:
        return LastWords(None, launcher_log, read_tail(launcher_log), silent)
    return LastWords(rank, logs[rank], texts[rank], silent)


def read_tail(path: Path) -> str:
    """Return the end of a log, from a whole line on; empty if there is no such file."""
    try:
        with path.open("rb") as file:
            start = max(0, path.stat().st_size - TAIL_BYTES)
            file.seek(start)
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return text.partition("\n")[2] if start else text


def _errors(text: str) -> list[str]:
    """Return the last line of each traceback: the error's name and what it says."""
    errors = []
    for part in re.split(r"^Traceback .*\n", PREFIX.sub("", text), flags=re.MULTILINE)[1:]:
        line = next((line for line in part.splitlines() if line and not line[0].isspace()), None)
        if line is not None:
            errors.append(line)
    return errors


def describe_code(code: int) -> str:
    """Return what the launcher's exit code says; it passes a rank's -9 on as 247, and srun as 137."""
    number = killed_by(code)
    if number is None:
        return f"exit code {code}"
    who = "the launcher" if code < 0 else "a rank"
    hint = ", as the kernel does when memory runs out" if number == signal.SIGKILL else ""
    return f"{who} was ended by {signal.Signals(number).name}{hint}"


def killed_by(code: int) -> int | None:
    """Return the number of the signal that an exit code tells of: -9, 247 (256 - 9) and 137 (128 + 9) are 9."""
    number = -code if code < 0 else 256 - code if code > 256 - 65 else code - 128
    return number if number in {int(known) for known in signal.Signals} else None
