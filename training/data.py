"""The packs of step N for this rank, as tensors.

The order of packs is an endless sequence: a permutation for each epoch, known from (dataset fingerprint, seed, epoch)
alone. A step takes the next `packs_per_step` positions of it, whatever the number of ranks; this rank's share
follows. So a run's place in its data is one number, the packs consumed.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from data_tools.shards import Pack, Split

Int64Array = npt.NDArray[np.int64]
Uint64Array = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch: whole packs laid end to end in a single row, without padding; or a piece of such a row.

    input_ids, position_ids: int64 [1, T]; positions restart at each document.
    document_lengths: tokens of each document of the whole row, in order; they sum to its T.
    predictors: int64 [N], the positions whose output predicts a target (one before it).
    labels: int64 [N], the target tokens.
    label_tasks: int64 [N], the task that each target belongs to, as indexed in the shards.
    position: that of its first pack in the endless sequence; piece: which one of the row, see `cut_row`. Random numbers
        follow from both.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    document_lengths: tuple[int, ...]
    predictors: torch.Tensor
    labels: torch.Tensor
    label_tasks: torch.Tensor
    position: int = 0
    piece: int = 0

    @property
    def num_tokens(self) -> int:
        """Return the tokens in the whole row."""
        return sum(self.document_lengths)

    @property
    def num_squares(self) -> int:
        """Return Σ length² of the documents, which the cost of their attention grows with."""
        return sum(length**2 for length in self.document_lengths)

    def to(self, device: torch.device) -> "Batch":
        """Return the same batch with its tensors on `device`; from pinned memory without waiting for the copy."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """Return the same batch in memory that a GPU reads by itself."""
        return self._with_tensors(torch.Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        return replace(
            self,
            input_ids=change(self.input_ids),
            position_ids=change(self.position_ids),
            predictors=change(self.predictors),
            labels=change(self.labels),
            label_tasks=change(self.label_tasks),
        )


def _splitmix64(values: Uint64Array) -> Uint64Array:
    """Return the SplitMix64 output for each state (Steele, Lea, Flood 2014): a bijection of 64-bit numbers."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def epoch_permutation(fingerprint: str, seed: int, epoch: int, num_packs: int) -> Int64Array:
    """Return the order of the packs in one epoch, int64 [num_packs].

    Our own algorithm (packs sorted by a keyed hash of their number), because NumPy does not promise that its
    random streams stay the same between versions.
    """
    digest = hashlib.blake2b(f"{fingerprint}:{seed}:{epoch}".encode(), digest_size=8).digest()
    key = np.uint64(int.from_bytes(digest, "little"))
    hashes = _splitmix64(_splitmix64(np.arange(num_packs, dtype=np.uint64)) ^ key)
    return np.argsort(hashes, kind="stable").astype(np.int64)


class PackOrder:
    """The endless sequence of packs of a run; position `p` is pack `order[p]` of the split."""

    def __init__(self, *, fingerprint: str, seed: int, num_packs: int) -> None:
        self.num_packs = num_packs
        # Two epochs: a step may begin in one and end in the next.
        self._permutation = lru_cache(maxsize=2)(
            lambda epoch: epoch_permutation(fingerprint, seed, epoch, num_packs)
        )

    def __getitem__(self, position: int) -> int:
        """Return the number of the pack at `position`, counted from 0 over all epochs."""
        epoch, offset = divmod(position, self.num_packs)
        return int(self._permutation(epoch)[offset])


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in the endless sequence: its pack, and whether it carries weight (fillers do not)."""

    position: int
    pack: int
    weighs: bool


def step_slots(order: PackOrder, *, consumed: int, packs_per_step: int, end: int | None) -> list[Slot]:
    """Return the `packs_per_step` slots of the step that begins after `consumed` packs.

    Positions from `end` on (the last of a run counted in epochs) are filled up with packs of weight 0.
    """
    return [
        Slot(position, order[position], end is None or position < end)
        for position in range(consumed, consumed + packs_per_step)
    ]


def rank_share(
    slots: list[Slot], costs: Sequence[int], *, micro_packs: int, rank: int, world_size: int
) -> list[list[Slot]]:
    """Return this rank's micro-batches of a step, dealt so that no rank waits long for another.

    costs: what each slot's pack costs, in any unit. Slots are cut into groups of `micro_packs` first, the same for any
    number of ranks. The groups are ranked by cost and dealt out in rounds: the ranks work at their k-th micro-batches
    at the same time (ZeRO-3 gathers each layer for all of them), and those are the ones that cost most alike.
    Example: 4 slots of cost 1, 9, 2, 8 for 2 ranks: the first round is slots 1 and 3, the second, which is dealt
    backwards, 2 and 0; rank 0 gets [[1], [0]].
    """
    groups = [slots[start : start + micro_packs] for start in range(0, len(slots), micro_packs)]
    assert len(slots) % (micro_packs * world_size) == 0, (len(slots), micro_packs, world_size)
    sums = [sum(costs[start : start + micro_packs]) for start in range(0, len(slots), micro_packs)]
    ranked = sorted(range(len(groups)), key=lambda group: (-sums[group], group))
    rounds = [ranked[start : start + world_size] for start in range(0, len(groups), world_size)]
    # Backwards and forwards by turns: a rank that had the dearest of one round has the cheapest of the next.
    return [groups[dealt[rank if turn % 2 == 0 else -1 - rank]] for turn, dealt in enumerate(rounds)]


def pack_cost(split: Split, pack: int) -> int:
    """Return Σ length² of a pack's documents: packs are equally full, so it is what their costs differ by."""
    return int(np.square(split.pack(pack).seq_lengths, dtype=np.int64).sum())


