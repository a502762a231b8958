"""How fast a step was, and what memory its rank holds."""

import deepspeed
import psutil
from deepspeed.accelerator import get_accelerator

from training.clock import Clock
from training.step import StepResult


def speed(
    engine: deepspeed.DeepSpeedEngine,
    clock: Clock,
    result: StepResult,
    *,
    num_targets: int,
) -> dict[str, float]:
    """Return the step's tokens per second and its teraflops per second, over all ranks.

    A training step costs 6 operations for each parameter and token (4 if it is not trained), and 6 x layers x width
    for each squared token of a document's causal attention (PaLM, appendix B, halved for causality).
    """
    hf_config = engine.module.hf.config
    head_dim = getattr(hf_config, "head_dim", None) or hf_config.hidden_size // hf_config.num_attention_heads
    attention = (
        6 * hf_config.num_hidden_layers * hf_config.num_attention_heads * head_dim * result.num_squares
    )
    operations = sum((4 + 2 * p.requires_grad) * p.ds_numel for p in engine.module.parameters())
    seconds = clock.seconds()
    return {
        "speed/tokens_per_second": result.num_tokens / seconds,
        "speed/target_tokens_per_second": num_targets / seconds,
        "speed/teraflops_per_second": (operations * result.num_tokens + attention) / seconds / 1e12,
    }


def memory() -> dict[str, float]:
    """Return the memory of this rank: resident on the host, and the most that was taken on the device."""
    used = {"memory/host_gib": psutil.Process().memory_info().rss / 2**30}
    if get_accelerator().device_name() != "cpu":
        used["memory/device_peak_gib"] = get_accelerator().max_memory_allocated() / 2**30
    return used
