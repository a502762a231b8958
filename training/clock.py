"""Where the time of a step goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deepspeed.accelerator import get_accelerator

from training.heartbeat import Place


class Clock:
    """Adds up the seconds of the parts of one step; the whole runs from construction to `metrics`.

    On a GPU the host runs ahead of the kernels: there a part is measured by marks in the stream of work, which are
    read when all is over, so that no part makes the host wait.
    """

    def __init__(self, place: Place | None = None) -> None:
        """Note the parts as they begin in `place`, for those who watch the run."""
        self._place = place or Place()
        self._seconds: dict[str, float] = {}
        self._marks: list[tuple[str, Any, Any]] = []
        self._make_mark = get_accelerator().Event  # None where all work is done when the call returns
        self._start = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `name`."""
        self._place.at(name)
        if self._make_mark is None:
            start = time.perf_counter()
            yield
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start
            return
        begin, end = (self._make_mark(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._marks.append((name, begin, end))

    def seconds(self) -> float:
        """Return the seconds since the step began."""
        return time.perf_counter() - self._start

    def metrics(self) -> dict[str, float]:
        """Return `time/step_seconds` and `time/NAME_seconds` of each part; waits for the device."""
        get_accelerator().synchronize()
        for name, begin, end in self._marks:
            self._seconds[name] = self._seconds.get(name, 0.0) + begin.elapsed_time(end) / 1000
        self._marks.clear()
        parts = {f"time/{name}_seconds": seconds for name, seconds in self._seconds.items()}
        return {"time/step_seconds": self.seconds(), **parts}
