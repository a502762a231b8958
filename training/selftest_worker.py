"""A rank of `shardtune selftest`: `python -m training.selftest_worker RUN_FOLDER/config.yaml`.

Builds an engine for each case of cases.json, one after the other, trains the run's few steps with it, and leaves in
results.jsonl the losses, the gradient norms, and how far the weights are from the first case's.
"""

import gc
import json
import logging
import math
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed
import psutil
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import safe_get_full_fp32_param
from safetensors.torch import save_file
from torch import nn

from data_tools.errors import RunError, ShardtuneError
from data_tools.shards import Shards, open_shards
from training.checkpoint import describe, load_checkpoint, state_slices
from training.checkpoint_files import CheckpointReader, Progress, checkpoint_folder
from training.clock import Clock
from training.config import RunConfig, accumulation, read_run_config
from training.data import Batch, PackOrder, Slot, make_batch
from training.distributed import World, all_max, barrier, init_world
from training.ds_config import build_ds_config, nvme_folder, read_ds_config, read_ds_file
from training.engine import build_engine
from training.feed import make_batches, plan_step
from training.loss import HeadOutput
from training.model import PackedCausalLM
from training.run_folder import RunFolder, State, on_stop_signals, watch_parent
from training.saver import Saver
from training.selftest import NUM_STEPS, SAVED_STEP, other_offload, too_little_memory
from training.sequence_parallel import cut_row, join_pieces
from training.step import train_step

logger = logging.getLogger(__name__)


def run_case(
    run: RunFolder,
    config: RunConfig,
    ds_config: dict[str, Any],
    world: World,
    case: Mapping[str, Any],
    saver: Saver,
) -> dict[str, Any]:
    """Train the steps of a case and return its numbers."""
    shards = open_shards(config.shards)
    split = shards.splits["train"]
    order = PackOrder(fingerprint=shards.fingerprint, seed=config.seed, num_packs=split.num_packs)
    packs = config.batch.packs_per_step
    reference, first = case.get("reference", False), case.get("from_step", 0)
    found: dict[str, Any] = {"name": case["name"], "losses": [], "grad_norms": []}

    engine = build_engine(config, ds_config, world, vocab_size=shards.vocab_size)
    stop_dropout(engine.module)
    if first:
        load_checkpoint(engine, CheckpointReader(checkpoint_folder(run.checkpoints, first)), world)
    if reference:
        own = Slot(world.data_rank, world.data_rank % split.num_packs, True)
        found["unpacked"] = compare_unpacked(engine, make_batch(split, [own]), world)
    for step in range(first + 1, NUM_STEPS + 1):
        plan = plan_step(
            split,
            order,
            world,
            packs_per_step=packs,
            micro_packs=config.batch.packs_per_forward,
            consumed=(step - 1) * packs,
        )
        result = train_step(
            engine,
            make_batches(split, plan.micro_batches),
            world,
            num_targets=plan.num_targets,
            lr=config.optim.lr,
            seed=config.seed,
            clock=Clock(),
            saver=saver,
            clip=config.optim.clip,
        )
        found["losses"].append(result.loss)
        found["grad_norms"].append(result.grad_norm)
        if reference and step % SAVED_STEP == 0:
            save(engine, shards, config, world, saver, step=step)
    saver.finish(must_succeed=True)
    if reference:
        keep_logits(engine, run, split_document(make_batch(split, [Slot(0, 0, True)]), 0), world)
    else:
        reader = CheckpointReader(checkpoint_folder(run.checkpoints, NUM_STEPS))
        found["weights"] = compare_weights(engine, reader) / (config.optim.lr * NUM_STEPS)
    found["num_parameters"] = sum(parameter.ds_numel for parameter in engine.module.parameters())
    engine.destroy()
    return found


def stop_dropout(module: nn.Module) -> None:
    """Set every dropout to zero: its random numbers belong to a micro-batch, and others are drawn for another one."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if hasattr(part, "attention_dropout"):
            part.attention_dropout = 0.0  # type: ignore[assignment]


def save(
    engine: deepspeed.DeepSpeedEngine,
    shards: Shards,
    config: RunConfig,
    world: World,
    saver: Saver,
    *,
    step: int,
) -> None:
    """Begin to save, as the trainer does; the next step waits for it."""
    progress = Progress(
        step=step,
        packs_consumed=step * config.batch.packs_per_step,
        shards_fingerprint=shards.fingerprint,
        seed=config.seed,
        world_size=world.size,
        **describe(engine),
    )
    saver.save(state_slices(engine, world), progress)


def compare_unpacked(engine: deepspeed.DeepSpeedEngine, batch: Batch, world: World) -> float:
    """Return the largest difference of a target's loss, in its pack and in its document alone, over all ranks."""
    engine.eval()
    with torch.no_grad():
        packed = whole_output(engine, batch, world, "token_losses")
        count = len(batch.document_lengths)
        # All ranks make as many forwards: ZeRO-3 gathers weights in each. The last document is repeated.
        alone = [
            whole_output(engine, split_document(batch, min(number, count - 1)), world, "token_losses")
            for number in range(int(all_max(count)))
        ]
    engine.train()
    difference = (packed - torch.cat(alone[:count])).abs().nan_to_num(nan=math.inf)
    return all_max(float(difference.max()) if len(difference) else 0.0)


