"""The DeepSpeed engine of a run: built, put where the run stands, and driven by the optimizer's settings."""

import logging
from typing import Any

import deepspeed
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam

from data_tools.errors import RunError
from data_tools.shards import Shards
from training.checkpoint import load_checkpoint
from training.checkpoint_files import CheckpointReader, finished_checkpoints
from training.config import RunConfig
from training.distributed import World
from training.model import check_documents_apart, load_model
from training.optim import parameter_groups
from training.run_folder import RunFolder

logger = logging.getLogger(__name__)


def build_engine(
    config: RunConfig, ds_config: dict[str, Any], world: World, *, vocab_size: int
) -> deepspeed.DeepSpeedEngine:
    """Return the engine with the run's model in partitions, after the self-test of packed attention."""
    logger.info("loading %s on %d ranks", config.model, world.size)
    model = load_model(config, ds_config, world)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=parameter_groups(model, config.optim.weight_decay),
        config=ds_config,
    )
    _mend_nvme_prefetch(engine)
    check_documents_apart(engine, vocab_size=vocab_size)
    return engine


def _mend_nvme_prefetch(engine: deepspeed.DeepSpeedEngine) -> None:
    """Let DeepSpeed 0.19.8 ask for a parameter twice when it reads ahead from NVMe.

    With activation checkpointing the last layers are wanted twice in a row, in the forward and in the
    recomputation, and its swapper asserts that a list of parameters to read holds each of them once.
    """
    swappers = {id(p.nvme_swapper): p.nvme_swapper for p in engine.module.parameters() if p.nvme_swapper}
    for swapper in swappers.values():
        read = swapper.swap_in
        swapper.swap_in = lambda params, *options, read=read, **named: read(
            list(dict.fromkeys(params)), *options, **named
        )


def resume(
    engine: deepspeed.DeepSpeedEngine, run: RunFolder, shards: Shards, world: World
) -> tuple[int, int]:
    """Load the newest finished checkpoint, if there is one; return the steps done and the packs consumed.

    Raises RunError if it was made from other shards.
    """
    finished = finished_checkpoints(run.checkpoints)
    if not finished:
        return 0, 0
    reader = CheckpointReader(finished[-1])
    progress = reader.progress
    if progress.shards_fingerprint != shards.fingerprint:
        raise RunError(
            f"{reader.folder}: made from other shards: got fingerprint {progress.shards_fingerprint}; expected "
            f"{shards.fingerprint}; give the run another name"
        )
    load_checkpoint(engine, reader, world)
    logger.info(
        "continued from %s, saved by %d ranks, on %d ranks", reader.folder, progress.world_size, world.size
    )
    return progress.step, progress.packs_consumed


def prepare_step(engine: deepspeed.DeepSpeedEngine, *, lr: float) -> None:
    """Set the learning rate of the next optimizer step, and make its bias correction a function of the step alone.

    DeepSpeedCPUAdam keeps β^step as a running product and raises β to the power after a resume: the last bit
    differs, and with it every weight from there on. An update that counts as step 0 makes it take the power always.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    adam = engine.optimizer.optimizer
    if isinstance(adam, DeepSpeedCPUAdam):
        beta1, beta2 = adam.param_groups[0]["betas"]
        unused = [torch.zeros(1) for _ in range(4)]
        adam.ds_opt_adam.adam_update(adam.opt_id, 0, 0.0, beta1, beta2, 1.0, 0.0, False, *unused)
