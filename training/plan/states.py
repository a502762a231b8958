"""The bytes of a rank that are there for the whole run: weights, gradients, optimizer states, fixed buffers.

Where each lies was read from DeepSpeed 0.19.8's runtime/zero/stage3.py and runtime/swap_tensor, and measured: see
docs/plan.md. g below is the number of elements that a rank keeps of the weights that are trained.
"""

import math
from collections.abc import Iterator

from training.plan.job import Job, Need
from training.plan.weights import Weight

MIB = 2**20
ACCUMULATED = 4  # bytes of an element of a step's gradient: data_types.grad_accum_dtype is fp32

# What a rank's process holds before it has a model. The CPU's was measured (docs/plan.md); the others were not.
CPU_PROCESS = 380 * MIB
GPU_PROCESS = 2048 * MIB
GPU_CONTEXT = 1536 * MIB
# DeepSpeed's buffers in shared memory, between the CPU ranks of a node (csrc/cpu/comm/shm.cpp).
SHARED_BUFFERS = 66 * MIB


def process_needs(job: Job) -> Iterator[Need]:
    """Yield what a rank's process needs by itself, whatever it trains."""
    if job.on_gpu:
        yield Need("gpu", "context", GPU_CONTEXT, "CUDA context, NCCL, allocator (not measured on a GPU)")
        yield Need("host", "process", GPU_PROCESS, "Python, torch, CUDA's host side (not measured on a GPU)")
    else:
        yield Need("host", "process", CPU_PROCESS, "Python, torch, DeepSpeed, transformers")
        yield Need("host", "buffers", SHARED_BUFFERS, "shared memory between the ranks of a node")


def state_needs(job: Job) -> Iterator[Need]:
    """Yield what a rank needs on each tier for the model and its training, as long as the run lasts."""
    yield from _weights(job)
    yield from _gradients(job)
    yield from _optimizer(job)
    if job.on_gpu and job.zero.contiguous_gradients:
        bucket = job.zero.reduce_bucket * job.communication
        yield Need("gpu", "buffers", bucket, "gradients collected for reduction (reduce_bucket_size)")


def pinned(job: Job, size: int, *, wanted: bool) -> int:
    """Return the bytes that torch takes for a pinned block: the next power of two; other memory is exact."""
    return 1 << (size - 1).bit_length() if wanted and job.on_gpu and size > 0 else size


