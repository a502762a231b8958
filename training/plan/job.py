"""What memory is computed from: one rank's share of a run, all of it numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from training.allocator import HEAP_BLOCK
from training.config import RunConfig
from training.plan.weights import ModelShape, Weight, read_shape, run_weights
from training.plan.zero import ZeroSettings, read_zero_settings

TierName = Literal["gpu", "host", "nvme"]
WIDEST_HOLE = 32 * 2**20  # of the heap, about; larger blocks are mapped by themselves
DTYPE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that one rank needs on a tier. `device` of a CPU rank is its host."""

    tier: TierName
    kind: str
    bytes: int
    what: str


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on a rank's device: all, and of a rank on CPUs those in small and in medium blocks (see heap.py)."""

    bytes: int = 0
    small: int = 0
    medium: int = 0

    def __add__(self, other: "Memory") -> "Memory":
        """Return both together."""
        return Memory(self.bytes + other.bytes, self.small + other.small, self.medium + other.medium)

    def __sub__(self, other: "Memory") -> "Memory":
        """Return this without the other, which is part of it."""
        return Memory(self.bytes - other.bytes, self.small - other.small, self.medium - other.medium)

    def __mul__(self, times: float) -> "Memory":
        """Return so many of it."""
        return Memory(round(self.bytes * times), round(self.small * times), round(self.medium * times))

    @property
    def in_heap(self) -> int:
        """Return the bytes in blocks that may lie in the heap."""
        return self.small + self.medium


NOTHING = Memory()


@dataclass(frozen=True, slots=True)
class Job:
    """A run as one of its ranks sees it.

    row_tokens, row_targets: the most of one micro-batch. row_documents: usual number of its documents.
    """

    config: RunConfig
    shape: ModelShape
    weights: tuple[Weight, ...]
    zero: ZeroSettings
    world_size: int
    on_gpu: bool
    row_tokens: int
    row_targets: int
    row_documents: int

    @property
    def device(self) -> TierName:
        """Return the tier that the ranks compute on."""
        return "gpu" if self.on_gpu else "host"

    @property
    def element(self) -> int:
        """Return the bytes of an element of weights and activations."""
        return DTYPE_BYTES[self.config.precision]

    @property
    def communication(self) -> int:
        """Return the bytes of an element of gradients on their way between ranks."""
        named = "fp32" if self.config.optim.name == "muon" else self.zero.communication
        return DTYPE_BYTES.get(str(named), self.element)

    @property
    def trained(self) -> tuple[Weight, ...]:
        """Return the weights that are trained."""
        return tuple(weight for weight in self.weights if weight.trained)

    def part(self, weight: Weight) -> int:
        """Return the elements of a weight that this rank keeps; ZeRO-3 rounds up."""
        return math.ceil(weight.numel / self.world_size)

    def parts(self, weights: tuple[Weight, ...]) -> int:
        """Return the elements that this rank keeps of several weights."""
        return sum(self.part(weight) for weight in weights)

    def persists(self, weight: Weight) -> bool:
        """Return whether every rank always has the whole of a weight."""
        return weight.numel <= self.zero.persistence

    @property
    def sub_groups(self) -> tuple[int, ...]:
        """Return the elements of the sub-groups that the optimizer updates one after the other, of this rank."""
        groups: dict[tuple[bool, str], list[int]] = {}
        optim = self.config.optim
        for weight in self.trained:
            decays = bool(optim.weight_decay) and weight.decays
            layer = weight.name.split(".layers.")[-1].split(".")[0] if optim.layer_decay != 1 else ""
            groups.setdefault((decays, layer), []).append(self.part(weight))
        sizes = []
        for parts in groups.values():
            size = 0
            for part in parts:
                size += part
                if size >= self.zero.sub_group:
                    sizes.append(size)
                    size = 0
            if size:
                sizes.append(size)
        return tuple(sizes)

    def block(self, size: int) -> Memory:
        """Return a block of so many bytes on this rank's device."""
        small = not self.on_gpu and size < HEAP_BLOCK
        medium = not self.on_gpu and HEAP_BLOCK <= size < WIDEST_HOLE
        return Memory(size, size * small, size * medium)

    def swaps(self, numel: int, element: int) -> bool:
        """Return whether a tensor is large enough that DeepSpeed swaps it to a disk."""
        return numel * element >= self.zero.swap_bytes


def make_job(
    config: RunConfig,
    ds_config: Mapping[str, Any],
    *,
    world_size: int,
    on_gpu: bool,
    vocab_size: int | None,
    row_tokens: int,
    row_targets: int,
    row_documents: int,
) -> Job:
    """Return the job of a rank; vocab_size: of the shards, for `resize_embeddings`. Raises RunError for the model."""
    shape = read_shape(config.model, vocab_size=vocab_size if config.resize_embeddings else None)
    return Job(
        config=config,
        shape=shape,
        weights=run_weights(config, shape),
        zero=read_zero_settings(ds_config),
        world_size=world_size,
        on_gpu=on_gpu,
        row_tokens=row_tokens,
        row_targets=row_targets,
        row_documents=row_documents,
    )
