"""One writer at a time in an output folder: the lock goes with the process that holds it, however that ends."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_tools.errors import ShardtuneError

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"


@contextmanager
def lock_output(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder's lock; where another process holds it, wait for it, or raise ShardtuneError at once.

    `folder` is one of our own, such as OUTPUT/parts. A file system without locks is told of and used without.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_NAME).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ShardtuneError(
                f"{folder.parent}: another pack is writing this folder; do: wait for it, or name another output"
            ) from None
        except OSError as error:
            logger.warning(
                "%s: cannot be locked: %s; no two processes may write it at once", folder, error.strerror
            )
        yield
