"""The worker of a run, one process for each rank: `python -m training.train RUN_FOLDER/config.yaml`.

Read `train` from top to bottom: it is the run. What it calls lies in the modules beside this one.
"""

import logging
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import torch

from data_tools.errors import ShardtuneError
from data_tools.shards import open_shards
from training.checkpoint import describe, state_slices
from training.checkpoint_files import Progress
from training.clock import Clock
from training.config import (
    RunConfig,
    accumulation,
    derive_steps,
    end_of_run,
    evaluation_splits,
    read_run_config,
)
from training.data import PackOrder, num_step_targets, rank_share, step_slots
from training.distributed import World, any_rank, barrier, init_world
from training.ds_config import nvme_folder, read_ds_config
from training.engine import build_engine, resume
from training.evaluate import evaluate_split
from training.health import describe_skip, name_rows, suspect_packs, too_many_skipped
from training.ledger import extend_ledger
from training.metrics import MetricsLog
from training.optim import learning_rate
from training.run_folder import RunFolder, State, on_stop_signals, watch_parent, worker_lease
from training.saver import Saver
from training.step import train_step
from training.throughput import memory, speed
from training.tuning.adalora import make_rank_allocator

logger = logging.getLogger(__name__)


def train(
    run: RunFolder,
    config: RunConfig,
    ds_config: dict[str, Any],
    world: World,
    signalled: threading.Event,
    saver: Saver,
) -> State:
    """Train from where the run stands to its last step, or until a stop is asked for."""
    shards = open_shards(config.shards)
    split = shards.splits["train"]
    order = PackOrder(fingerprint=shards.fingerprint, seed=config.seed, num_packs=split.num_packs)
    packs_per_step, micro_packs = config.batch.packs_per_step, config.batch.micro_packs

    engine = build_engine(config, ds_config, world, vocab_size=shards.vocab_size)
    steps_done, consumed, ledger, health = resume(engine, run, shards, world)
    rank_allocator = make_rank_allocator(engine, config, world)  # of AdaLoRA alone
    end = end_of_run(config, split.num_packs)
    num_steps = derive_steps(config, split.num_packs, steps_done=steps_done, consumed=consumed)
    log = MetricsLog(
        run.path, resume_step=steps_done, tensorboard=config.log.tensorboard, world=world, num_steps=num_steps
    )
    log.text("config", f"```yaml\n{run.config_path.read_text()}```")

    if steps_done >= num_steps:
        logger.info("nothing left to do: %d steps are done of %d; set more to go on", steps_done, num_steps)
    state: State = "done"
    for step in range(steps_done + 1, num_steps + 1):
        clock = Clock()
        slots = step_slots(order, consumed=consumed, packs_per_step=packs_per_step, end=end)
        consumed += sum(slot.weighs for slot in slots)  # all but the fillers of a run's last step
        ledger = extend_ledger(ledger, split, slots)
        num_targets = num_step_targets(slots, split)
        micro_batches = rank_share(slots, micro_packs=micro_packs, rank=world.rank, world_size=world.size)

        lr = learning_rate(config.optim, step=step, num_steps=num_steps)
        result = train_step(
            engine,
            split,
            micro_batches,
            world,
            num_targets=num_targets,
            lr=lr,
            seed=config.seed,
            clock=clock,
            saver=saver,
            adversarial=config.loss.adversarial,
            clip=config.optim.clip,
        )
        if rank_allocator is not None and result.applied:
            rank_allocator.update(step=step, num_steps=num_steps)
        health = health.after(applied=result.applied)
        exhausted = health.skipped_in_a_row >= config.max_bad_steps
        if not result.applied:
            suspects = suspect_packs(result.micro_losses, micro_batches, slots)
            skip = describe_skip(step, result.loss, name_rows(shards, suspects))
            logger.log(logging.WARNING if world.is_main else logging.DEBUG, "%s", skip)

        stopping, save_failed = any_rank(
            signalled.is_set() or (world.is_main and run.stop_requested()), saver.failed
        )
        if save_failed:
            saver.give_up()
        last = step == num_steps
        metrics: dict[str, float] = {}
        if (last or (step % config.evaluate.every_steps == 0 and not stopping)) and not exhausted:
            for name in evaluation_splits(config, shards):
                metrics |= evaluate_split(
                    engine, shards, name, world, max_packs=config.evaluate.max_packs, micro_packs=micro_packs
                )
        if metrics or last or stopping or not result.applied or step % config.log.every_steps == 0:
            metrics["train/loss"] = result.loss
            metrics["train/lr"] = lr
            metrics["train/grad_norm"] = result.grad_norm
            metrics["train/epoch"] = consumed / split.num_packs
            metrics["health/skipped_steps"] = health.skipped_steps
            metrics["data/pack_fill"] = result.num_tokens / (packs_per_step * shards.seq_len)
            metrics |= clock.metrics()
            metrics["time/save_seconds"] = saver.take_stall_seconds()
            metrics |= speed(engine, clock, result, num_targets=num_targets)
            metrics |= memory()
            log.write(step, metrics)
        if last or stopping or exhausted or step % config.save.every_steps == 0:
            progress = Progress(
                step=step,
                packs_consumed=consumed,
                shards_fingerprint=shards.fingerprint,
                seed=config.seed,
                world_size=world.size,
                ledger=ledger,
                skipped_steps=health.skipped_steps,
                # Whoever starts the run again after its end by skipped steps means it to go on.
                skipped_in_a_row=0 if exhausted else health.skipped_in_a_row,
                **describe(engine),
            )
            ending = last or stopping or exhausted
            saver.save(state_slices(engine, world), progress, wait_for_it=ending)
        if exhausted:
            log.close()
            raise too_many_skipped(health.skipped_in_a_row, skip)
        if stopping and not last:
            state = "stopped"
            break
    log.close()
    return state


def main(arguments: list[str]) -> int:
    """Run one rank; return its exit code: 0 for a run that is done or stopped, 2 for the user's mistake."""
    signalled = threading.Event()
    on_stop_signals(lambda _: signalled.set())  # the step in hand is finished, then all ranks save
    watch_parent()
    # torch.distributed tells each rank that DeepSpeed calls it by names of old.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    run = RunFolder(Path(arguments[0]).parent)
    world = init_world()
    logging.basicConfig(
        level=logging.INFO if world.is_main else logging.WARNING,
        format=f"%(asctime)s [rank {world.rank}] %(message)s",
        datefmt="%H:%M:%S",
    )
    try:
        config = read_run_config(run.config_path)
        ds_config = read_ds_config(run.ds_config_path)
        ds_config["gradient_accumulation_steps"] = accumulation(config, world.size)
        with (
            worker_lease(run, rank=world.rank),
            nvme_folder(ds_config),
            Saver(run.checkpoints, config.save, world) as saver,
        ):
            state = train(run, config, ds_config, world, signalled, saver)
            barrier()  # nobody leaves before everybody has written: a launcher kills the slower ranks
            if world.is_main:
                run.write_state(state)
    except BaseException as error:
        run.write_state("failed")
        if not isinstance(error, ShardtuneError):
            raise
        run.write_mistake(error)  # for whoever started the ranks; a launcher may lose the exit code
        print(error, file=sys.stderr)
        return error.exit_code
    torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
