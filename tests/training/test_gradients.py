"""Parameters that a step, or one micro-batch of it, does not use get a gradient of zero, with every kind of offload."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_tools.shards import open_shards
from tests.training.branch_worker import Branches
from tests.training.harness import Project
from tests.training.ranks import run_ranks
from tests.training.test_matrix import OFFLOADS, write_ds_file
from training.config import RunConfig, load_run_config
from training.data import PackOrder, make_batch, num_step_targets, step_slots

BOTH, LEFT, RIGHT, NONE = ["left", "right"], ["left"], ["right"], list[str]()
# Two micro-batches a step on each of 2 ranks. A branch is used in both, in none, in the last only, in the first only.
USES = [[BOTH, BOTH], [LEFT, LEFT], [LEFT, RIGHT], [BOTH, LEFT], [NONE, NONE], [RIGHT, LEFT], [BOTH, BOTH]]
LR = 1e-3


def train_plainly(config: RunConfig, initial: Path) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Return the weights and gradient norms of the same steps in plain PyTorch, where a gradient that is none is 0."""
    shards = open_shards(config.shards)
    split = shards.splits["train"]
    order = PackOrder(fingerprint=shards.fingerprint, seed=config.seed, num_packs=split.num_packs)
    module = Branches(shards.vocab_size, USES)
    module.load_state_dict(load_file(initial))
    matrices = [p for p in module.parameters() if p.dim() >= 2]
    vectors = [p for p in module.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": config.optim.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=config.optim.betas, eps=config.optim.eps)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    packs, norms = config.batch.packs_per_step, []
    for step in range(len(USES)):
        slots = step_slots(order, consumed=step * packs, packs_per_step=packs, end=None)
        num_targets = num_step_targets(slots, split)
        shares = (slots[: packs // 2], slots[packs // 2 :])
        for micro in range(2):
            for share in shares:  # both ranks are at the same micro-batch, and take the same branches
                module.turn = (step, micro)
                (module(make_batch(split, [share[micro]])) / num_targets).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(module.parameters(), config.optim.clip or 0.0).item())
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    return dict(module.state_dict()), norms


def check(project: Project, folder: Path, offloads: tuple[str, ...]) -> None:
    config = load_run_config(project.write_run("branches", {"steps": len(USES)}))
    torch.manual_seed(0)
    initial = folder / "initial.safetensors"
    save_file(Branches(open_shards(config.shards).vocab_size, USES).state_dict(), initial)
    expected, norms = train_plainly(config, initial)
    cases = [
        {
            "name": offload,
            "deepspeed": str(write_ds_file(folder, offload)),
            "initial": str(initial),
            "uses": USES,
            "lr": LR,
        }
        for offload in offloads
    ]
    disk = ("AsyncIOBuilder",) if any("nvme" in offload for offload in offloads) else ()
    ops = ("ShareMemCommBuilder", "CPUAdamBuilder", *disk)
    module = "tests.training.branch_worker"
    for result in run_ranks(module, folder / "ranks", config, cases, num_ranks=2, ops=ops):
        assert (result["swapped_groups"] > 0) == ("nvme" in result["name"]), result
        assert result["norms"] == pytest.approx(norms, rel=1e-4), result["name"]
        ours = load_file(result["weights"])
        for name, weight in expected.items():
            difference = (ours[name] - weight).abs()
            # A gradient that is left over moves every weight of a branch by about the learning rate.
            assert difference.mean() < 0.01 * LR, (result["name"], name, difference.mean())
            assert difference.max() < LR, (result["name"], name, difference.max())


def test_a_branch_that_is_not_taken_keeps_no_gradient(tiny: Project, tmp_path: Path) -> None:
    check(tiny, tmp_path, ("none", "optimizer_cpu", "cpu"))


@pytest.mark.slow  # compiles DeepSpeed's disk access in a fresh environment
def test_a_branch_that_is_not_taken_keeps_no_gradient_on_nvme(tiny: Project, tmp_path: Path) -> None:
    assert set(OFFLOADS) >= {"optimizer_nvme", "nvme"}
    check(tiny, tmp_path, ("optimizer_nvme", "nvme"))
