"""Our own checkpoint: without pickle, atomic, and readable by any number of ranks.

`step-000100/` holds for each rank a safetensors file with its slices of master weights and optimizer states, then
`progress.json`, then `DONE`. Here is what of the engine goes into them, and how it comes back; saver.py and
checkpoint_write.py write the files, checkpoint_files.py reads them.

Uses private names of DeepSpeed 0.19 (`fp16_groups`, `fp32_partitioned_groups_flat`, the swap calls), because its own
checkpoint loses Adam's moments with NVMe offload. The tests save, resume and compare for each kind of offload.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch

from data_tools.errors import RunError
from training.adam8bit import Adam8bit, Moment
from training.checkpoint_files import MASTER, CheckpointReader, check_base, partition
from training.checkpoint_write import Slice
from training.distributed import World
from training.model import PackedCausalLM
from training.safetensors_file import FileRange, Source, TensorSpec
from training.twinflow import updater

# Of a group of parameters, for people: each optimizer has some of them.
HYPERPARAMETERS = ("lr", "betas", "eps", "momentum", "weight_decay")


def describe(engine: deepspeed.DeepSpeedEngine) -> dict[str, Any]:
    """Return the fields of `Progress` that the engine knows."""
    optimizer = engine.optimizer
    states = [
        updater(optimizer, index).state.get(master, {})
        for index, master in enumerate(optimizer.fp32_partitioned_groups_flat)
    ]
    steps = {int(state["step"]) for state in states if "step" in state}
    assert len(steps) <= 1, f"the optimizer's step differs between its groups: {steps}"
    return {
        "optimizer_step": max(steps, default=0),  # none yet if no step was applied
        "optimizer_states": tuple(sorted({name for state in states for name in _state_names(state)})),
        "parameter_groups": tuple(
            {key: group[key] for key in HYPERPARAMETERS if key in group} for group in optimizer.param_groups
        ),
        "shapes": {name: tuple(parameter.ds_shape) for name, parameter in _parameters(engine)},
        "base": engine.module.base,
        "loss_scale": engine.module.loss_scale.state(),
        "versions": {"deepspeed": deepspeed.__version__, "torch": torch.__version__},
    }


def _parameters(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[str, Any]]:
    """Yield the parameters that are trained, under their names in a Hugging Face model; tied ones once."""
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            yield name.removeprefix(PackedCausalLM.PREFIX), parameter


def _state_names(state: dict[str, Any]) -> tuple[str, ...]:
    kinds = torch.Tensor | Moment
    return tuple(sorted(key for key, value in state.items() if isinstance(value, kinds) and key != "step"))


def _groups(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[int, list[tuple[str, Any, int]]]]:
    """Yield each sub-group's number and its parameters as (name, parameter, offset in the flat buffers)."""
    names = {id(parameter): name for name, parameter in _parameters(engine)}
    for index, parameters in enumerate(engine.optimizer.fp16_groups):
        members, offset = [], 0
        for parameter in parameters:
            members.append((names[id(parameter)], parameter, offset))
            offset += parameter.partition_numel()
        yield index, members


def state_slices(engine: deepspeed.DeepSpeedEngine, world: World) -> list[Slice]:
    """Return what this rank saves: for each trained parameter its slices of master weights and optimizer states.

    Nothing is copied. The slices may be read until the next update, from memory or from DeepSpeed's swap files.
    """
    optimizer = engine.optimizer
    slices = []
    for index, members in _groups(engine):
        master = optimizer.fp32_partitioned_groups_flat[index]
        state = updater(optimizer, index).state.get(master, {})
        swapped = optimizer._swappable_optimizer_subgroup(index)
        files = _swap_files(optimizer, master) if swapped else {}
        for name, parameter, offset in members:
            start, stop = partition(parameter.ds_numel, world.rank, world.size)
            for kind, flat in ((MASTER, master), *((key, state[key]) for key in _state_names(state))):
                source: Source
                if isinstance(flat, Moment):
                    source = partial(flat.read, offset, offset + stop - start)
                elif swapped:
                    source = FileRange(files[kind], offset * flat.dtype.itemsize)
                else:
                    source = flat.data.narrow(0, offset, stop - start)
                slices.append(Slice(f"{kind}|{name}", TensorSpec(flat.dtype, (stop - start,)), source))
    return slices


def _swap_files(optimizer: Any, master: torch.Tensor) -> dict[str, Path]:
    """Return where the parts of a swapped sub-group lie between two steps: by state, the file of its flat buffer.

    DeepSpeed names the file of a state `exp_avg-ID` after its master weights' `ID`; all of them begin at byte 0.
    """
    swapper = optimizer.optimizer_swapper
    identity = swapper.parameter_id(master)
    contexts = swapper.swap_params_info[identity].tensors
    names = (swapper.parameter_id(context.compute_tensor) for context in contexts)
    return {
        MASTER if name == identity else name.removesuffix(f"-{identity}"): Path(context.swap_path)
        for name, context in zip(names, contexts, strict=True)
    }


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
    check_base(progress, engine.module.base, where=reader.folder)
    optimizer = engine.optimizer
    optimizer._partition_all_parameters()
    for index, members in _groups(engine):
        swapped = optimizer._swappable_optimizer_subgroup(index)
        if swapped:
            optimizer._optimizer_states_and_gradient_swap_in(index)
        master = optimizer.fp32_partitioned_groups_flat[index]
        state = updater(optimizer, index).state[master]
        kinds = reader.states(members[0][0])  # Muon's weights have others than those it leaves to AdamW
        if kinds.keys() & {"exp_avg_sq", "exp_avg_root"}:
            state["step"] = _counted(updater(optimizer, index), progress.optimizer_step)
        for kind, dtype in kinds.items():
            if not torch.is_tensor(state.get(kind)):
                state[kind] = torch.zeros_like(master.data, dtype=dtype)
        for name, parameter, offset in members:
            start, stop = partition(parameter.ds_numel, world.rank, world.size)
            for kind, flat in ((MASTER, master), *((key, state[key]) for key in kinds)):
                flat.data.narrow(0, offset, stop - start).copy_(reader.read(kind, name, start, stop))
        if isinstance(updater(optimizer, index), Adam8bit):
            _quantise(master, state)
        optimizer._reassign_or_swap_out_partitioned_parameters(index)
        if swapped:
            optimizer._optimizer_states_and_gradient_swap_out(index)
    optimizer.invalidate_secondary_tensor()  # hpZ's copies of the weights from before
    engine.global_steps = progress.step
    engine.module.loss_scale.restore(progress.loss_scale, optimizer)
    persistent = optimizer.persistent_parameters
    if persistent:
        persistent[0].partition(persistent)
        persistent[0].all_gather(persistent)


def _quantise(master: torch.Tensor, state: dict[str, Any]) -> None:
    """Put moments that were read as float32 into 8 bits."""
    for kind in Adam8bit.MOMENTS:
        if torch.is_tensor(values := state.get(kind)):
            state[kind] = Adam8bit.moment(master, kind)
            state[kind].write(0, values)


def _counted(optimizer: torch.optim.Optimizer, step: int) -> torch.Tensor | int:
    """Return a step as Adam counts it: torch's in a tensor, DeepSpeed's in a number."""
    adam = getattr(optimizer, "aux_optimizer", optimizer)  # Muon's
    return torch.tensor(float(step)) if isinstance(adam, torch.optim.AdamW) else step
