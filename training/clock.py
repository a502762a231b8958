"""Where the time of a step goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from deepspeed.accelerator import get_accelerator


class Clock:
    """Adds up the seconds of the parts of one step; the whole runs from construction to `metrics`."""

    def __init__(self) -> None:
        self._parts: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `name`; waits for the device, whose kernels run on by themselves."""
        start = time.perf_counter()
        yield
        get_accelerator().synchronize()
        self._parts[name] = self._parts.get(name, 0.0) + time.perf_counter() - start

    def seconds(self) -> float:
        """Return the seconds since the step began."""
        return time.perf_counter() - self._start

    def metrics(self) -> dict[str, float]:
        """Return `time/step_seconds` and `time/NAME_seconds` of each part."""
        parts = {f"time/{name}_seconds": seconds for name, seconds in self._parts.items()}
        return {"time/step_seconds": self.seconds(), **parts}
