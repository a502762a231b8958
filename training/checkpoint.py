"""Our own checkpoint: without pickle, atomic, and readable by any number of ranks.

`step-000100/` holds for each rank a safetensors file with its slices of master weights and optimizer states, then
`progress.json`, then `DONE`. Here they are written from the engine and put back into it; checkpoint_files.py reads
them.

Uses private names of DeepSpeed 0.19 (`fp16_groups`, `fp32_partitioned_groups_flat`, the swap calls), because its own
checkpoint loses Adam's moments with NVMe offload. The tests save, resume and compare for each kind of offload.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import deepspeed
import torch

from data_tools.errors import RunError
from training.checkpoint_files import (
    DONE,
    MASTER,
    CheckpointReader,
    Progress,
    checkpoint_folder,
    finished_checkpoints,
    partition,
    rank_file,
)
from training.distributed import World, all_max, barrier
from training.model import PackedCausalLM
from training.safetensors_file import SafetensorsWriter, TensorSpec


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
            rank_file(partial, world.rank, world.size), _slice_specs(engine, world)
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
