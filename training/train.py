"""The worker of a run, one process for each rank: `python -m training.train RUN_FOLDER/config.yaml`.

Read `train` from top to bottom: it is the run. What it calls lies in the modules beside this one.
"""

import logging
import os
import sys
import threading
import warnings
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from data_tools.errors import ShardtuneError
from data_tools.shards import Shards, open_shards
from training.allocator import return_freed_memory
from training.checkpoint import describe, state_slices
from training.clock import Clock
from training.config import (
    RunConfig,
    accumulation,
    derive_steps,
    evaluation_splits,
    read_run_config,
)
from training.distributed import World, barrier, compare_ranks, find_world, join
from training.ds_config import nvme_folder, read_ds_config
from training.engine import build_engine, resume
from training.evaluate import evaluate
from training.events import record_event
from training.feed import feed_of_run
from training.garbage import collect_at, held_collector
from training.health import describe_skip, name_rows, suspect_packs, too_many_skipped
from training.heartbeat import Place
from training.last_words import was_cut_off
from training.metrics import MetricsLog, last_logged_step
from training.monitoring.sources import SourcesSeen
from training.monitoring.wandb_feed import WandbFeed
from training.nodes import node_name
from training.optim import learning_rate
from training.run_folder import RunFolder, State, on_stop_signals, watch_parent, worker_lease
from training.saver import Saver
from training.standing import Standing
from training.step import train_step
from training.throughput import step_metrics
from training.tuning.adalora import make_rank_allocator
from training.watchdog import collective_timeout, watched

logger = logging.getLogger(__name__)


def train(
    run: RunFolder,
    config: RunConfig,
    ds_config: dict[str, Any],
    world: World,
    signalled: threading.Event,
    saver: Saver,
    place: Place,
) -> State:
    """Train from where the run stands to its last step, or until a stop is asked for."""
    shards = open_shards(config.shards)
    num_packs = shards.splits["train"].num_packs

    engine = build_engine(config, ds_config, world, vocab_size=shards.vocab_size)
    standing = resume(engine, run, config, shards, world)
    rank_allocator = make_rank_allocator(engine, config, world)  # of AdaLoRA alone
    health, trend, best = standing.health, standing.trend, standing.best
    num_steps = derive_steps(config, num_packs, steps_done=standing.step, consumed=standing.consumed)
    log = start_log(run, config, shards, world, steps_done=standing.step, num_steps=num_steps)
    seen = SourcesSeen(shards, seed=config.seed) if world.is_main else None
    if standing.step >= num_steps:
        logger.info(
            "nothing left to do: %d steps are done of %d; set more to go on", standing.step, num_steps
        )
    if standing.owes_evaluation:
        metrics = evaluate(engine, shards, config, world, place)
        best = best.after(standing.step, metrics)
        log.amend(standing.step, metrics)

    state: State = "done"
    feed = feed_of_run(config, shards, standing, world, num_steps=num_steps)
    with closing(log), feed, held_collector():
        for step in range(standing.step + 1, num_steps + 1):
            if best.is_stale(config.evaluate.patience):
                logger.info("stopped early: %s; set evaluate.patience to go on", best.describe())
                if world.is_main:
                    record_event(run.path, "stopped_early", step=step - 1, why=best.describe())
                break
            place.at("data", step=step)
            clock = Clock(place)
            with clock.part("data"):
                plan = feed.next_plan()
            lr = learning_rate(config.optim, step=step, num_steps=num_steps)
            result = train_step(
                engine,
                feed.batches(plan),
                world,
                num_targets=plan.num_targets,
                lr=lr,
                seed=config.seed,
                clock=clock,
                saver=saver,
                adversarial=config.loss.adversarial,
                clip=config.optim.clip,
            )
            if rank_allocator is not None and result.applied:
                rank_allocator.update(step=step, num_steps=num_steps)
            health = health.after(applied=result.applied, rescaled=result.rescaled)
            if result.applied:
                trend = trend.after(loss=result.loss, grad_norm=result.grad_norm, clip=config.optim.clip)
            exhausted = health.skipped_in_a_row >= config.max_bad_steps
            if result.rescaled:
                scale = engine.module.loss_scale.scale
                logger.info(
                    "step %d was skipped: its gradient overflowed; the loss scale is now %g", step, scale
                )
            elif not result.applied:
                suspects = suspect_packs(result.micro_losses, plan.micro_batches, plan.slots)
                skip = describe_skip(step, result.loss, name_rows(shards, suspects))
                logger.log(logging.WARNING if world.is_main else logging.DEBUG, "%s", skip)

            (stopping, save_failed), rank_seconds = compare_ranks(
                signalled.is_set() or (world.is_main and run.stop_requested()),
                saver.failed,
                seconds=clock.seconds(),
                world=world,
            )
            if save_failed:
                saver.give_up()
            last = step == num_steps
            due = (last or step % config.evaluate.every_steps == 0) and not exhausted
            evaluated = due and (last or not stopping)  # whoever stops a run does not wait for an evaluation
            if evaluated or last or stopping or not result.applied or step % config.log.every_steps == 0:
                metrics = step_metrics(
                    engine,
                    config,
                    shards,
                    plan,
                    result,
                    health=health,
                    trend=trend,
                    seen=seen,
                    lr=lr,
                    clock=clock,
                    rank_seconds=rank_seconds,
                    stall_seconds=saver.take_stall_seconds(),
                )
                if evaluated:
                    found = evaluate(engine, shards, config, world, place)
                    best, metrics = best.after(step, found), metrics | found
                log.write(step, metrics)

            ending = last or stopping or exhausted or best.is_stale(config.evaluate.patience)
            if ending or best.step == step or step % config.save.every_steps == 0:
                standing = Standing(
                    best, step, plan.consumed, plan.ledger, health, trend, due and not evaluated
                )
                progress = standing.as_progress(config, shards, world, **describe(engine))
                saver.save(state_slices(engine, world), progress, wait_for_it=ending)
            if exhausted:
                raise too_many_skipped(health.skipped_in_a_row, skip)
            if stopping and not last:
                state = "stopped"
                break
            collect_at(step)
    return state


