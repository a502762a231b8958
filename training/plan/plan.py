"""The plan of a run: what it needs on each tier, whether that is there, how many steps it takes, what a save costs.

Arithmetic on config.json, run.yaml, a file of ds_configs and the shards' index. GPU figures were not measured on a GPU.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_tools.errors import RunError
from training.config import RunConfig, accumulation, derive_steps
from training.plan.activations import activations
from training.plan.heap import free_in_heap, heap_size
from training.plan.job import Job, Need, TierName, make_job
from training.plan.moments import moments
from training.plan.states import process_needs, state_bytes, state_needs

if TYPE_CHECKING:
    from data_tools.shards import Shards

GIB = 2**30
TIERS: tuple[TierName, ...] = ("gpu", "host", "nvme")
TIER_WORDS = {"gpu": "one GPU", "host": "the host of one node", "nvme": "the NVMe of one node"}


@dataclass(frozen=True, slots=True)
class Ranks:
    """Where a run's ranks are; without GPUs `per_node` is the number of CPU ranks."""

    nodes: int
    per_node: int
    on_gpu: bool

    @property
    def size(self) -> int:
        """Return the number of ranks."""
        return self.nodes * self.per_node


@dataclass(frozen=True, slots=True)
class Tiers:
    """Bytes that there are on one GPU, on the host of one node and on its NVMe; None = not known, not judged."""

    gpu: int | None = None
    host: int | None = None
    nvme: int | None = None

    def size(self, tier: TierName) -> int | None:
        """Return what there is of a tier."""
        return {"gpu": self.gpu, "host": self.host, "nvme": self.nvme}[tier]


