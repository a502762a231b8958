"""A progress bar on the terminal's stderr; nothing where stderr is a file."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

Item = TypeVar("Item")


def track(items: Iterable[Item], *, total: int, what: str) -> Iterator[Item]:
    """Yield the items and show how many of `total` are done."""
    if not sys.stderr.isatty():
        yield from items
        return
    yield from rich_track(items, total=total, description=what, console=Console(stderr=True), transient=True)
