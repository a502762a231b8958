"""A rank of the matrix test: engine after engine in one process group, each a few steps by the trainer's own code.

    python -m tests.training.matrix_worker FOLDER/config.yaml

cases.json: name, deepspeed (a file), precision, micro_packs, expected (a safetensors file of weights), num_steps.
"""

import gc
import hashlib
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import safe_get_full_fp32_param
from safetensors.torch import load_file

from data_tools.shards import open_shards
from tests.training.ranks import read_cases, write_results
from training.clock import Clock
from training.config import BatchConfig, RunConfig, read_run_config
from training.data import PackOrder
from training.distributed import World, init_world
from training.ds_config import build_ds_config, nvme_folder, read_ds_file
from training.engine import build_engine
from training.feed import make_batches, plan_step
from training.model import PackedCausalLM
from training.optim import learning_rate
from training.run_folder import watch_parent
from training.step import train_step


def main() -> None:
    watch_parent()
    config_path = Path(sys.argv[1])
    config, world = read_run_config(config_path), init_world()
    results = []
    for number, case in enumerate(read_cases(config_path)):
        changed = config.model_copy(
            update={
                "precision": case["precision"],
                "batch": BatchConfig(
                    packs_per_step=config.batch.packs_per_step, micro_packs=case["micro_packs"]
                ),
            }
        )
        ds_config = build_ds_config(
            changed,
            world_size=world.size,
            run_folder=config_path.parent / f"case{number}-{world.size}",
            base=read_ds_file(Path(case["deepspeed"])),
            pin_memory=False,
        )
        with nvme_folder(ds_config):
            results.append({"name": case["name"]} | run_case(changed, ds_config, world, case))
        gc.collect()
    if world.is_main:
        write_results(config_path, results)
    torch.distributed.destroy_process_group()


def run_case(
    config: RunConfig, ds_config: dict[str, Any], world: World, case: dict[str, Any]
) -> dict[str, Any]:
    """Train an engine for some steps; return its losses, norms, and how far its weights are from those expected."""
    shards = open_shards(config.shards)
    split = shards.splits["train"]
    order = PackOrder(fingerprint=shards.fingerprint, seed=config.seed, num_packs=split.num_packs)
    engine = build_engine(config, ds_config, world, vocab_size=shards.vocab_size)
    packs_per_step = config.batch.packs_per_step
    losses, norms = [], []
    gathers = count_gathers(engine)
    for step in range(1, case["num_steps"] + 1):
        gathers.clear()
        plan = plan_step(
            split,
            order,
            world,
            packs_per_step=packs_per_step,
            micro_packs=config.batch.micro_packs,
            consumed=(step - 1) * packs_per_step,
        )
        result = train_step(
            engine,
            make_batches(split, plan.micro_batches),
            world,
            num_targets=plan.num_targets,
            lr=learning_rate(config.optim, step=step, num_steps=case["num_steps"]),
            seed=config.seed,
            clock=Clock(),
        )
        losses.append(result.loss)
        norms.append(result.grad_norm)
    swapped = count_swapped(engine)
    weights = compare_weights(engine, Path(case["expected"]))
    engine.destroy()
    per_micro_batch = len(gathers) / len(plan.micro_batches)
    return {"losses": losses, "grad_norms": norms, "gathers": per_micro_batch} | weights | swapped


def count_gathers(engine: deepspeed.DeepSpeedEngine) -> list[int]:
    """Return a list to which each gathering of weights in a forward or backward adds how many it gathers."""
    coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
    name = "_PartitionedParameterCoordinator__all_gather_params_"
    gather, gathers = getattr(coordinator, name), []

    def counted(parameters: Any, *arguments: Any, **named: Any) -> None:
        missing = sum(p.ds_status is ZeroParamStatus.NOT_AVAILABLE for p in parameters)
        if missing:
            gathers.append(missing)
        gather(parameters, *arguments, **named)

    setattr(coordinator, name, counted)
    return gathers


def count_swapped(engine: deepspeed.DeepSpeedEngine) -> dict[str, int]:
    """Return how many sub-groups of the optimizer and how many parameters this rank keeps on the disk."""
    optimizer = engine.optimizer
    groups = range(len(optimizer.fp16_groups))
    return {
        "swapped_groups": sum(bool(optimizer._swappable_optimizer_subgroup(i)) for i in groups),
        "groups": len(groups),
        "swapped_parameters": sum(
            p.nvme_swapper is not None and p.nvme_swapper.swappable_tensor(numel=p.partition_numel())
            for p in engine.module.parameters()
        ),
    }


def compare_weights(engine: deepspeed.DeepSpeedEngine, expected: Path) -> dict[str, Any]:
    """Return the largest and the mean difference of all weights to a file's, and a hash of the weights."""
    wanted = load_file(expected)
    digest, largest, total, count = hashlib.sha256(), 0.0, 0.0, 0
    for name, parameter in engine.module.named_parameters():
        weight = safe_get_full_fp32_param(parameter).cpu()
        difference = (weight - wanted[name.removeprefix(PackedCausalLM.PREFIX)]).abs()
        digest.update(weight.numpy().tobytes())
        largest = max(largest, difference.max().item())
        total += difference.double().sum().item()
        count += difference.numel()
    return {"largest": largest, "mean": total / count, "weights_sha256": digest.hexdigest()}


if __name__ == "__main__":
    main()
