"""What is logged of a step: how it went, how fast it was, and what memory its rank holds."""

from collections.abc import Iterator, Sequence

import deepspeed
import psutil
import torch
from deepspeed.accelerator import get_accelerator

from data_tools.shards import Shards
from training.adversarial import pass_weights
from training.clock import Clock
from training.config import RunConfig
from training.feed import StepPlan
from training.health import Health
from training.monitoring.peaks import peak_teraflops
from training.monitoring.sources import SourcesSeen
from training.monitoring.trend import Trend
from training.step import StepResult


def step_metrics(
    engine: deepspeed.DeepSpeedEngine,
    config: RunConfig,
    shards: Shards,
    plan: StepPlan,
    result: StepResult,
    *,
    health: Health,
    trend: Trend,
    seen: SourcesSeen | None,
    lr: float,
    clock: Clock,
    rank_seconds: Sequence[float],
    stall_seconds: float,
) -> dict[str, float]:
    """Return the metrics of a training step.

    seen: None on ranks that log nothing. rank_seconds: of each rank, from the step's beginning until it was ready.
    stall_seconds: for how long the step stood still for saving.
    """
    num_passes = len(pass_weights(config.loss.adversarial))
    speeds = speed(engine, clock, result, num_targets=plan.num_targets, num_passes=num_passes)
    return {
        "train/loss": result.loss,
        "train/lr": lr,
        "train/grad_norm": result.grad_norm,
        "train/epoch": plan.consumed / shards.splits["train"].num_packs,
        "health/skipped_steps": health.skipped_steps,
        **trend.metrics(config.optim.clip),
        **({"health/loss_scale": engine.module.loss_scale.scale} if config.precision == "fp16" else {}),
        **slowest_rank(rank_seconds),
        **(seen.metrics(plan.consumed) if seen is not None else {}),
        "data/pack_fill": result.num_tokens / (len(plan.slots) * shards.seq_len),
        **clock.metrics(),
        "time/save_seconds": stall_seconds,
        **speeds,
        **mfu(speeds["speed/teraflops_per_second"], config.precision, world_size=len(rank_seconds)),
        **memory(),
        **offload_memory(engine),
    }


def speed(
    engine: deepspeed.DeepSpeedEngine,
    clock: Clock,
    result: StepResult,
    *,
    num_targets: int,
    num_passes: int = 1,
) -> dict[str, float]:
    """Return the step's tokens per second and its teraflops per second, over all ranks.

    A training step costs 6 operations for each parameter and token (4 if it is not trained), and 6 x layers x width
    for each squared token of a document's causal attention (PaLM, appendix B, halved for causality); adversarial
    training does all of it `num_passes` times, on tokens that count once.
    """
    hf_config = engine.module.hf.config
    head_dim = getattr(hf_config, "head_dim", None) or hf_config.hidden_size // hf_config.num_attention_heads
    attention = (
        6 * hf_config.num_hidden_layers * hf_config.num_attention_heads * head_dim * result.num_squares
    )
    per_token = sum((4 + 2 * p.requires_grad) * p.ds_numel for p in engine.module.parameters())
    operations = num_passes * (per_token * result.num_tokens + attention)
    seconds = clock.seconds()
    return {
        "speed/tokens_per_second": result.num_tokens / seconds,
        "speed/target_tokens_per_second": num_targets / seconds,
        "speed/teraflops_per_second": operations / seconds / 1e12,
    }


def memory() -> dict[str, float]:
    """Return the memory of this rank: resident on the host, and the most that was taken on the device."""
    used = {"memory/host_gib": psutil.Process().memory_info().rss / 2**30}
    if get_accelerator().device_name() != "cpu":
        used["memory/device_peak_gib"] = get_accelerator().max_memory_allocated() / 2**30
    return used


def mfu(teraflops: float, precision: str, *, world_size: int) -> dict[str, float]:
    """Return the share of the devices' peak that a step reached; nothing where the peak is not known, or in fp32."""
    accelerator = get_accelerator()
    if precision == "fp32" or accelerator.device_name() == "cpu":
        return {}
    peak = peak_teraflops(torch.cuda.get_device_name())
    return {} if peak is None else {"speed/mfu": teraflops / (peak * world_size)}


def slowest_rank(seconds: Sequence[float]) -> dict[str, float]:
    """Return which rank was ready last, and the seconds of the last and of the first.

    ZeRO-3 keeps the ranks in step in forward and backward: they differ by their data, and by an optimizer on the host.
    """
    if len(seconds) == 1:
        return {}
    slowest = max(range(len(seconds)), key=seconds.__getitem__)
    return {
        "health/slowest_rank": slowest,
        "time/slowest_rank_seconds": seconds[slowest],
        "time/fastest_rank_seconds": min(seconds),
    }


def offload_memory(engine: deepspeed.DeepSpeedEngine) -> dict[str, float]:
    """Return what this rank keeps in host memory for offload: weights, master weights, optimizer states, gradients.

    Part of `memory/host_gib` once it was touched. What lies on NVMe is not in it.
    """
    zero = engine.optimizer
    if not zero.offload_optimizer and not zero.offload_param:
        return {}
    tensors = {(tensor.data_ptr(), tensor.numel()): tensor for tensor in _kept_tensors(engine)}
    on_host = (tensor.nbytes for tensor in tensors.values() if tensor.device.type == "cpu")
    return {"memory/offload_gib": sum(on_host) / 2**30}


def _kept_tensors(engine: deepspeed.DeepSpeedEngine) -> Iterator[torch.Tensor]:
    """Yield the partitions of weights, the master weights and the optimizer's states of this rank."""
    yield from (parameter.ds_tensor for parameter in engine.module.parameters())
    yield from engine.optimizer.fp32_partitioned_groups_flat
    for state in engine.optimizer.optimizer.state.values():
        yield from (value for value in state.values() if torch.is_tensor(value))
