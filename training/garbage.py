"""Python's garbage collector, held while a run trains.

It would start at moments of its own, at another one on each rank, and walk over the millions of objects that torch and
DeepSpeed have made; all the other ranks wait for that one in the next collective.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

COLLECT_EVERY_STEPS = 100


@contextmanager
def held_collector() -> Iterator[None]:
    """Keep the collector from starting by itself; what is there already is never looked at again."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def collect_at(step: int) -> None:
    """Collect what steps have left behind, at the same steps on all ranks."""
    if step % COLLECT_EVERY_STEPS == 0:
        gc.collect()
