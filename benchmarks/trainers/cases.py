"""The cases that are measured, and what memory each needs by arithmetic: for a look before a machine is paid for."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.trainers.project import ROOT, Shape

Tier = Literal["none", "optimizer_cpu", "cpu", "optimizer_nvme", "nvme"]

# Tier: its file of ds_configs/, and what the tables call it.
TIERS: dict[Tier, tuple[str, str]] = {
    "none": ("zero3", "no offload"),
    "optimizer_cpu": ("zero3_offload_optimizer", "optimizer on CPU"),
    "cpu": ("zero3_offload_cpu", "both on CPU"),
    "optimizer_nvme": ("zero3_offload_nvme", "optimizer on NVMe"),
    "nvme": ("zero3_offload_nvme", "both on NVMe"),
}

# Small enough for a step of about a second on two cores; the embeddings are a share of the weights as in large models.
SMALL = Shape(hidden=384, intermediate=1024, layers=4, heads=6, kv_heads=6, vocabulary=2048)
# Wide for its few layers: a rank's part of a matrix is larger than the MiB below which DeepSpeed swaps nothing out.
WIDE = Shape(hidden=1024, intermediate=2816, layers=2, heads=8, kv_heads=8, vocabulary=2048)
LLAMA_7B = Shape(hidden=4096, intermediate=11008, layers=32, heads=32, kv_heads=32, vocabulary=32000)
LLAMA_3B = Shape(
    hidden=3072, intermediate=8192, layers=28, heads=24, kv_heads=8, vocabulary=128256, tied=True
)
TINY = Shape(hidden=64, intermediate=128, layers=2, heads=4, kv_heads=4, vocabulary=2048)


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement: a model, where its states lie, and the size of a step. limit_seconds: with the start."""

    name: str
    shape: Shape
    tier: Tier
    packs_per_step: int
    micro_packs: int
    states: str = "fp32"
    module: str = "shardtune"
    env: tuple[tuple[str, str], ...] = ()
    pin_optimizer: bool = True
    rounds: int = 3  # the first one is not counted
    limit_seconds: int = 120

    def ds_config(self, nvme: Path) -> dict[str, Any]:
        """Return the DeepSpeed file of the tier, with swap files below `nvme`."""
        path = ROOT / "ds_configs" / f"{TIERS[self.tier][0]}.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        zero = found["zero_optimization"]
        if self.tier == "optimizer_nvme":
            del zero["offload_param"]
        for section in (zero.get("offload_param", {}), zero.get("offload_optimizer", {})):
            if "nvme_path" in section:
                section["nvme_path"] = str(nvme)
        if not self.pin_optimizer:
            zero["offload_optimizer"]["pin_memory"] = False
        return found

    def memory_gib(self, seq_len: int) -> dict[str, float]:
        """Return what one rank needs on device, host and NVMe, in GiB; see `_state_bytes` and `_working_bytes`."""
        device, host, nvme = _state_bytes(self)
        host += 3 * 2**30  # the process itself: Python, torch, CUDA's libraries
        device += _working_bytes(self, seq_len)
        return {"device": device / 2**30, "host": host / 2**30, "nvme": nvme / 2**30}


def _state_bytes(case: Case) -> tuple[float, float, float]:
    """Return the bytes of weights, gradients and optimizer states on device, host and NVMe, with one rank.

    bf16 weights 2; gradients added up in fp32 4; master weights 4 and moments 8, or with bf16 states 2 and 4; an
    offloaded optimizer has a gradient of its own, 4 or 2.
    """
    number = case.shape.num_parameters
    weights, added_up = 2 * number, 4 * number
    states = (6 if case.states == "bf16" else 12) * number
    own_gradient = (2 if case.states == "bf16" else 4) * number
    if case.tier == "none":
        return weights + added_up + states, 0, 0
    if case.tier == "optimizer_cpu":
        return weights, states + own_gradient + added_up, 0
    if case.tier == "cpu":
        return 0, weights + states + own_gradient + added_up, 0
    zero = case.ds_config(Path("/"))["zero_optimization"]
    buffers = 4 * zero["offload_optimizer"]["buffer_count"] * zero["sub_group_size"]
    if case.tier == "optimizer_nvme":
        return weights, added_up + buffers, states + own_gradient
    held = 2 * zero["offload_param"]["max_in_cpu"]
    return 0, added_up + buffers + held, states + own_gradient + weights


def _working_bytes(case: Case, seq_len: int) -> float:
    """Return about what a step takes on the device beside the states, with activation checkpointing.

    The input of each layer is kept; of one layer at a time everything is, forward and backward; 1024 positions have
    logits at a time; DeepSpeed gathers layers ahead and has buckets.
    """
    shape, zero = case.shape, case.ds_config(Path("/"))["zero_optimization"]
    tokens = case.micro_packs * seq_len
    inputs = 2 * shape.hidden * shape.layers * tokens
    layer = 2 * 2 * (7 * shape.hidden + 4 * shape.intermediate) * tokens
    logits = 10 * shape.vocabulary * 1024
    gathered = 2 * min(zero["stage3_max_live_parameters"], shape.num_parameters)
    buckets = 2 * (zero["stage3_prefetch_bucket_size"] + 2 * zero["reduce_bucket_size"])
    # Without offload the update works on one sub-group: its gradient in fp32 and what torch's AdamW needs beside it.
    update = 3 * 4 * min(zero["sub_group_size"], shape.num_parameters) if case.tier == "none" else 0
    return float(max(inputs + layer + logits + gathered, update) + buckets)


# One H200 (139 GiB), 16 cores, 128 GiB of memory, 64 GiB of disk; packs of 4096 tokens. Those that matter most first,
# since the time may run out. With bf16 states the optimizer is not pinned: torch rounds a pinned block up to a power of
# two, and these would not fit any more.
GPU_SEQ_LEN = 4096
GPU_CASES = (
    Case("6.74B no offload", LLAMA_7B, "none", 16, 2, rounds=4, limit_seconds=120),
    Case("3.2B no offload", LLAMA_3B, "none", 64, 8, limit_seconds=100),
    Case("3.2B optimizer on CPU", LLAMA_3B, "optimizer_cpu", 64, 8, limit_seconds=130),
    Case("3.2B both on CPU", LLAMA_3B, "cpu", 64, 8, limit_seconds=130),
    Case(
        "6.74B both on CPU bf16 states",
        LLAMA_7B,
        "cpu",
        packs_per_step=64,
        micro_packs=8,
        states="bf16",
        pin_optimizer=False,
        rounds=2,
        limit_seconds=180,
    ),
    Case("3.2B optimizer on NVMe", LLAMA_3B, "optimizer_nvme", 64, 8, rounds=2, limit_seconds=180),
    Case("6.74B no offload bare", LLAMA_7B, "none", 16, 2, module="bare", limit_seconds=90),
    Case(
        "6.74B no offload TRL our attention",
        LLAMA_7B,
        "none",
        packs_per_step=16,
        micro_packs=2,
        module="trl_sft",
        env=(("BENCHMARK_ATTENTION", "packed"),),
        limit_seconds=90,
    ),
)


def tier_cases() -> tuple[Case, ...]:
    """Return the cases of all offload tiers on CPU ranks."""
    return tuple(
        Case(label, WIDE, tier, 4, 1, rounds=8, limit_seconds=150) for tier, (_, label) in TIERS.items()
    )
