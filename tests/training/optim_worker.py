"""A rank of the test of optimizers and losses: each case trains, is resumed half-way, and trains those steps again.

    python -m tests.training.optim_worker FOLDER/config.yaml

cases.json: name, deepspeed (a file), config (the keys of run.yaml that differ, resolved), expected (a safetensors file
of weights, or null); on_gpu: what needs a GPU is let through.
"""

import gc
import hashlib
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.muon import original_muon
from deepspeed.utils import safe_get_full_fp32_param

from data_tools.shards import Shards, open_shards
from tests.training.matrix_worker import compare_weights, count_swapped
from tests.training.ranks import read_cases, write_results
from training.checkpoint import load_checkpoint
from training.checkpoint_files import CheckpointReader, checkpoint_folder
from training.clock import Clock
from training.config import RunConfig, SaveConfig, read_run_config
from training.data import PackOrder
from training.distributed import World, init_world
from training.ds_config import build_ds_config, nvme_folder, read_ds_file
from training.engine import build_engine
from training.feed import make_batches, plan_step
from training.optim import learning_rate
from training.run_folder import watch_parent
from training.saver import Saver
from training.selftest_worker import save
from training.step import StepResult, train_step

NUM_STEPS, SAVED_STEP = 4, 2


def float32(ns_method: str = "gram") -> torch.dtype:
    """Return the type of Muon's iterations here. On a CPU that has fp16 its rounding would hide an error of ours."""
    return torch.float32


def main() -> None:
    watch_parent()
    original_muon.ns_compute_dtype = float32
    config_path = Path(sys.argv[1])
    config, world = read_run_config(config_path), init_world()
    results = []
    for number, case in enumerate(read_cases(config_path)):
        changed = RunConfig.model_validate(config.model_dump() | case["config"])
        folder = config_path.parent / f"case{number}"
        base = read_ds_file(Path(case["deepspeed"]))
        ds_config = build_ds_config(
            changed, world_size=world.size, run_folder=folder, base=base, pin_memory=case.get("on_gpu", False)
        )
        with nvme_folder(ds_config), Saver(folder, SaveConfig(mode="sync"), world) as saver:
            results.append({"name": case["name"]} | run_case(changed, ds_config, world, case, folder, saver))
        gc.collect()
    if world.is_main:
        write_results(config_path, results)
    torch.distributed.destroy_process_group()


def run_case(
    config: RunConfig,
    ds_config: dict[str, Any],
    world: World,
    case: dict[str, Any],
    folder: Path,
    saver: Saver,
) -> dict[str, Any]:
    """Train to the end, then again from the checkpoint in the middle."""
    shards = open_shards(config.shards)
    engine = build_engine(config, ds_config, world, vocab_size=shards.vocab_size)
    results = take_steps(engine, config, shards, world, saver, first=1)
    found = {
        "losses": [result.loss for result in results],
        "grad_norms": [result.grad_norm for result in results],
        "groups": [[group["lr"], group["weight_decay"]] for group in engine.optimizer.param_groups],
        "states": sorted({f"{t.dtype}" for state in engine.optimizer.optimizer.state.values()
                          for key, t in state.items() if torch.is_tensor(t) and key != "step"}),
        "weights": weights_hash(engine),
        **count_swapped(engine),
    }  # fmt: skip
    if case["expected"]:
        found |= compare_weights(engine, Path(case["expected"]))
    engine.destroy()
    gc.collect()

    engine = build_engine(config, ds_config, world, vocab_size=shards.vocab_size)
    load_checkpoint(engine, CheckpointReader(checkpoint_folder(folder, SAVED_STEP)), world)
    results = take_steps(engine, config, shards, world, saver, first=SAVED_STEP + 1)
    found |= {
        "resumed_losses": [result.loss for result in results],
        "resumed_weights": weights_hash(engine),
    }
    engine.destroy()
    return found


def take_steps(
    engine: deepspeed.DeepSpeedEngine,
    config: RunConfig,
    shards: Shards,
    world: World,
    saver: Saver,
    *,
    first: int,
) -> list[StepResult]:
    """Take the steps from `first` on, and save after the one in the middle if it is among them."""
    split = shards.splits["train"]
    order = PackOrder(fingerprint=shards.fingerprint, seed=config.seed, num_packs=split.num_packs)
    packs = config.batch.packs_per_step
    results = []
    for step in range(first, NUM_STEPS + 1):
        plan = plan_step(
            split,
            order,
            world,
            packs_per_step=packs,
            micro_packs=config.batch.micro_packs,
            consumed=(step - 1) * packs,
        )
        results.append(
            train_step(
                engine,
                make_batches(split, plan.micro_batches),
                world,
                num_targets=plan.num_targets,
                lr=learning_rate(config.optim, step=step, num_steps=NUM_STEPS),
                seed=config.seed,
                clock=Clock(),
                adversarial=config.loss.adversarial,
                clip=config.optim.clip,
            )
        )
        if step == SAVED_STEP:
            save(engine, shards, config, world, saver, step=step)
            saver.finish(must_succeed=True)
    return results


def weights_hash(engine: deepspeed.DeepSpeedEngine) -> str:
    """Return a hash of all master weights."""
    digest = hashlib.sha256()
    for parameter in engine.module.parameters():
        digest.update(safe_get_full_fp32_param(parameter).float().cpu().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
