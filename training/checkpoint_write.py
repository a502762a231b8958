"""How a checkpoint comes to lie whole in its folder, by the names of files alone and without a collective.

    step-000100.partial/rank-00000-of-00002.safetensors.partial   each rank writes its state and makes it durable,
    step-000100.partial/rank-00000-of-00002.safetensors           then renames it: this rank has done its part
    step-000100.partial/progress.json                             by rank 0, when the files of all ranks are there
    step-000100/                                                  renamed
    step-000100/DONE                                              from here on the checkpoint counts

A process that is killed at any point leaves a folder without DONE behind, which the next start removes.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from training.checkpoint_files import (
    DONE,
    Progress,
    best_checkpoint,
    finished_checkpoints,
    progress_checksum,
    rank_file,
)
from training.safetensors_file import SafetensorsWriter, Source, TensorSpec

PARTIAL = ".partial"
POLL_SECONDS = 0.05
# How long the file of another node may take to be seen here after it was written.
VISIBLE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Slice:
    """What a rank saves of one parameter, and where it is taken from when its turn comes."""

    name: str
    spec: TensorSpec
    source: Source


@dataclass(frozen=True, slots=True)
class Signals:
    """What is told about one save between the thread that writes it and the one that trains.

    read: the state has been read, and may change. all_written: every rank has written its file. abandoned: the save is
    to be given up.
    """

    read: threading.Event = field(default_factory=threading.Event)
    all_written: threading.Event = field(default_factory=threading.Event)
    abandoned: threading.Event = field(default_factory=threading.Event)


class AbandonedError(Exception):
    """The save was given up, because another rank could not write its part, or because the run ends."""


def partial_folder(final: Path) -> Path:
    """Return where a checkpoint lies until it is whole."""
    return final.with_name(final.name + PARTIAL)


def write_part(final: Path, slices: Sequence[Slice], rank: int, world_size: int, signals: Signals) -> None:
    """Write a rank's file. Raises OSError, and AbandonedError if the save is given up meanwhile."""
    try:
        path = rank_file(partial_folder(final), rank, world_size)
        path.parent.mkdir(parents=True, exist_ok=True)
        growing = path.with_name(path.name + PARTIAL)
        with SafetensorsWriter(growing, {piece.name: piece.spec for piece in slices}) as file:
            for piece in slices:
                if signals.abandoned.is_set():
                    raise AbandonedError
                file.write(piece.name, piece.source)
            signals.read.set()  # what follows is the disk's work alone
        growing.rename(path)
    finally:
        signals.read.set()


def publish(final: Path, progress: Progress, signals: Signals) -> None:
    """Wait for the files of all ranks, and make the checkpoint one that counts; for rank 0.

    Raises OSError, and AbandonedError if the save is given up meanwhile.
    """
    partial = partial_folder(final)
    _wait_for([rank_file(partial, rank, progress.world_size) for rank in range(progress.world_size)], signals)
    content = f"{json.dumps(asdict(progress), indent=1)}\n".encode()
    (partial / "progress.json").write_bytes(content)
    for path in (partial / "progress.json", partial):
        _fsync(path)
    if final.exists():  # of a run that was killed between the rename and DONE
        shutil.rmtree(final)
    partial.rename(final)
    (final / DONE).write_text(progress_checksum(content), encoding="ascii")
    for path in (final / DONE, final, final.parent):
        _fsync(path)


def _wait_for(paths: Sequence[Path], signals: Signals) -> None:
    deadline: float | None = None
    while missing := [path.name for path in paths if not path.exists()]:
        if signals.abandoned.wait(POLL_SECONDS):
            raise AbandonedError
        if signals.all_written.is_set():
            deadline = deadline or time.monotonic() + VISIBLE_SECONDS
            if time.monotonic() > deadline:
                raise OSError(
                    f"{', '.join(missing)} was written by its rank and is not seen by rank 0: the run's folder must "
                    "lie on a file system that all nodes share"
                )


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prune(checkpoints: Path, *, keep: int, keep_every: int | None) -> None:
    """Delete all finished checkpoints but the newest `keep`, the best one, and each whose step `keep_every` divides."""
    best = best_checkpoint(checkpoints)
    for old in finished_checkpoints(checkpoints)[:-keep]:
        stays = keep_every is not None and int(old.name.removeprefix("step-")) % keep_every == 0
        if old != best and not stays:
            (old / DONE).unlink()  # first, so that what is left of it after a kill does not count
            shutil.rmtree(old)


def clear_unfinished(checkpoints: Path) -> None:
    """Remove what killed runs left of checkpoints that do not count. No rank may be saving."""
    finished = set(finished_checkpoints(checkpoints))
    for path in checkpoints.glob("step-*"):
        if path not in finished and path.is_dir() and not path.is_symlink():  # which is none of ours
            shutil.rmtree(path)


def remove_unfinished(final: Path) -> None:
    """Remove what there is of a checkpoint that could not be saved, as far as the system lets us."""
    shutil.rmtree(partial_folder(final), ignore_errors=True)
    if not (final / DONE).exists():
        shutil.rmtree(final, ignore_errors=True)