def start_log(
    run: RunFolder, config: RunConfig, shards: Shards, world: World, *, steps_done: int, num_steps: int
) -> MetricsLog:
    """Return the log of a run's metrics, from the step after `steps_done` on."""
    if world.is_main:
        reached = last_logged_step(run.path)  # what of that was not saved is cut from the log now
        record_event(
            run.path, "training", step=steps_done, num_steps=num_steps, world=world.size, reached=reached
        )
    to_wandb = config.log.wandb if world.is_main else None
    log = MetricsLog(
        run.path,
        resume_step=steps_done,
        tensorboard=config.log.tensorboard,
        world=world,
        num_steps=num_steps,
        feed=WandbFeed(run.path, to_wandb, config.log.wandb_project) if to_wandb else None,
    )
    log.describe(config, evaluation_splits(config, shards))
    log.text("config", f"```yaml\n{run.config_path.read_text()}```")
    return log


def main(arguments: list[str]) -> int:
    """Run one rank; return its exit code: 0 for a run that is done or stopped, 2 for the user's mistake."""
    return_freed_memory()
    signalled = threading.Event()
    on_stop_signals(lambda _: signalled.set())  # the step in hand is finished, then all ranks save
    watch_parent()
    # torch.distributed tells each rank that DeepSpeed calls it by names of old.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    run = RunFolder(Path(arguments[0]).parent)
    world = find_world()
    logging.basicConfig(
        level=logging.INFO if world.is_main else logging.WARNING,
        format=f"%(asctime)s [rank {world.rank}] %(message)s",
        datefmt="%H:%M:%S",
    )
    try:
        config = read_run_config(run.config_path)
        world = replace(world, sequence_size=config.batch.sequence_parallel)
        ds_config = read_ds_config(run.ds_config_path, pin_memory=get_accelerator().device_name() != "cpu")
        ds_config["gradient_accumulation_steps"] = accumulation(config, world.size)
        with watched(run, world, config.watchdog) as place:
            join(world, collective_timeout(config.watchdog))
            place.at("start")
            with (
                worker_lease(run, rank=world.rank),
                nvme_folder(ds_config),
                Saver(run.checkpoints, config.save, world, place) as saver,
            ):
                state = train(run, config, ds_config, world, signalled, saver, place)
                barrier()  # nobody leaves before everybody has written: a launcher kills the slower ranks
                if world.is_main:
                    run.write_state(state)
                    record_event(run.path, state, signalled=signalled.is_set())
    except BaseException as error:
        # A rank that was cut off only says that another one is gone, which says by itself why, or could not.
        if run.state != "stuck" and not was_cut_off(error):
            run.write_state("failed")
        said = f"{type(error).__name__}: {error}"
        record_event(run.path, "failed", rank=world.rank, host=node_name(), error=said)
        if not isinstance(error, ShardtuneError):
            raise
        run.write_mistake(error)  # for whoever started the ranks; a launcher may lose the exit code
        print(error, file=sys.stderr)
        return error.exit_code
    torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    # Taking apart an interpreter with torch in it costs seconds, and now and then aborts a rank whose work is done.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