def _weights(job: Job) -> Iterator[Need]:
    plain = tuple(weight for weight in job.weights if not weight.quantised)
    quantised = [weight for weight in job.weights if weight.quantised]
    where, element = job.zero.param, job.element
    whole = sum(weight.numel for weight in plain if job.persists(weight)) * element
    yield Need(job.device, "weights", whole, "small weights, whole on every rank")
    if quantised:
        numel = sum(weight.numel for weight in quantised)
        # nf4: a half byte each, in parts; a scale for 64 of them, whole on every rank, in 1 byte or in 4.
        double = bool(getattr(job.config.tuning, "double_quant", False))
        tier = "host" if where == "cpu" else job.device
        yield Need(tier, "weights", numel // 2 // job.world_size, "frozen weights in 4 bits")
        yield Need(job.device, "weights", numel // 64 * (1 if double else 4), "their scales, on every rank")
    if job.zero.secondary_ranks > 1:
        copy = sum(weight.numel for weight in plain) * element // job.zero.secondary_ranks
        yield Need(job.device, "weights", copy, "second copy within the node (zero_hpz_partition_size)")
    for weights, name in (
        (tuple(w for w in plain if w.trained), "trained weights"),
        (tuple(w for w in plain if not w.trained), "frozen weights"),
    ):
        size = job.parts(weights) * element
        if where == "none":
            yield Need(job.device, "weights", size, name)
        elif where == "cpu":
            yield Need("host", "weights", pinned(job, size, wanted=job.zero.pinned_param), name)
        else:
            yield from _swapped_weights(job, weights, name)


def _swapped_weights(job: Job, weights: tuple[Weight, ...], name: str) -> Iterator[Need]:
    element, zero = job.element, job.zero
    swapped = [job.part(weight) for weight in weights if job.swaps(job.part(weight), element)]
    yield Need("nvme", "weights", sum(swapped) * element, name)
    yield Need("host", "weights", (job.parts(weights) - sum(swapped)) * element, f"{name} too small to swap")
    if not weights:
        return
    if weights[0].trained:
        kept = min(job.parts(weights), zero.max_in_cpu) * element
        what = "trained weights kept in memory all the same (max_in_cpu)"
        yield Need("host", "buffers", pinned(job, kept, wanted=zero.pinned_param), what)
        if job.parts(weights) > zero.max_in_cpu:
            reserve = max(job.sub_groups) * element
            yield Need("host", "buffers", reserve, "updated weights on their way to the disk")
    size = zero.buffer_size or max(job.part(weight) for weight in job.weights)
    if weights[0].trained or not job.trained:
        what = f"{zero.param_buffers} buffers for weights from the disk (buffer_count)"
        yield Need("host", "buffers", size * zero.param_buffers * element, what)


def _gradients(job: Job) -> Iterator[Need]:
    numel = sum(job.sub_groups)
    tier = job.device if job.zero.optimizer == "none" else "host"
    size = pinned(job, numel * ACCUMULATED, wanted=tier != job.device and job.zero.pinned_optimizer)
    yield Need(tier, "gradients", size, "the step's gradient, added up in float32")
    if job.zero.optimizer == "none":
        return
    element = 4 if job.config.optim.states == "fp32" else 2
    kept = swapped = 0
    for size in job.sub_groups:
        if job.zero.optimizer == "nvme" and job.swaps(size, element):
            swapped += size * element
        else:
            kept += pinned(job, size * element, wanted=job.zero.pinned_optimizer)
    yield Need("host", "gradients", kept, "the gradient that the optimizer is given")
    yield Need("nvme", "gradients", swapped, "the gradient that the optimizer is given")


def state_bytes(job: Job) -> int:
    """Return the bytes of the optimizer's states for one element, without its master weight."""
    optim = job.config.optim
    moment = 2 if optim.states == "bf16" else 4
    if optim.name == "adamw":
        return 2 * moment
    if optim.name == "adamw8bit":
        return 2  # and for 256 weights two scales, which come to 1.5 % of them
    if optim.name == "sgd" and optim.momentum == 0:
        return 0
    return 4


def _optimizer(job: Job) -> Iterator[Need]:
    optim, zero = job.config.optim, job.zero
    master = 4 if optim.states == "fp32" else 2
    states = state_bytes(job)
    # Float32 weights on the device are their own master weights.
    shared = zero.optimizer == "none" and zero.param == "none" and job.config.precision == "fp32"
    kept = swapped = 0
    for size in job.sub_groups:
        if zero.optimizer == "nvme" and job.swaps(size, master):
            swapped += size
        else:
            kept += size
    on_device = round(kept * (1 - zero.optimizer_share)) if zero.optimizer == "cpu" else 0
    tier = job.device if zero.optimizer == "none" else "host"
    if on_device:
        size = on_device * (master * 2 + states)
        yield Need(job.device, "optimizer", size, "sub-groups that are not offloaded (ratio)")
    yield Need(tier, "optimizer", 0 if shared else (kept - on_device) * master, "master weights")
    yield Need(tier, "optimizer", (kept - on_device) * states, f"states of {optim.name}")
    if optim.name == "muon":  # AdamW's two moments in place of one, of what Muon leaves to it
        rest = tuple(w for w in job.trained if not w.decays or "embed" in w.name or "lm_head" in w.name)
        yield Need(tier, "optimizer", job.parts(rest) * 4, "second moments of what muon leaves to adamw")
    if job.config.tuning.method == "adalora":
        yield Need(tier, "optimizer", kept * 8, "importance of ranks")
    yield Need("nvme", "optimizer", swapped * master, "master weights")
    yield Need("nvme", "optimizer", swapped * states, f"states of {optim.name}")
    if swapped:
        aligned = math.ceil(max(job.sub_groups) / 1024) * 1024
        what = f"{zero.optimizer_buffers} buffers for sub-groups from the disk (buffer_count)"
        yield Need("host", "buffers", aligned * master * zero.optimizer_buffers, what)
