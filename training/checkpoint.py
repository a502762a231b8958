"""Our own checkpoint: without pickle, atomic, and readable by any number of ranks.

`step-000100/` holds for each rank a safetensors file with its slices of master weights and optimizer states, then
`progress.json`, then `DONE`. ZeRO-3 cuts each parameter, flattened, into `world_size` runs of equal length; so the
slice that another number of ranks needs is a range, read from the few files that hold it.

Uses private names of DeepSpeed 0.19 (`fp16_groups`, `fp32_partitioned_groups_flat`, the swap calls), because its own
checkpoint loses Adam's moments with NVMe offload. The tests save, resume and compare for each kind of offload.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import deepspeed
import torch
from safetensors import safe_open

from data_tools.errors import RunError
from training.distributed import World, all_max, barrier
from training.model import PackedCausalLM
from training.safetensors_file import SafetensorsWriter, TensorSpec

FORMAT_VERSION = 1
DONE = "DONE"
MASTER = "master"  # name of the float32 weights beside the optimizer's own names (exp_avg, exp_avg_sq)


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run has done, as kept in `progress.json`; `packs_consumed` alone says where it stands in its data.

    shapes: the full shape of each parameter, in the order of the model. optimizer_states: the names of the
    optimizer's tensors for each parameter. versions: of the packages that wrote it, for people.
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
    format_version: int = FORMAT_VERSION


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


def save_checkpoint(
    engine: deepspeed.DeepSpeedEngine, checkpoints: Path, progress: Progress, world: World, *, keep: int
) -> Path:
    """Write a checkpoint with all ranks, publish it, and delete all but the newest `keep`.

    Raises RunError on every rank if any of them could not write; the earlier checkpoints are untouched then.
    """
    final = checkpoint_folder(checkpoints, progress.step)
    partial = final.with_suffix(".partial")
    problem = ""
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with SafetensorsWriter(
            _rank_file(partial, world.rank, world.size), _slice_specs(engine, world)
        ) as file:
            for name, tensor in _live_slices(engine, world):
                file.write(name, tensor)
    except OSError as error:
        problem = str(error)
    if all_max(bool(problem)):
        if world.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        said = problem or "another rank could not write its part"
        raise RunError(
            f"{final}: the checkpoint could not be saved: {said}; earlier checkpoints are untouched"
        )
    if world.rank == 0:
        _publish(partial, final, progress)
        for old in finished_checkpoints(checkpoints)[:-keep]:
            (old / DONE).unlink()
            shutil.rmtree(old)
    barrier()
    return final


def _publish(partial: Path, final: Path, progress: Progress) -> None:
    (partial / "progress.json").write_text(json.dumps(asdict(progress), indent=1) + "\n")
    for path in (partial / "progress.json", partial):
        _fsync(path)
    shutil.rmtree(final, ignore_errors=True)  # of a run killed between the rename and DONE
    partial.rename(final)
    (final / DONE).touch()
    for path in (final / DONE, final, final.parent):
        _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rank_file(folder: Path, rank: int, world_size: int) -> Path:
    return folder / f"rank-{rank:05d}-of-{world_size:05d}.safetensors"


def describe(engine: deepspeed.DeepSpeedEngine) -> dict[str, Any]:
    """Return the fields of `Progress` that the engine knows."""
    optimizer = engine.optimizer
    states = [optimizer.optimizer.state.get(master, {}) for master in optimizer.fp32_partitioned_groups_flat]
    steps = {int(state["step"]) for state in states if "step" in state}
    assert len(steps) == 1, f"the optimizer's step differs between its groups: {steps}"
    return {
        "optimizer_step": steps.pop(),
        "optimizer_states": _state_names(states[0]),
        "parameter_groups": tuple(
            {key: group[key] for key in ("lr", "betas", "eps", "weight_decay")}
            for group in optimizer.param_groups
        ),
        "shapes": {name: tuple(parameter.ds_shape) for name, parameter in _parameters(engine)},
        "versions": {"deepspeed": deepspeed.__version__, "torch": torch.__version__},
    }


def _parameters(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[str, Any]]:
    """Yield the model's parameters under their names in a Hugging Face folder; tied ones once."""
    for name, parameter in engine.module.named_parameters():
        yield name.removeprefix(PackedCausalLM.PREFIX), parameter