def num_step_targets(slots: list[Slot], split: Split) -> int:
    """Return the target tokens of the whole step, over all ranks; known from the index alone."""
    return int(sum(split.target_tokens[slot.pack] for slot in slots if slot.weighs))


def eval_shares(num_packs: int, *, micro_packs: int, rank: int, world_size: int) -> Iterator[list[Slot]]:
    """Yield this rank's micro-batches of an evaluation over packs 0 … num_packs - 1.

    Every rank gets the same number of micro-batches, as ZeRO-3 demands; the last ones are filled with packs of
    weight 0.
    """
    per_round = micro_packs * world_size
    for start in range(0, num_packs, per_round):
        first = start + rank * micro_packs
        yield [Slot(i, min(i, num_packs - 1), i < num_packs) for i in range(first, first + micro_packs)]


def make_batch(split: Split, slots: list[Slot]) -> Batch:
    """Return the packs of `slots` as one row; packs of weight 0 keep their tokens and lose their targets."""
    packs = [split.pack(slot.pack) for slot in slots]
    lengths = np.concatenate([pack.seq_lengths for pack in packs]).astype(np.int64)
    targets = np.concatenate([_targets(pack, slot.weighs) for pack, slot in zip(packs, slots, strict=True)])
    input_ids = np.concatenate([pack.input_ids for pack in packs]).astype(np.int64)
    document_tasks = np.concatenate([pack.task_ids for pack in packs]).astype(np.int64)

    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    positions = np.arange(len(input_ids)) - starts
    target_at = np.flatnonzero(targets)
    # A document's first token is never a target, so the token before a target is of the same document.
    assert not targets[np.cumsum(lengths) - lengths].any()
    return Batch(
        input_ids=torch.from_numpy(input_ids)[None],
        position_ids=torch.from_numpy(positions)[None],
        document_lengths=tuple(lengths.tolist()),
        predictors=torch.from_numpy(target_at - 1),
        labels=torch.from_numpy(input_ids[target_at]),
        label_tasks=torch.from_numpy(np.repeat(document_tasks, lengths)[target_at]),
        position=slots[0].position,
    )


def _targets(pack: Pack, weighs: bool) -> npt.NDArray[np.bool_]:
    return np.asarray(pack.targets, dtype=bool) if weighs else np.zeros(len(pack.targets), dtype=bool)


def seed_random(seed: int, position: int, piece: int = 0) -> None:
    """Seed torch and Python for the micro-batch that begins at `position`, or for a piece of its row.

    Random numbers (dropout) then follow from the data, and survive a resume on another number of ranks, if as many of
    them share a row.
    """
    place = f"{position}:{piece}" if piece else f"{position}"
    digest = hashlib.blake2b(f"{seed}:{place}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little") >> 1  # torch takes signed 64-bit numbers
    torch.manual_seed(number)
    random.seed(number)