def whole_output(
    engine: deepspeed.DeepSpeedEngine, row: Batch, world: World, output: HeadOutput
) -> torch.Tensor:
    """Return the losses of a row's targets, or its logits, of which each rank that shares the row computes a piece."""
    batch = cut_row(row, rank=world.sequence_rank, size=world.sequence_size).to(engine.device)
    found = engine(batch, output=output)
    return join_pieces(found[0] if output == "token_losses" else found, engine.module.sequence_group)


def split_document(batch: Batch, number: int) -> Batch:
    """Return one document of a pack as a row of its own."""
    start = sum(batch.document_lengths[:number])
    stop = start + batch.document_lengths[number]
    inside = (batch.predictors >= start) & (batch.predictors < stop)
    return Batch(
        input_ids=batch.input_ids[:, start:stop],
        position_ids=batch.position_ids[:, start:stop],
        document_lengths=(stop - start,),
        predictors=batch.predictors[inside] - start,
        labels=batch.labels[inside],
        label_tasks=batch.label_tasks[inside],
    )


def keep_logits(engine: deepspeed.DeepSpeedEngine, run: RunFolder, document: Batch, world: World) -> None:
    """Write a document and the engine's logits for it, to be compared with the export's."""
    engine.eval()
    with torch.no_grad():
        logits = whole_output(engine, document, world, "logits")[: document.num_tokens].float().cpu()
    engine.train()
    if world.is_main:
        save_file(
            {"input_ids": document.input_ids[0].contiguous(), "logits": logits},
            run.path / "logits.safetensors",
        )


def compare_weights(engine: deepspeed.DeepSpeedEngine, reader: CheckpointReader) -> float:
    """Return the mean difference of all trained weights to a checkpoint's, one parameter at a time."""
    total, count = 0.0, 0
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            weight = safe_get_full_fp32_param(parameter).cpu()
            difference = (weight - reader.weight(name.removeprefix(PackedCausalLM.PREFIX))).abs()
            total += difference.double().sum().item()
            count += difference.numel()
    return total / count


def offload_otherwise(
    run: RunFolder, config: RunConfig, world: World, num_parameters: int
) -> tuple[dict[str, Any], str]:
    """Return the run's DeepSpeed configuration with other offload, and why it cannot run here; empty if it can."""
    on_cpu = get_accelerator().device_name() == "cpu"
    base = other_offload(read_ds_file(config.deepspeed))
    try:
        ds_config = build_ds_config(
            config, world_size=world.size, run_folder=run.path, base=base, pin_memory=not on_cpu
        )
    except RunError as error:  # an optimizer, or its states, that need the offload
        return {}, str(error)
    if "offload_optimizer" in base["zero_optimization"]:
        return ds_config, ""  # the run itself has none, and CPU memory is the larger one
    reason = too_little_memory(
        num_parameters,
        precision=config.precision,
        num_ranks=world.size,
        ranks_here=world.size if on_cpu else 1,  # CPU ranks share the node's memory
        available_bytes=psutil.virtual_memory().available if on_cpu else get_accelerator().available_memory(),
    )
    # Ranks may see different amounts: none runs if one cannot.
    return ds_config, (reason or "another rank has too little memory") if all_max(bool(reason)) else ""


def run_cases(run: RunFolder, world: World, stop: threading.Event) -> Iterator[dict[str, Any] | None]:
    """Yield the numbers of each case; None, and no more, once a stop is asked for."""
    config = read_run_config(run.config_path)
    world = replace(world, sequence_size=config.batch.sequence_parallel)
    num_parameters = 0
    for case in json.loads((run.path / "cases.json").read_text()):
        if all_max(stop.is_set() or run.stop_requested()):
            yield None
            return
        batch = config.batch.model_copy(update={"micro_packs": case["micro_packs"]})
        changed = config.model_copy(update={"batch": batch})
        ds_config, reason = read_ds_config(run.ds_config_path), ""
        ds_config["gradient_accumulation_steps"] = accumulation(changed, world.size)
        if case.get("other_offload"):
            ds_config, reason = offload_otherwise(run, changed, world, num_parameters)
        if reason:
            yield {"name": case["name"], "not_run": reason}
            continue
        logger.info("%s: %d ranks, %d packs at a time", case["name"], world.size, case["micro_packs"])
        with nvme_folder(ds_config), Saver(run.checkpoints, config.save, world) as saver:
            found = run_case(run, changed, ds_config, world, case, saver)
            barrier()
        num_parameters = found["num_parameters"]
        gc.collect()
        yield found


def main(arguments: list[str]) -> int:
    """Run one rank; return its exit code."""
    stop = threading.Event()
    on_stop_signals(lambda _: stop.set())
    watch_parent()
    run = RunFolder(Path(arguments[0]).parent)
    world = init_world()
    logging.basicConfig(
        level=logging.INFO if world.is_main else logging.WARNING, format=f"[rank {world.rank}] %(message)s"
    )
    state: State = "done"
    try:
        for found in run_cases(run, world, stop):
            if found is None:
                state = "stopped"
            elif world.is_main:
                with (run.path / "results.jsonl").open("a") as results:
                    results.write(json.dumps(found) + "\n")
    except ShardtuneError as error:
        run.write_mistake(error)
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    barrier()
    if world.is_main:
        run.write_state(state)
    torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