def _state_names(state: dict[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(key for key, value in state.items() if torch.is_tensor(value) and key != "step"))


def _groups(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[int, list[tuple[str, Any, int]]]]:
    """Yield each sub-group's number and its parameters as (name, parameter, offset in the flat buffers)."""
    names = {id(parameter): name for name, parameter in _parameters(engine)}
    for index, parameters in enumerate(engine.optimizer.fp16_groups):
        members, offset = [], 0
        for parameter in parameters:
            members.append((names[id(parameter)], parameter, offset))
            offset += parameter.partition_numel()
        yield index, members


def _slice_specs(engine: deepspeed.DeepSpeedEngine, world: World) -> dict[str, TensorSpec]:
    specs = {}
    states = _state_names(engine.optimizer.optimizer.state[engine.optimizer.fp32_partitioned_groups_flat[0]])
    for _, members in _groups(engine):
        for name, parameter, _ in members:
            start, stop = partition(parameter.ds_numel, world.rank, world.size)
            for kind in (MASTER, *states):
                specs[f"{kind}|{name}"] = TensorSpec(torch.float32, (stop - start,))
    return specs


def _live_slices(engine: deepspeed.DeepSpeedEngine, world: World) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield this rank's slices, in the order of `_slice_specs`; with NVMe offload one sub-group at a time."""
    optimizer = engine.optimizer
    for index, members in _groups(engine):
        swapped = optimizer._swappable_optimizer_subgroup(index)
        if swapped:
            optimizer._optimizer_states_and_gradient_swap_in(index)
        master = optimizer.fp32_partitioned_groups_flat[index]
        state = optimizer.optimizer.state[master]
        for name, parameter, offset in members:
            start, stop = partition(parameter.ds_numel, world.rank, world.size)
            for kind, flat in ((MASTER, master), *((key, state[key]) for key in _state_names(state))):
                yield f"{kind}|{name}", flat.data.narrow(0, offset, stop - start)
        if swapped:
            optimizer._release_swap_buffers(index)


class CheckpointReader:
    """A finished checkpoint; gives any range of any parameter, whatever the number of ranks that wrote it."""

    def __init__(self, folder: Path) -> None:
        if not (folder / DONE).exists():
            raise RunError(f"{folder}: not a finished checkpoint: it has no file {DONE}")
        self.folder = folder
        fields = json.loads((folder / "progress.json").read_text())
        if fields.get("format_version") != FORMAT_VERSION:
            raise RunError(
                f"{folder}: checkpoint of another format: got version {fields.get('format_version')}; "
                f"expected {FORMAT_VERSION}; use the version of shardtune that wrote it"
            )
        fields["shapes"] = {name: tuple(shape) for name, shape in fields["shapes"].items()}
        self.progress = Progress(**fields)

    @cached_property
    def _files(self) -> list[Any]:
        world_size = self.progress.world_size
        paths = [_rank_file(self.folder, rank, world_size) for rank in range(world_size)]
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            raise RunError(f"{self.folder}: the checkpoint is not whole: missing {', '.join(missing)}")
        return [safe_open(path, framework="pt") for path in paths]

    def read(self, kind: str, name: str, start: int, stop: int) -> torch.Tensor:
        """Return elements [start, stop) of a flattened parameter's `kind` (master, exp_avg, …), float32."""
        numel = torch.Size(self.progress.shapes[name]).numel()
        pieces = []
        for rank, file in enumerate(self._files):
            first, last = partition(numel, rank, self.progress.world_size)
            begin, end = max(start, first), min(stop, last)
            if begin < end:
                pieces.append(file.get_slice(f"{kind}|{name}")[begin - first : end - first])
        return torch.cat(pieces) if pieces else torch.zeros(0)

    def weight(self, name: str) -> torch.Tensor:
        """Return a whole parameter in its shape, float32."""
        shape = self.progress.shapes[name]
        return self.read(MASTER, name, 0, torch.Size(shape).numel()).reshape(shape)


def load_checkpoint(engine: deepspeed.DeepSpeedEngine, reader: CheckpointReader, world: World) -> None:
    """Put a checkpoint's weights and optimizer states into the engine, each rank its own slices."""
    progress = reader.progress
    shapes = {name: tuple(parameter.ds_shape) for name, parameter in _parameters(engine)}
    if shapes != progress.shapes:
        other = sorted(shapes.items() ^ progress.shapes.items())[0][0]
        raise RunError(
            f"{reader.folder}: checkpoint of another model: {other} is "
            f"{progress.shapes.get(other)} there and {shapes.get(other)} here"
        )
    optimizer = engine.optimizer
    optimizer._partition_all_parameters()
    for index, members in _groups(engine):
        swapped = optimizer._swappable_optimizer_subgroup(index)
        if swapped:
            optimizer._optimizer_states_and_gradient_swap_in(index)
        master = optimizer.fp32_partitioned_groups_flat[index]
        state = optimizer.optimizer.state[master]
        # torch.optim.AdamW counts its steps in a tensor, DeepSpeedCPUAdam in a number.
        in_tensor = isinstance(optimizer.optimizer, torch.optim.AdamW)
        state["step"] = torch.tensor(float(progress.optimizer_step)) if in_tensor else progress.optimizer_step
        for kind in progress.optimizer_states:
            if kind not in state:
                state[kind] = torch.zeros_like(master.data)
        for name, parameter, offset in members:
            start, stop = partition(parameter.ds_numel, world.rank, world.size)
            for kind, flat in ((MASTER, master), *((key, state[key]) for key in progress.optimizer_states)):
                flat.data.narrow(0, offset, stop - start).copy_(reader.read(kind, name, start, stop))
        optimizer._reassign_or_swap_out_partitioned_parameters(index)
        if swapped:
            optimizer._optimizer_states_and_gradient_swap_out(index)
    engine.global_steps = progress.step
    persistent = optimizer.persistent_parameters
    if persistent:
        persistent[0].partition(persistent)
        persistent[0].all_gather(persistent)
