"""Whether a folder can hold so many bytes: free space and quota, by asking the file system for the space itself."""

import ctypes
import errno
import os
import shutil
import tempfile
from pathlib import Path

import psutil

KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE: space is set aside, and the file stays empty
# Kept in memory: setting space aside would fill it.
IN_MEMORY = ("tmpfs", "ramfs")
NO_QUESTION = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EFBIG)


def nearest_folder(path: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def what_hinders(folder: Path, num_bytes: int) -> str | None:
    """Return why so many bytes cannot be written below `folder`, which need not exist; None if they can.

    Space is set aside for a moment, in a file without a name: that fails where a quota or the disk is too small, also
    where the free space that is reported is that of all users together.
    """
    there = nearest_folder(folder)
    free = shutil.disk_usage(there).free
    if free < num_bytes:
        return f"{there}: got {gib(free)} free; expected {gib(num_bytes)}"
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            if _file_system(there) not in IN_MEMORY:
                _set_aside(file.fileno(), num_bytes)
    except OSError as error:
        if error.errno in NO_QUESTION:
            return None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"{there}: {gib(num_bytes)} are not to be had: {error.strerror}; {gib(free)} are free for all users"
        return f"{there}: cannot be written to: {error.strerror}"
    return None


def _set_aside(file: int, num_bytes: int) -> None:
    # Not os.posix_fallocate: where the file system has no such thing, it writes every block.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(file, KEEP_SIZE, ctypes.c_longlong(0), ctypes.c_longlong(max(1, num_bytes))):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _file_system(folder: Path) -> str:
    """Return the type of the file system that a folder lies on."""
    resolved = folder.resolve()
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    return next((mounts[path] for path in (resolved, *resolved.parents) if path in mounts), "")


def gib(num_bytes: float) -> str:
    """Return a number of bytes for people."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**28 else f"{num_bytes / 2**20:.1f} MiB"
