"""A rank of the test of parameters that a step does not use: a module with branches, trained by the trainer's own step.

    python -m tests.training.branch_worker FOLDER/config.yaml

cases.json: name, deepspeed (a file), initial (a safetensors file of weights), uses (for each step and micro-batch, the
branches that it takes), lr.
"""

import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.nn.functional as F
from deepspeed.utils import safe_get_full_fp32_param
from safetensors.torch import load_file, save_file
from torch import nn

from data_tools.shards import open_shards
from tests.training.matrix_worker import count_swapped
from tests.training.ranks import read_cases, write_results
from training.clock import Clock
from training.config import RunConfig, read_run_config
from training.data import Batch, PackOrder, num_step_targets, step_slots
from training.distributed import World, init_world
from training.ds_config import build_ds_config, nvme_folder, read_ds_file
from training.engine import initialize
from training.feed import make_batches
from training.loss_scale import LossScale
from training.model import size_nvme_buffers
from training.run_folder import watch_parent
from training.step import train_step

WIDTH = 1024  # a branch of 1 M weights: large enough to be swapped on 2 ranks, and its gradient too


class Branches(nn.Module):
    """Two branches between an embedding and a head; each micro-batch takes those that `uses` lists for it."""

    penalty = 0.0  # what a tuning method adds to the loss

    def __init__(self, vocab_size: int, uses: list[list[list[str]]]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, WIDTH)
        self.left = nn.Linear(WIDTH, WIDTH)
        self.right = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, vocab_size, bias=False)
        self.loss_scale = LossScale()
        self.uses = uses
        self.turn: tuple[int, int] = (0, 0)  # the step and the micro-batch in it, of all ranks

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the sum of the targets' cross-entropy."""
        hidden = self.embedding(batch.input_ids[0])
        step, micro = self.turn
        for name in self.uses[step][micro]:
            hidden = hidden + torch.tanh(getattr(self, name)(hidden))
        self.turn = (step, micro + 1) if micro + 1 < len(self.uses[step]) else (step + 1, 0)
        return F.cross_entropy(self.head(hidden[batch.predictors]).float(), batch.labels, reduction="sum")


def main() -> None:
    watch_parent()
    config_path = Path(sys.argv[1])
    config, world = read_run_config(config_path), init_world()
    results = []
    for number, case in enumerate(read_cases(config_path)):
        ds_config = build_ds_config(
            config,
            world_size=world.size,
            run_folder=config_path.parent / f"case{number}",
            base=read_ds_file(Path(case["deepspeed"])),
            pin_memory=False,
        )
        with nvme_folder(ds_config):
            output = config_path.with_name(f"weights-{number}.safetensors")
            results.append(run_case(config, ds_config, world, case, output))
    if world.is_main:
        write_results(config_path, results)
    torch.distributed.destroy_process_group()


def run_case(
    config: RunConfig, ds_config: dict[str, Any], world: World, case: dict[str, Any], output: Path
) -> dict[str, Any]:
    """Train the module as the case says and write its weights to `output`."""
    shards = open_shards(config.shards)
    split = shards.splits["train"]
    order = PackOrder(fingerprint=shards.fingerprint, seed=config.seed, num_packs=split.num_packs)
    size_nvme_buffers(ds_config, WIDTH * WIDTH, world.size)
    with deepspeed.zero.Init(config_dict_or_path=ds_config):
        module = Branches(shards.vocab_size, case["uses"])
    initial = load_file(case["initial"])
    for name, parameter in module.named_parameters():
        with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if world.is_main:
                parameter.copy_(initial[name])
    engine = initialize(module, config, ds_config)
    packs = config.batch.packs_per_step
    norms = []
    for step in range(len(case["uses"])):
        slots = step_slots(order, consumed=step * packs, packs_per_step=packs, end=None)
        per_rank = len(slots) // world.size
        shares = [[slot] for slot in slots[world.rank * per_rank :][:per_rank]]
        result = train_step(
            engine,
            make_batches(split, shares),
            world,
            num_targets=num_step_targets(slots, split),
            lr=case["lr"],
            seed=config.seed,
            clock=Clock(),
        )
        norms.append(result.grad_norm)
    swapped = count_swapped(engine)
    weights = {name: safe_get_full_fp32_param(p).cpu() for name, p in engine.module.named_parameters()}
    if world.is_main:
        save_file(weights, output)
    engine.destroy()
    return {"name": case["name"], "weights": str(output), "norms": norms, **swapped}


if __name__ == "__main__":
    main()
