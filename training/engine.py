"""The DeepSpeed engine of a run: built, put where the run stands, and driven by the optimizer's settings."""

import importlib
import inspect
import logging
from typing import Any

import deepspeed
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.runtime import compiler

from data_tools.errors import RunError
from data_tools.shards import Shards
from training.adam8bit import Adam8bit
from training.attention import check_documents_apart
from training.checkpoint import load_checkpoint
from training.checkpoint_files import CheckpointReader, finished_checkpoints
from training.config import RunConfig
from training.distributed import World
from training.lion import Lion
from training.model import PackedCausalLM, load_model
from training.optim import keep_rates_apart, parameter_groups, set_learning_rate
from training.run_folder import RunFolder
from training.standing import Standing
from training.twinflow import copy_rates

logger = logging.getLogger(__name__)


def build_engine(
    config: RunConfig, ds_config: dict[str, Any], world: World, *, vocab_size: int
) -> deepspeed.DeepSpeedEngine:
    """Return the engine with the run's model in partitions, after the self-test of packed attention."""
    assert world.sequence_size == config.batch.sequence_parallel
    logger.info("loading %s on %d ranks", config.model, world.size)
    model = load_model(config, ds_config, world, vocab_size=vocab_size)
    engine = initialize(model, config, ds_config)
    check_documents_apart(engine, vocab_size=vocab_size)
    _forget_order_of_modules(engine)  # of the self-test's forwards, which no backward followed
    return engine


def initialize(
    model: torch.nn.Module, config: RunConfig, ds_config: dict[str, Any]
) -> deepspeed.DeepSpeedEngine:
    """Return the engine that trains `model` with the run's optimizer."""
    optim = config.optim
    groups = parameter_groups(model, optim, prefix=PackedCausalLM.PREFIX)
    ours: torch.optim.Optimizer | None = None  # else DeepSpeed makes it, from its configuration
    if optim.name == "lion":
        ours = Lion(groups, lr=optim.lr, betas=optim.betas, weight_decay=0.0)
    elif optim.name == "adamw8bit":
        ours = Adam8bit(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=0.0)
    if optim.name != "muon":
        _load_muon_uncompiled()
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=ours,
        model_parameters=groups if ours is None else None,
        config=ds_config,
    )
    keep_rates_apart(engine.optimizer.param_groups, optim)
    _mend_nvme_prefetch(engine)
    _mend_forgetting(engine)
    return engine


def _load_muon_uncompiled() -> None:
    """Spare a run without Muon torch's compiler: two seconds of each start.

    DeepSpeed 0.19.8 loads its Muon to see that the optimizer is another one, and what is to be compiled there loads the
    compiler at once.
    """
    compiled = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = compiled


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


def _mend_forgetting(engine: deepspeed.DeepSpeedEngine) -> None:
    """Let DeepSpeed 0.19.8 forget, with an order of modules that turned out wrong, what it has worked out from it.

    From the first forward and backward it learns after which module a weight is not needed any more, and gathers
    weights ahead, many at once. It begins anew when other modules come, but keeps its answers in a cache: after a
    forward alone each weight would be let go after every use and gathered alone for the next, to the end of the run.
    """
    coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
    forget = coordinator._invalidate_trace
    decorated = type(coordinator)._PartitionedParameterCoordinator__params_to_release
    answers = inspect.getclosurevars(decorated).nonlocals["func"]  # an lru_cache

    def forget_all() -> None:
        forget()
        answers.cache_clear()

    coordinator._invalidate_trace = forget_all


def _forget_order_of_modules(engine: deepspeed.DeepSpeedEngine) -> None:
    coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
    if coordinator.is_complete_trace():
        coordinator._invalidate_trace()


def resume(
    engine: deepspeed.DeepSpeedEngine, run: RunFolder, config: RunConfig, shards: Shards, world: World
) -> Standing:
    """Load the newest finished checkpoint, if there is one; return where the run stands.

    Raises RunError if it was made from other shards.
    """
    finished = finished_checkpoints(run.checkpoints)
    if not finished:
        return Standing.beginning(config)
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
    return Standing.of(progress, config)


def prepare_step(engine: deepspeed.DeepSpeedEngine, *, lr: float) -> None:
    """Set the learning rate of the next optimizer step, and make its bias correction a function of the step alone.

    DeepSpeedCPUAdam keeps β^step as a running product and raises β to the power after a resume: the last bit
    differs, and with it every weight from there on. An update that counts as step 0 makes it take the power always.
    """
    set_learning_rate(engine.optimizer.param_groups, lr)
    copy_rates(engine.optimizer)
    optimizer = engine.optimizer.optimizer
    adam = getattr(optimizer, "aux_optimizer", optimizer)  # Muon's, for the weights that it does not update
    if isinstance(adam, DeepSpeedCPUAdam):
        beta1, beta2 = adam.param_groups[0]["betas"]
        unused = [torch.zeros(1) for _ in range(4)]
        adam.ds_opt_adam.adam_update(adam.opt_id, 0, 0.0, beta1, beta2, 1.0, 0.0, False, *unused)
