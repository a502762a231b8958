"""The files of a checkpoint, read without DeepSpeed and for any number of ranks.

ZeRO-3 cuts each parameter, flattened, into `world_size` runs of equal length, and each rank's file holds its runs. So
the slice that another number of ranks needs is a range, read from the few files that hold it.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError

from data_tools.errors import RunError
from training.best import Best
from training.monitoring.trend import Trend
from training.safetensors_file import CheckedFile

FORMAT_VERSION = 1
DONE = "DONE"  # holds the checksum of progress.json
MASTER = "master"  # name of the float32 weights beside the optimizer's own names (exp_avg, exp_avg_sq)

COUNTS = (
    *("step", "packs_consumed", "seed", "world_size", "optimizer_step"),
    *("skipped_steps", "skipped_in_a_row"),
)
WAY_OUT = "remove its folder to go on from the one before"


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run has done, as kept in `progress.json`; `packs_consumed` alone says where it stands in its data.

    shapes: the full shape of each trained parameter, in the order of the model. optimizer_states: the names of the
    optimizer's tensors for each parameter. versions: of the packages that wrote it, for people. skipped_steps: those
    whose loss or gradient was not finite; of these, the ones at the end, in a row. ledger: see ledger.py.
    base: the fingerprint of the weights that are not trained and so not kept here; empty if there are none.
    loss_scale: where a dynamic loss scale stands.
    settings: the run's, as it was when this was saved: config.yaml may be that of a later start by now.
    best: the best evaluation so far. trend: running figures of loss and gradient. owes_evaluation: see standing.py.
    """

    step: int
    packs_consumed: int
    shards_fingerprint: str
    seed: int
    world_size: int
    optimizer_step: int
    optimizer_states: tuple[str, ...]
    parameter_groups: tuple[dict[str, Any], ...]
    shapes: dict[str, tuple[int, ...]]
    versions: dict[str, str]
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    ledger: str = ""
    base: str = ""
    loss_scale: dict[str, float] = field(default_factory=dict)
    best: Best = field(default_factory=Best)
    trend: Trend = field(default_factory=Trend)
    owes_evaluation: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


def check_base(progress: Progress, base: str, *, where: Path) -> None:
    """Raise RunError if a checkpoint was trained beside other frozen weights than those at hand."""
    if progress.base != base:
        raise RunError(
            f"{where}: trained beside other weights than those in the model folder: got fingerprint {base[:12]}; "
            f"expected {progress.base[:12]}; set model to the folder that the run was started with"
        )


def partition(numel: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return the range of a flattened parameter that ZeRO-3 gives to a rank; empty for some with few elements."""
    chunk = -(-numel // world_size)
    return min(rank * chunk, numel), min((rank + 1) * chunk, numel)


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return checkpoints / f"step-{step:06d}"


def finished_checkpoints(checkpoints: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    if not checkpoints.is_dir():
        return []
    found = [path for path in checkpoints.iterdir() if re.fullmatch(r"step-\d+", path.name)]
    return sorted((path for path in found if (path / DONE).exists()), key=lambda path: int(path.name[5:]))


def best_checkpoint(checkpoints: Path) -> Path | None:
    """Return the checkpoint that the newest one names as the best; None if none is watched for, or none is there.

    One that could not be saved (`save.on_error: continue`) is not there: then what the one before names counts.
    """
    finished = finished_checkpoints(checkpoints)
    for folder in reversed(finished):
        best = read_progress(folder).best
        if not best.metric:
            return None
        named = checkpoint_folder(checkpoints, best.step)
        if best.value is not None and named in finished:
            return named
    return None


def rank_file(folder: Path, rank: int, world_size: int) -> Path:
    """Return the file that holds a rank's slices."""
    return folder / f"rank-{rank:05d}-of-{world_size:05d}.safetensors"


def progress_checksum(content: bytes) -> str:
    """Return what DONE says of progress.json's bytes."""
    return f"xxh3_64 {xxhash.xxh3_64_hexdigest(content)}"


def read_progress(folder: Path) -> Progress:
    """Return what a checkpoint's `progress.json` says. Raises RunError for one that is damaged or of another format."""
    try:
        content = (folder / "progress.json").read_bytes()
        expected = (folder / DONE).read_text(encoding="ascii") if (folder / DONE).exists() else ""
        if expected and expected != progress_checksum(content):  # DONE was empty once
            raise ValueError(f"got {progress_checksum(content)}; DONE has {expected}")
        kept = json.loads(content)
        version = kept.get("format_version")
        if version != FORMAT_VERSION:
            raise RunError(
                f"{folder}: checkpoint of another format: got version {version}; expected {FORMAT_VERSION}; use the "
                "version of shardtune that wrote it"
            )
        kept["shapes"] = {name: tuple(shape) for name, shape in kept["shapes"].items()}
        kept["best"] = Best(**kept.get("best", {}))
        kept["trend"] = Trend(**kept.get("trend", {}))
        for name in COUNTS:
            if type(kept.get(name, 0)) is not int:
                raise ValueError(f"{name} is {kept[name]!r}")
        return Progress(**kept)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{folder}: the checkpoint is damaged: progress.json: {type(error).__name__}: {error}; {WAY_OUT}"
        ) from None


@contextmanager
def _damage_in(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise RunError(f"{path}: the checkpoint is damaged: {error}; {WAY_OUT}") from None


class CheckpointReader:
    """A finished checkpoint; gives any range of any parameter, whatever the number of ranks that wrote it."""

    def __init__(self, folder: Path) -> None:
        if not (folder / DONE).exists():
            raise RunError(f"{folder}: not a finished checkpoint: it has no file {DONE}")
        self.folder = folder
        self.progress = read_progress(folder)

    @cached_property
    def _files(self) -> list[CheckedFile]:
        world_size = self.progress.world_size
        paths = [rank_file(self.folder, rank, world_size) for rank in range(world_size)]
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            raise RunError(
                f"{self.folder}: the checkpoint is damaged: missing {', '.join(missing)}; {WAY_OUT}"
            )
        files = []
        for path in paths:
            with _damage_in(path):
                files.append(CheckedFile(path))
        return files

    def _slice(self, rank: int, key: str) -> torch.Tensor:
        """Return what a rank's file holds of a tensor, whole: only so can its checksum be seen to be right."""
        with _damage_in(rank_file(self.folder, rank, self.progress.world_size)):
            return self._files[rank].read(key)

    def read(self, kind: str, name: str, start: int, stop: int) -> torch.Tensor:
        """Return elements [start, stop) of a flattened parameter's `kind` (master, exp_avg, …), float32.

        Raises RunError if the data are damaged.
        """
        numel = torch.Size(self.progress.shapes[name]).numel()
        pieces = []
        for rank in range(self.progress.world_size):
            first, last = partition(numel, rank, self.progress.world_size)
            begin, end = max(start, first), min(stop, last)
            if begin < end:
                pieces.append(self._slice(rank, f"{kind}|{name}")[begin - first : end - first])
        return torch.cat(pieces) if pieces else torch.zeros(0)

    def states(self, name: str) -> dict[str, torch.dtype]:
        """Return the optimizer's states of a parameter and their types; not all have all `optimizer_states`."""
        file = self._files[0]
        keys = {kind: f"{kind}|{name}" for kind in self.progress.optimizer_states}
        return {kind: file.dtype(key) for kind, key in keys.items() if key in file.names}

    def weight(self, name: str) -> torch.Tensor:
        """Return a whole parameter in its shape, float32."""
        shape = self.progress.shapes[name]
        return self.read(MASTER, name, 0, torch.Size(shape).numel()).reshape(shape)
