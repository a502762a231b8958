"""A rank of the tests of sequence parallelism: attention alone, then engine after engine by the trainer's own code.

    python -m tests.training.sequence_worker FOLDER/config.yaml

cases.json: name, deepspeed (a file), expected (a safetensors file of weights, or null), batch, and as `run` other keys
of run.yaml.
"""

import gc
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_tools.shards import Split, open_shards
from tests.training.matrix_worker import compare_weights
from tests.training.ranks import read_cases, write_results
from training.attention import packed_attention, sequence_attention
from training.clock import Clock
from training.config import RunConfig, read_run_config
from training.data import PackOrder, Slot, make_batch
from training.distributed import World, all_max, init_world
from training.ds_config import build_ds_config, nvme_folder, read_ds_file
from training.engine import build_engine
from training.evaluate import evaluate_split
from training.feed import make_batches, plan_step
from training.optim import learning_rate
from training.run_folder import watch_parent
from training.sequence_parallel import cut_row, join_pieces, sequence_group
from training.step import train_step

NUM_STEPS = 5
HEAD_DIM = 8


def main() -> None:
    watch_parent()
    config_path = Path(sys.argv[1])
    config, world = read_run_config(config_path), init_world()
    results = [{"name": "attention"} | compare_attention(world)]
    for number, case in enumerate(read_cases(config_path)):
        changed = RunConfig.model_validate(
            config.model_dump(mode="json") | case["run"] | {"batch": case["batch"]}
        )
        ds_config = build_ds_config(
            changed,
            world_size=world.size,
            run_folder=config_path.parent / f"case{number}",
            base=read_ds_file(Path(case["deepspeed"])),
            pin_memory=False,
        )
        with nvme_folder(ds_config):
            own = replace(world, sequence_size=changed.batch.sequence_parallel)
            expected = None if case["expected"] is None else Path(case["expected"])
            results.append({"name": case["name"]} | run_case(changed, ds_config, own, expected))
        gc.collect()
    if world.is_main:
        write_results(config_path, results)
    torch.distributed.destroy_process_group()


def compare_attention(world: World) -> dict[str, float]:
    """Return the largest difference of a shared row's attention, and of its gradients, to one rank's; exact is 0.

    Rows that divide and rows that do not, documents across cuts, more and fewer heads of keys than ranks.
    """
    group = sequence_group(world.size)
    assert group is not None
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        for kv_heads in (1, 2, 4, 8):
            for lengths in ((5, 7, 4), (1, 30, 2), (3,)):
                name = f"{str(dtype).removeprefix('torch.')} {kv_heads} {lengths}"
                found[name] = all_max(_attention_difference(world, kv_heads, lengths, dtype))
    return found


def _attention_difference(world: World, kv_heads: int, lengths: tuple[int, ...], dtype: torch.dtype) -> float:
    torch.manual_seed(1)  # the same row on every rank
    size, total = world.size, sum(lengths)
    piece = -(-total // size)
    options: dict[str, Any] = {
        "document_lengths": lengths,
        "document_offsets": torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32),
    }
    row = [torch.randn(1, heads, total, HEAD_DIM, dtype=dtype) for heads in (8, kv_heads, kv_heads)]
    upstream = torch.randn(1, total, 8, HEAD_DIM, dtype=dtype)
    whole = [states.clone().requires_grad_() for states in row]
    expected, _ = packed_attention(nn.Module(), *whole, None, **options)
    expected.backward(upstream)
    mine = slice(world.rank * piece, (world.rank + 1) * piece)
    filled = [nn.functional.pad(states, (0, 0, 0, size * piece - total)) for states in row]
    cut = [states[:, :, mine].clone().requires_grad_() for states in filled]
    got, _ = sequence_attention(nn.Module(), *cut, None, sequence_group=sequence_group(size), **options)
    there = max(0, min(piece, total - world.rank * piece))  # the rest is filling
    got[:, :there].backward(upstream[:, mine])
    pairs = [(got[:, :there], expected[:, mine])]
    for ours, theirs in zip(cut, whole, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        pairs.append((ours.grad[:, :, :there], theirs.grad[:, :, mine]))
    return max(float((a - b).abs().max()) if there else 0.0 for a, b in pairs)


def run_case(
    config: RunConfig, ds_config: dict[str, Any], world: World, expected: Path | None
) -> dict[str, Any]:
    """Train an engine for some steps; return its numbers, and how far its weights are from those expected, if any."""
    shards = open_shards(config.shards)
    split = shards.splits["train"]
    order = PackOrder(fingerprint=shards.fingerprint, seed=config.seed, num_packs=split.num_packs)
    engine = build_engine(config, ds_config, world, vocab_size=shards.vocab_size)
    found: dict[str, Any] = {"losses": [], "grad_norms": [], "num_tokens": [], "num_squares": []}
    consumed = 0
    for step in range(1, NUM_STEPS + 1):
        plan = plan_step(
            split,
            order,
            world,
            packs_per_step=config.batch.packs_per_step,
            micro_packs=config.batch.micro_packs,
            consumed=consumed,
        )
        consumed = plan.consumed
        result = train_step(
            engine,
            make_batches(split, plan.micro_batches),
            world,
            num_targets=plan.num_targets,
            lr=learning_rate(config.optim, step=step, num_steps=NUM_STEPS),
            seed=config.seed,
            clock=Clock(),
        )
        found["losses"].append(result.loss)
        found["grad_norms"].append(result.grad_norm)
        found["num_tokens"].append(result.num_tokens)
        found["num_squares"].append(result.num_squares)
    if expected is not None:
        found |= compare_weights(engine, expected)
    found["evaluated"] = evaluate_split(engine, shards, "validation", world, max_packs=3, micro_packs=1)
    found["logits"] = first_logits(engine, split, world)
    engine.destroy()
    return found


@torch.no_grad()
def first_logits(engine: Any, split: Split, world: World) -> list[float]:
    """Return a few logits of the first pack, from all over it."""
    row = make_batch(split, [Slot(0, 0, True)])
    batch = cut_row(row, rank=world.sequence_rank, size=world.sequence_size).to(engine.device)
    engine.eval()
    logits = join_pieces(engine(batch, output="logits").float(), engine.module.sequence_group)
    engine.train()
    found: list[float] = logits[: row.num_tokens : 7, ::50].flatten().tolist()
    return found


if __name__ == "__main__":
    main()