@dataclass(frozen=True, slots=True)
class Misfit:
    """A tier that is too small, in bytes."""

    tier: TierName
    needed: int
    available: int

    def __str__(self) -> str:
        return (
            f"{TIER_WORDS[self.tier]} is too small: needs {self.needed / GIB:,.2f} GiB of "
            f"{self.available / GIB:,.2f} GiB, {(self.needed - self.available) / GIB:,.2f} GiB more than there are"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run needs and takes.

    needs: bytes by tier and kind; a GPU's are of one rank, a host's and a disk's of all ranks of a node. moment: when a
    rank's memory is highest. parameters, trained: numbers of weights. num_steps: None without shards or `steps`.
    row_tokens, row_targets: the most of one micro-batch. tokens_per_step: the mean. checkpoint_bytes: of all ranks.
    """

    ranks: Ranks
    tiers: Tiers
    needs: tuple[Need, ...]
    moment: str
    micro_packs: int
    accumulation: int
    row_tokens: int
    row_targets: int
    parameters: int
    trained: int
    num_steps: int | None
    tokens_per_step: float
    flops_per_step: float
    checkpoint_bytes: int

    def needed(self, tier: TierName) -> int:
        """Return the bytes needed on a tier."""
        return sum(need.bytes for need in self.needs if need.tier == tier)

    @property
    def misfit(self) -> Misfit | None:
        """Return the first tier that is too small, or None."""
        for tier in TIERS:
            size, needed = self.tiers.size(tier), self.needed(tier)
            if size is not None and needed > size:
                return Misfit(tier, needed, size)
        return None

    @property
    def fits(self) -> bool:
        """Return whether no tier of a known size is too small."""
        return self.misfit is None

    def __str__(self) -> str:
        said = []
        for tier in TIERS:
            needed, size = self.needed(tier), self.tiers.size(tier)
            if needed:
                there = "" if size is None else f" of {size / GIB:,.2f}"
                said.append(f"{TIER_WORDS[tier]} {needed / GIB:,.2f}{there} GiB")
        return f"{self.micro_packs} packs in a forward need {', '.join(said)}"

    def save_seconds(self, bytes_per_second: float) -> float:
        """Return how long a checkpoint takes at this speed of the disk, all ranks together."""
        return self.checkpoint_bytes / bytes_per_second


def plan_run(
    config: RunConfig,
    ds_config: Mapping[str, Any],
    shards: "Shards | None",
    ranks: Ranks,
    tiers: Tiers,
    *,
    seq_len: int | None = None,
) -> Plan:
    """Return the plan of a run whose `batch.micro_packs` is a number.

    seq_len: of the packs, where there are no shards yet; every token is then taken for a target. Raises RunError for a
    model that cannot be planned, and a step that cannot be shared out.
    """
    micro = config.batch.packs_per_forward
    rounds = accumulation(config, ranks.size)
    tokens, targets, documents = _largest_row(shards, seq_len, micro)
    job = make_job(
        config,
        ds_config,
        world_size=ranks.size,
        on_gpu=ranks.on_gpu,
        vocab_size=None if shards is None else shards.vocab_size,
        row_tokens=tokens,
        row_targets=targets,
        row_documents=documents,
    )
    moment, needs = rank_needs(job)
    step_tokens, step_squares = _step_sizes(config, shards, seq_len)
    return Plan(
        ranks=ranks,
        tiers=tiers,
        needs=tuple(_of_node(need, ranks) for need in needs),
        moment=moment,
        micro_packs=micro,
        accumulation=rounds,
        row_tokens=tokens,
        row_targets=targets,
        parameters=sum(weight.numel for weight in job.weights),
        trained=sum(weight.numel for weight in job.trained),
        num_steps=_num_steps(config, shards),
        tokens_per_step=step_tokens,
        flops_per_step=flops(job, tokens=step_tokens, squares=step_squares),
        checkpoint_bytes=_checkpoint_bytes(job),
    )


def rank_needs(job: Job) -> tuple[str, tuple[Need, ...]]:
    """Return the moment at which one rank needs most on its device, and its needs then, on all tiers."""
    acts, there = activations(job), list(moments(job))
    size = heap_size([moment.memory for moment in there], passing=acts.layer * job.shape.layers)
    free = {moment.name: free_in_heap(moment.memory, size) for moment in there}
    most = max(there, key=lambda moment: moment.memory.bytes + free[moment.name])
    needs = [
        *state_needs(job),
        Need(
            job.device,
            "buffers",
            most.buffers.bytes,
            "gathered weights, gradients on their way, copies of them",
        ),
        Need(job.device, "activations", most.activations.bytes, "activations of one micro-batch"),
        Need(job.device, "logits", most.logits.bytes, "logits of one chunk of targets"),
        Need("host", "activations", acts.offloaded, "inputs of layers, until their backward"),
        Need(
            job.device,
            "buffers",
            free[most.name],
            "blocks of the heap that are free and stay with the process",
        ),
    ]
    return most.name, tuple(need for need in (*process_needs(job), *needs) if need.bytes)


def _of_node(need: Need, ranks: Ranks) -> Need:
    """Return a rank's need as that of the tier: a GPU has one rank, a host and its disk have all of the node."""
    return need if need.tier == "gpu" else Need(need.tier, need.kind, need.bytes * ranks.per_node, need.what)


def flops(job: Job, *, tokens: float, squares: float) -> float:
    """Return the floating-point operations of training on tokens in documents of Σ length² = squares.

    6 for each trained weight and token, 4 for each frozen one; 6 x layers x width for each squared token (PaLM,
    appendix B, halved for causality). Recomputed forwards are not counted, as in MFU.
    """
    weights = sum((6 if weight.trained else 4) * weight.numel for weight in job.weights)
    return weights * tokens + 6 * job.shape.layers * job.shape.query * squares


def _largest_row(shards: "Shards | None", seq_len: int | None, micro: int) -> tuple[int, int, int]:
    """Return the most tokens, the most targets and the usual documents of a micro-batch of `micro` packs."""
    if shards is None:
        if seq_len is None:
            raise RunError("shards: there are none yet; say how long packs are: --seq-len 4096")
        return micro * seq_len, micro * seq_len, micro
    split = shards.splits["train"]
    most = [sorted(values.tolist())[-micro:] for values in (split.tokens, split.target_tokens)]
    # A run of fewer packs than a micro-batch takes sees some of them again.
    tokens, targets = (math.ceil(sum(values) * micro / len(values)) for values in most)
    return tokens, targets, math.ceil(micro * split.num_documents / split.num_packs)


def _step_sizes(config: RunConfig, shards: "Shards | None", seq_len: int | None) -> tuple[float, float]:
    """Return the mean tokens of a step, and its Σ length² if all documents of a pack were alike."""
    packs = config.batch.packs_per_step
    if shards is None:
        assert seq_len is not None
        return float(packs * seq_len), float(packs * seq_len**2)
    split = shards.splits["train"]
    tokens = packs * float(split.tokens.mean())
    return tokens, tokens * float(split.tokens.sum()) / split.num_documents


def _num_steps(config: RunConfig, shards: "Shards | None") -> int | None:
    if config.steps is not None:
        return config.steps
    return None if shards is None else derive_steps(config, shards.splits["train"].num_packs)


def _checkpoint_bytes(job: Job) -> int:
    """Return the bytes of one checkpoint: master weights and optimizer states of what is trained."""
    states = state_bytes(job)
    if job.config.optim.name == "muon":
        rest = sum(w.numel for w in job.trained if not w.decays or "embed" in w.name or "lm_head" in w.name)
    else:
        rest = 0
    master = 4 if job.config.optim.states == "fp32" else 2
    if job.config.optim.name == "adamw8bit":
        states = 8  # they are saved as float32, for any number of ranks
    return sum(weight.numel for weight in job.trained) * (master + states) + 4 * rest
